from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chains import digests_of, trained
from deadly import Deadly, always_die, ends, family, talkative, train_or_die
from fairsisa.errors import ConfigError, DataError, TrainingError
from fairsisa.execution import Event, Report, run_tasks
from fairsisa.settings import ExecutionSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes, each with room for one task, on this machine."""
    from ray.cluster_utils import Cluster

    from fairsisa.execution import on_ray  # noqa: F401 - sets what Ray reads when it is imported

    with pytest.MonkeyPatch.context() as patch:
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        for name, value in {"initial_delay": 0, "period": 500, "timeout": 2000}.items():
            patch.setenv(f"RAY_health_check_{name}_ms", str(value))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            made.add_node(num_cpus=1)
            yield made
        finally:
            made.shutdown()


def run_on(address: str | None, function: Any, tasks: list[Any], on_event: Report, **changes: Any) -> list[Any]:
    return run_tasks(
        function,
        tasks,
        execution=ExecutionSettings(kind="ray", address=address, **changes),
        threads=1,
        accelerator="cpu",
        scratch=Path("nowhere/jobs"),
        on_event=on_event,
    )


def test_an_error_keeps_its_type_and_words(cluster, tmp_path):
    jobs = [
        Deadly(task, tmp_path / f"marker-{place}", "wait" if place else "fail")
        for place, task in enumerate(talkative(tmp_path / "store").shard_tasks())
    ]
    with pytest.raises(DataError, match=r"^these examples are bad$"):
        run_on(cluster.address, train_or_die, jobs, [].append)
    if (tmp_path / "marker-1").exists():  # else it had not come so far
        assert ends(int((tmp_path / "marker-1").read_text().split()[0]))


def test_a_task_that_always_dies_is_an_error_that_says_how_to_go_on(cluster):
    events: list[Event] = []
    with pytest.raises(TrainingError, match=r"Task 0 was stopped in attempt 1, the last .* run the same command again"):
        run_on(cluster.address, always_die, [0], events.append, max_retries=0)
    assert events == [Event("slice_started", "shard-0", 2)]


def test_a_task_too_large_for_every_node_is_refused(cluster):
    with pytest.raises(ConfigError, match=r"A task needs CPU: 1, memory: 1.07374e\+15 .* no node"):
        run_on(cluster.address, always_die, [0], [].append, memory_gb=1e6)


def test_a_node_that_is_lost_in_mid_slice_is_survived(cluster, tmp_path):
    (second,) = cluster.worker_nodes  # this test is the last: it leaves the cluster without it
    trained(talkative(tmp_path / "here"))
    node, raylet = second.node_id, second.all_processes["raylet"][0].process.pid
    marker, events, killed = tmp_path / "marker", list[Event](), list[int]()

    def lose_node(event: Event) -> None:
        events.append(event)
        if marker.exists() and not killed:
            killed.extend(family(raylet))
            assert int(marker.read_text().split()[0]) in killed
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    jobs = [Deadly(task, marker, "wait", node) for task in talkative(tmp_path / "there").shard_tasks()]
    found = run_on(cluster.address, train_or_die, jobs, lose_node)
    assert killed
    assert all(ends(pid) for pid in killed)
    assert sorted([row.status for row in rows] for rows, _ in found) == [
        ["reused", "trained", "trained"],
        ["trained", "trained", "trained"],
    ]
    assert [threads for _, threads in found] == [1, 1]
    assert {event.kind for event in events} == {"slice_started", "metrics", "slice_done"}
    begun = sorted((event.constituent, event.slice) for event in events if event.kind == "slice_started")
    assert len(begun) == 7
    assert len(set(begun)) == 6
    assert max(begun, key=begun.count)[1] == 1
    assert digests_of(tmp_path / "there") == digests_of(tmp_path / "here")
