from __future__ import annotations

import gc
import importlib.util
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.plugins.environments import SLURMEnvironment

from chains import digests_of, trained
from deadly import Deadly, alive, always_die, ends, talkative, train_or_die, wait_long
from fairsisa.errors import ConfigError, DataError, TrainingError
from fairsisa.execution import Event, Report, run_tasks
from fairsisa.execution.journal import read_from, write_to
from fairsisa.settings import ExecutionSettings
from fairsisa.sisa.training import train_shard


@pytest.fixture(autouse=True)
def _jobs_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def run_jobs(function: Any, tasks: list[Any], scratch: Path, on_event: Report, **execution: Any) -> list[Any]:
    return run_tasks(
        function,
        tasks,
        execution=ExecutionSettings(**{"kind": "submitit", "cluster": "local", **execution}),
        threads=1,
        accelerator="cpu",
        scratch=scratch,
        on_event=on_event,
    )


@pytest.mark.slow
def test_jobs_end_as_processes_do_even_when_one_is_killed_in_mid_slice(tmp_path):
    trained(talkative(tmp_path / "here"))
    seen: list[tuple[Event, int]] = []
    scratch = tmp_path / "jobs"
    jobs = [
        Deadly(task, tmp_path / f"marker-{place}", "die" if place else "")
        for place, task in enumerate(talkative(tmp_path / "there").shard_tasks())
    ]
    found = run_jobs(
        train_or_die, jobs, scratch, lambda event: seen.append((event, stat.S_IMODE(scratch.stat().st_mode)))
    )
    pid, where, _ = map(int, (tmp_path / "marker-1").read_text().split())
    assert where == 1
    assert not alive(pid)
    assert [[row.status for row in rows] for rows, _ in found] == [["trained"] * 3, ["reused", "trained", "trained"]]
    assert [threads for _, threads in found] == [1, 1]
    assert digests_of(tmp_path / "there") == digests_of(tmp_path / "here")
    assert {mode for _, mode in seen} == {0o700}
    assert not scratch.exists()
    for name, begun in (("shard-0", [0, 1, 2]), ("shard-1", [0, 1, 1, 2])):
        own = [event for event, _ in seen if event.constituent == name]
        assert [event.slice for event in own if event.kind == "slice_started"] == begun
        assert all(set(event.values) == {"train_loss", "learning_rate"} for event in own if event.kind == "metrics")


@pytest.mark.slow
def test_a_job_that_is_always_killed_is_an_error_that_names_task_and_log(tmp_path):
    events: list[Event] = []
    expected = r"task 0 \(shard-0, slice 2\) was stopped in attempt 1, the last .* run the same command again"
    with pytest.raises(TrainingError, match=expected) as caught:
        run_jobs(always_die, [0], tmp_path / "jobs", events.append, max_retries=0)
    assert events == [Event("slice_started", "shard-0", 2)]
    assert not (tmp_path / "jobs").exists()
    (log,) = re.findall(r"Its log: (\S+)\.$", str(caught.value))
    assert log == str(tmp_path / "jobs.log")
    assert Path(log).is_file()


@pytest.mark.slow
def test_ctrl_c_ends_the_jobs_and_leaves_no_data_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_jobs(wait_long, [tmp_path / "pid"], tmp_path / "jobs", lambda event: os.kill(os.getpid(), signal.SIGINT))
    assert not (tmp_path / "jobs").exists()
    assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves logs open
def test_an_error_keeps_its_type_and_words(tmp_path):
    task, _ = talkative(tmp_path / "store").shard_tasks()
    with pytest.raises(DataError, match=r"^these examples are bad$"):
        run_jobs(
            train_or_die, [Deadly(task, tmp_path / "marker", "fail")], tmp_path / "jobs", [].append, cluster="debug"
        )
    assert (tmp_path / "marker").exists()
    assert not (tmp_path / "jobs").exists()
    assert len(digests_of(tmp_path / "store")) == 1
    gc.collect()


