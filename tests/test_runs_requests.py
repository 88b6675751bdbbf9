from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fairsisa.errors import FairsisaError, RequestError, RunError
from fairsisa.runs.directory import Run
from fairsisa.runs.requests import KEYS, find_named, keys_folder
from fairsisa.runs.unlearning import flush, queue_request
from fairsisa.settings import PathSettings, RequestSettings
from unlearning_cases import (
    HERE,
    PLAIN,
    copied,
    forget,
    held_out,
    in_slice,
    keys_of,
    ledger_of,
    request,
    silent,
    trained_in,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def queue(run: Run, asked: RequestSettings) -> tuple[str, ...]:
    return queue_request(run, asked, keys=keys_of(run))


def flushed(run: Run) -> int:
    return len(flush(run, keys=keys_of(run), settings=PLAIN, execution=HERE, on_event=silent).certificates)


def named_in_ledger(run: Run, request_id: str) -> set[str]:
    """Return the ids that a request in the ledger names, each found by hashing all of the run's."""
    ledger = ledger_of(run)
    hashes = ledger.request(request_id).example_hashes
    ids = run.examples.example_ids
    return {i for i, hidden in zip(ids, ledger.key.hide_all("example", ids), strict=True) if hidden in hashes}


def subjects_of(run: Run, *ids: str) -> set[str]:
    frame = run.examples.frame
    return set(frame.loc[frame["example_id"].isin(ids), "subject_id"])


def examples_of(run: Run, *subjects: str) -> set[str]:
    frame = run.examples.frame
    return set(frame.loc[frame["subject_id"].isin(subjects), "example_id"])


def test_every_form_names_what_a_look_at_the_table_gives(run, tmp_path):
    frame = run.examples.frame
    ids = {*in_slice(run, 0, 1, 2), *held_out(run, "test")}
    twice = frame["subject_id"].value_counts().index[0]
    (tmp_path / "my ids.txt").write_text("\n".join(["", *sorted(ids), "   ", f"  {in_slice(run, 1, 0)[0]}  "]))
    south = set(frame.loc[(frame["sensitive:region"] == "southern") & (frame["label"] == 1), "example_id"])
    from_file = ids | set(in_slice(run, 1, 0))
    forms = [
        (RequestSettings(ids=tuple(ids)), ids),
        (RequestSettings(subjects=(twice,)), examples_of(run, twice)),
        (RequestSettings(file=str(tmp_path / "my ids.txt")), from_file),
        (RequestSettings(where="region == 'southern' and label == 'happy'"), south),
        (RequestSettings(ids=tuple(ids), subjects=(twice,), where="label == 1 and region == 'southern'"), None),
    ]
    assert len(examples_of(run, twice)) > 1
    for asked, expected in forms:
        (request_id,) = queue(run, asked)
        wanted = ids | examples_of(run, twice) | south if expected is None else expected
        assert named_in_ledger(run, request_id) == wanted


def test_naming_subjects_is_kept_so_that_they_cannot_come_back(run):
    subject = run.examples.frame["subject_id"].iloc[3]
    (request_id,) = queue(run, RequestSettings(subjects=(subject,)))
    assert ledger_of(run).subject_requests([subject, "other"]) == {subject: request_id}
    assert ledger_of(run).request(request_id).subject_hashes == {ledger_of(run).key.hide("subject", subject)}


@pytest.mark.parametrize("count", [1, 5, 8])
def test_unknown_ids_are_named_and_nothing_is_received(run, count):
    unknown = tuple(f"nobody-{index}" for index in range(count))
    shown = ", ".join(repr(name) for name in unknown[:5])
    more = f" and {count - 5} more" if count > 5 else ""
    with pytest.raises(RequestError, match=rf"run holds no {re.escape(shown + more)}: correct the request, or pass"):
        queue(run, request(*in_slice(run, 0, 1), *unknown))
    assert ledger_of(run).requests() == ()


def test_unknown_ids_may_be_passed_over_and_are_counted(run):
    ids = in_slice(run, 0, 1)
    (request_id,) = queue(run, request(*ids, "nobody", subjects=("no one",), unknown="skip"))
    assert ledger_of(run).request(request_id).num_skipped == 2
    assert named_in_ledger(run, request_id) == set(ids)
    with pytest.raises(RequestError, match=r"names no example of .*run: nothing was received"):
        queue(run, request("nobody", unknown="skip"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (RequestSettings(), r"Name whom to forget: request\.ids, request\.subjects, request\.file or request\.where"),
        (RequestSettings(file="nowhere.txt"), r"Cannot read request\.file=nowhere\.txt: .*; expected a text file"),
        (RequestSettings(where="label == 'happy' and label == 'unhappy'"), "names no example of .*: nothing was"),
        (RequestSettings(where="region = 'southern'"), r"\S"),
        (RequestSettings(where="regio == 'southern'"), "Did you mean 'region'"),
        (RequestSettings(where="__import__('os').system('touch pwned')"), r"\S"),
    ],
)
def test_a_request_that_names_nothing_is_refused(run, tmp_path, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said):
        queue(run, asked)
    assert ledger_of(run).requests() == ()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b" \n \n", b"\xff\xfe\x00"])