SLURM = {
    "srun": 'shift 5; exec "$@"',
    "sbatch": """
number=$(( $(cat next 2>/dev/null || echo 100) + 1 )); echo $number > next; cp "$1" script-$number
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for index in $(seq 0 "${last:-0}"); do
  id=$number${last:+_$index}
  ( exec > /dev/null 2>&1
    export SUBMITIT_EXECUTOR=slurm SLURM_JOB_ID=$((number * 100 + index)) SLURM_NTASKS=1 SLURM_PROCID=0
    export SLURM_JOB_NAME=fairsisa SLURM_NTASKS_PER_NODE=1
    if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$index; fi
    for attempt in 1 2; do
      bash "$1" >> out-$id 2>&1
      [ -e requeue-$id ] || break
      rm requeue-$id
    done
    touch over-$id ) &
done
echo "Submitted batch job $number"
""",
    "sacct": """
echo "JobID|State|NodeList"
for over in over-*; do [ -e "$over" ] && echo "${over#over-}|COMPLETED|here"; done
""",
    "scontrol": 'touch "requeue-$2"',
    "scancel": 'echo "$1" >> cancelled',
}
"""Commands that stand for SLURM's, as far as submitit uses them."""


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("slurm")
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\ncd {folder}\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_a_preempted_slurm_job_comes_back_and_ends_the_same(slurm, tmp_path):
    trained(talkative(tmp_path / "here"))
    jobs = [
        Deadly(task, tmp_path / f"marker-{place}", "preempt" if place else "")
        for place, task in enumerate(talkative(tmp_path / "there").shard_tasks())
    ]
    asked = {"cluster": "auto", "num_workers": 1, "partition": "long", "account": "mine", "memory_gb": 1.5}
    found = run_jobs(train_or_die, jobs, tmp_path / "jobs", [].append, timeout_minutes=77, **asked)
    assert [[row.status for row in rows] for rows, _ in found] == [["trained"] * 3, ["reused", "trained", "trained"]]
    assert (tmp_path / "marker-1").exists()
    assert not (tmp_path / "marker-0").exists()
    assert "Requeued job 101_1" in (slurm / "out-101_1").read_text()
    assert digests_of(tmp_path / "there") == digests_of(tmp_path / "here")
    assert not (tmp_path / "jobs").exists()
    (script,) = slurm.glob("script-*")  # one array, not a script a job
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))
    expected = {"array": "0-1%1", "partition": "long", "account": "mine", "mem": "1536MB", "time": "77"}
    expected |= {"cpus-per-task": "1", "nodes": "1", "ntasks-per-node": "1", "job-name": "fairsisa"}
    assert {name: flags[name] for name in expected} == expected
    assert "gpus-per-node" not in flags


def test_inside_slurm_lightning_leaves_requeueing_to_submitit(monkeypatch, tmp_path):
    inside = {"JOB_ID": "7", "JOB_NAME": "fairsisa", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0"}
    for name, value in inside.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("Lightning goes on from such a file of its own, found in a SLURM job")
    assert SLURMEnvironment.detect()
    before, during = signal.getsignal(signal.SIGUSR1), []
    task, _ = talkative(tmp_path / "store").shard_tasks()
    results = train_shard(task, lambda event: during.append(signal.getsignal(signal.SIGUSR1)))
    assert set(during) == {before}
    assert [result.status for result in results] == ["trained"] * 3


def test_others_may_not_write_where_jobs_are_read(tmp_path):
    theirs = tmp_path / "open" / "jobs"
    theirs.parent.mkdir()
    theirs.parent.chmod(0o777)
    with pytest.raises(TrainingError, match=r"to be closed to others, .* mode 777: chmod o-w"):
        run_jobs(always_die, [0], theirs, [].append)
    theirs.parent.chmod(0o755)
    theirs.mkdir()
    theirs.chmod(0o770)
    (theirs / "kept").touch()
    with pytest.raises(TrainingError, match=r"a folder that only you may write, .* remove it"):
        run_jobs(always_die, [0], theirs, [].append)
    assert (theirs / "kept").exists()
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(TrainingError, match="a folder that only you may write"):
        run_jobs(always_die, [0], link, [].append)


def test_a_slurm_that_is_not_there_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(ConfigError, match=r"execution\.cluster=slurm: .* Use execution\.cluster=local"):
        run_jobs(always_die, [0], tmp_path / "jobs", [].append, cluster="slurm")
    assert not (tmp_path / "jobs").exists()


def test_what_a_killed_command_left_is_deleted_and_its_jobs_end(tmp_path, monkeypatch):
    monkeypatch.setattr("fairsisa.execution.scratch.time.sleep", lambda seconds: None)
    scratch = tmp_path / "jobs"
    scratch.mkdir(mode=0o700)
    journal = scratch / "0.events"
    journal.touch()
    orphan = "import sys, time; from pathlib import Path; from fairsisa.execution.journal import ending_with\n"
    orphan += "with ending_with(Path(sys.argv[1])): print('on', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", orphan, str(journal)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        trained(talkative(tmp_path / "store"), scratch=scratch)
        assert not scratch.exists()
        assert process.wait(30.0) == 1


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False), st.integers()), max_size=4))
def test_a_journal_gives_back_what_was_told_once_and_in_order(tmp_path_factory, told):
    journal = tmp_path_factory.mktemp("journal") / "0.events"
    journal.touch()
    report, offset, heard = write_to(journal), 0, []
    for kind, loss, step in told:
        report(Event(kind, "shard-0", 1, step, {"train_loss": loss, "what": kind}))
        with journal.open("ab") as file:  # a line that is not whole yet
            file.write(b'{"kind')
        new, offset = read_from(journal, offset)
        heard += new
        os.truncate(journal, journal.stat().st_size - 6)
    assert heard == [Event(k, "shard-0", 1, step, {"train_loss": loss, "what": k}) for k, loss, step in told]
    assert read_from(journal, offset) == ([], offset)
    journal.unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.events"):
        report(Event("metrics", "shard-0"))


@pytest.mark.parametrize(("kind", "extra"), [("submitit", "slurm"), ("ray", "ray")])
def test_a_package_that_is_missing_is_named_with_its_extra(kind, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs the package {kind}: pip install 'fairsisa\[{extra}\]'"):
        run_jobs(always_die, [0], tmp_path / "jobs", [].append, kind=kind)