def test_a_file_without_ids_is_refused(run, tmp_path, content):
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(RequestError, match=r"request\.file="):
        queue(run, RequestSettings(file=str(tmp_path / "ids")))


def test_the_same_request_twice_is_one_before_during_and_after(run):
    ids = (*in_slice(run, 0, 2), *held_out(run, "test"))
    first = queue(run, request(*ids, reason="first"))
    assert queue(run, request(*reversed(ids), reason="second")) == first
    (kept,) = ledger_of(run).requests()
    assert kept.reason == "first"
    with run.locked(), pytest.raises(RunError, match="Another command"):
        forget(run, *ids)
    assert len(ledger_of(run).requests()) == 1
    out = forget(run, *ids)
    assert (out.request_ids, len(out.certificates)) == (first, 1)
    before = run.ensemble
    again = forget(run, *ids)
    assert (again.request_ids, again.certificates, run.ensemble) == (first, (), before)
    assert [event.state for event in ledger_of(run).history()].count("received") == 1


def test_a_request_by_subject_twice_is_one_also_after(run):
    subject = run.examples.frame.query("split == 'train'")["subject_id"].iloc[0]
    first = forget(run, subjects=(subject,))
    assert forget(run, subjects=(subject,)).request_ids == first.request_ids
    assert len(ledger_of(run).requests()) == 1


def test_requests_that_overlap_are_both_carried_out(run):
    one, two, three = in_slice(run, 0, 1, 3)
    (first,) = forget(run, one, two).request_ids
    out = forget(run, two, three)
    (second,) = out.request_ids
    assert second != first
    ledger = ledger_of(run)
    assert ledger.request(second).example_hashes == {ledger.key.hide("example", three)}
    assert ledger.request(second).num_skipped == 0
    assert not {one, two, three} & set(run.examples.example_ids)
    assert forget(run, one, three).request_ids == tuple(sorted((first, second)))


def test_requests_that_wait_are_one_batch(run):
    batches = [in_slice(run, 0, 1), in_slice(run, 0, 2), in_slice(run, 0, 1, 2)]
    ids = [queue(run, request(*names))[0] for names in batches]
    assert run.ensemble.generation == 0
    assert flushed(run) == 3
    assert run.ensemble.generation == 1
    ledger = ledger_of(run)
    for state in ("planned", "published", "purged"):
        times = {event.time for request_id in ids for event in ledger.history(request_id) if event.state == state}
        assert len(times) == 1
    assert {entry.state for entry in ledger.requests()} == {"attested"}
    assert flushed(run) == 0


def test_unlearn_leaves_other_requests_waiting(run):
    (waits,) = queue(run, request(*in_slice(run, 1, 0)))
    forget(run, *in_slice(run, 0, 2))
    assert ledger_of(run).request(waits).state == "received"
    assert set(in_slice(run, 1, 0)) <= set(run.examples.example_ids)


def test_an_untrained_run_receives_nothing(run):
    run.publish(replace(run.ensemble, status="untrained"))
    for ask in (lambda: queue(run, request(*in_slice(run, 0, 0))), lambda: forget(run, *in_slice(run, 0, 0))):
        with pytest.raises(RunError, match="is not trained: run `fairsisa train run="):
            ask()
    assert not run.path("ledger.sqlite").exists()
    assert not keys_of(run).exists()


def test_no_run_at_all_is_told(tmp_path):
    with pytest.raises(FairsisaError, match=r"has no ensemble\.json: train it first"):
        queue(Run(tmp_path / "nowhere"), request("a"))
    assert not (tmp_path / "keys").exists()
    assert not (tmp_path / "nowhere").exists()


def test_what_is_named_without_a_ledger_has_no_earlier_requests(original):
    named = find_named(original.examples, None, request("nobody", *in_slice(original, 0, 0)))
    assert (named.unknown, named.earlier) == (("nobody",), ())
    assert named.example_ids == set(in_slice(original, 0, 0))


def test_keys_lie_where_they_are_told_to(monkeypatch, tmp_path):
    monkeypatch.delenv("FAIRSISA_KEYS", raising=False)
    assert keys_folder(PathSettings()) == Path(KEYS).expanduser()
    monkeypatch.setenv("FAIRSISA_KEYS", str(tmp_path / "env"))
    assert keys_folder(PathSettings()) == tmp_path / "env"
    assert keys_folder(PathSettings(keys="~/mine")) == Path.home() / "mine"


def test_an_id_that_is_also_a_subject_is_looked_for_as_what_it_was_named(run):
    subject = run.examples.frame["subject_id"].iloc[0]
    with pytest.raises(RequestError, match=re.escape(f"holds no {subject!r}")):
        queue(run, request(subject))
    assert subjects_of(run, *examples_of(run, subject)) == {subject}
