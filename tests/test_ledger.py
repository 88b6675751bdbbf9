from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairsisa.errors import LedgerError, RequestError
from fairsisa.sisa import ledger_events
from fairsisa.sisa.keys import Key
from fairsisa.sisa.ledger import OPEN, STATES, ForgetSet, Head, Ledger

WAYS = {  # the brief, written out
    ("received", "planned"),
    ("planned", "retraining"),
    ("retraining", "retraining"),
    ("retraining", "published"),
    ("published", "purged"),
    ("purged", "attested"),
    ("failed", "planned"),
    *((state, "failed") for state in ("received", "planned", "retraining", "published", "purged", "failed")),
}
PATHS = {
    "received": (),
    "planned": ("planned",),
    "retraining": ("planned", "retraining"),
    "published": ("planned", "retraining", "published"),
    "purged": ("planned", "retraining", "published", "purged"),
    "attested": ("planned", "retraining", "published", "purged", "attested"),
    "failed": ("failed",),
}
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
id_sets = st.frozensets(ids, min_size=1, max_size=6)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.begin(tmp_path / "ledger", tmp_path / "keys")


def lead_to(ledger: Ledger, state: str, *names: str) -> str:
    request = ledger.receive(names or ("a",))
    for step in PATHS[state]:
        ledger.advance([request.request_id], step, {"to": step})
    return request.request_id


# Beginning


def test_begin_makes_a_ledger_and_its_key_once(tmp_path):
    first = Ledger.begin(tmp_path / "run" / "ledger", tmp_path / "keys")
    again = Ledger.begin(tmp_path / "run" / "ledger", tmp_path / "keys")
    assert (again.ledger_id, again.key) == (first.ledger_id, first.key)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [f"{first.ledger_id}.key"]
    assert first.head == again.head
    assert first.head.seq == 0
    assert first.requests() == first.history() == ()
    first.check([first.head])
    other = Ledger.begin(tmp_path / "other", tmp_path / "keys")
    assert other.head != first.head  # the chain begins with the ledger's own name


def test_a_missing_ledger_is_not_made_by_opening(tmp_path):
    with pytest.raises(LedgerError, match=r"ledger: unable to open database file; look whether the file is there"):
        Ledger.open(tmp_path / "ledger", tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_without_its_key_is_refused(ledger, tmp_path):
    key = tmp_path / "keys" / f"{ledger.ledger_id}.key"
    key.rename(tmp_path / "elsewhere")
    for verb in (Ledger.open, Ledger.begin):
        with pytest.raises(LedgerError, match=f"Expected a key in {key}, found none: restore that file"):
            verb(ledger.path, tmp_path / "keys")
    with pytest.raises(LedgerError, match="was begun with another key: expected fingerprint"):
        Ledger(ledger.path, Key(bytes(32)))


def test_a_ledger_of_another_version_is_refused(ledger, tmp_path):
    with closing(sqlite3.connect(ledger.path)) as raw, raw:
        raw.execute("DROP TRIGGER meta_refuse_update")
        raw.execute("UPDATE meta SET version = 2")
    with pytest.raises(LedgerError, match="to be a ledger of version 1, got 2: use the fairsisa that wrote it"):
        Ledger.open(ledger.path, tmp_path / "keys")


# Receiving


def test_a_received_request_is_read_back(ledger):
    before = datetime.now(UTC)
    made = ledger.receive(["b", "a", "b"], subject_ids=["s"], reason="Art. 17", num_skipped=2)
    key = ledger.key
    assert made.example_hashes == {key.hide("example", "a"), key.hide("example", "b")}
    assert made.subject_hashes == {key.hide("subject", "s")}
    assert (made.reason, made.num_skipped, made.state) == ("Art. 17", 2, "received")
    assert before <= datetime.fromisoformat(made.received) <= datetime.now(UTC)
    assert Ledger(ledger.path, key).requests() == (made,)
    assert ledger.request(made.request_id) == ledger.request(made.request_id[:4]) == made
    (event,) = ledger.history(made.request_id)
    examples = hashlib.sha256("\n".join(sorted(made.example_hashes)).encode()).hexdigest()
    assert event.detail["examples"] == examples
    assert ledger.head == Head(1, event.digest)


def test_the_id_is_a_keyed_hash_of_the_sorted_examples(ledger):
    assert ledger.receive(["b", "a"]).request_id == ledger.key.hide("request", '["a","b"]')


@pytest.mark.parametrize("state", STATES)
def test_the_same_set_twice_is_one_request_whatever_its_state(ledger, state):
    request_id = lead_to(ledger, state, "a", "b")
    head = ledger.head
    again = ledger.receive(["b", "a"], reason="another", num_skipped=3)
    assert (again.request_id, again.state, again.reason) == (request_id, state, "")
    assert ledger.head == head


def test_a_subject_is_never_lost_behind_the_same_examples(ledger):
    first, second = ledger.receive(["a"]), ledger.receive(["a"], subject_ids=["s"])
    assert first.request_id != second.request_id
    assert ledger.receive(["a"], subject_ids=["s"]) == second
    assert ledger.subject_requests(["s", "t"]) == {"s": second.request_id}
    assert ledger.forgotten(["a"]) == {"a": first.request_id}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"example_ids": []}, "at least one example, got none; nothing was received"),
        ({"example_ids": "abc"}, "Expected example_ids to be a collection of str"),
        ({"example_ids": [1]}, "Expected example_ids to be a collection of str"),
        ({"example_ids": ["a"], "subject_ids": "s"}, "Expected subject_ids to be a collection of str"),
        ({"example_ids": ["a"], "num_skipped": -1}, "num_skipped to be an int of at least 0, got -1"),
        ({"example_ids": ["a"], "reason": None}, "Expected the reason to be a str, got NoneType"),
    ],
)
def test_a_request_that_names_nothing_is_refused(ledger, asked, message):
    with pytest.raises(RequestError, match=message):
        ledger.receive(**asked)
    assert ledger.head.seq == 0


def test_receive_many_is_receive_again_and_again(tmp_path):
    one, many = (Ledger.begin(tmp_path / name, tmp_path / "keys") for name in ("one", "many"))
    sets = [ForgetSet([f"{index % 4}"], [f"s{index % 4}"], "why", index % 4) for index in range(10)]
    singly = [
        one.receive(s.example_ids, subject_ids=s.subject_ids, reason=s.reason, num_skipped=s.num_skipped) for s in sets
    ]
    together = many.receive_many(iter(sets))
    assert len(together) == 10
    assert len(many.requests()) == len(one.requests()) == 4
    assert [(r.reason, r.num_skipped, r.state) for r in together] == [
        (r.reason, r.num_skipped, r.state) for r in singly
    ]
    assert many.forgotten("0123") == {f"{index}": together[index].request_id for index in range(4)}


def test_each_of_many_is_durable_before_the_next_is_taken(ledger):
    def asked() -> Iterator[ForgetSet]:
        for index in range(3):
            assert len(ledger.requests()) == index
            yield ForgetSet([f"{index}"])
        raise OSError("the list of requests cannot be read any further")

    with pytest.raises(OSError, match="any further"):
        ledger.receive_many(asked())
    assert len(ledger.requests("received")) == 3


@pytest.mark.slow
def test_thousands_of_requests_are_received_and_found_again(ledger):
    made = ledger.receive_many(ForgetSet([f"e{index}"]) for index in range(2_000))
    assert ledger.requests() == made
    assert ledger.forgotten(f"e{index}" for index in range(4_000)) == {
        f"e{index}": request.request_id for index, request in enumerate(made)
    }
    ledger.advance([request.request_id for request in made], "planned", {"shards": [0, 1]})
    ledger.check([ledger.head])
    assert ledger.head.seq == 4_000


def test_ids_in_plain_are_not_shown():
    assert "alice" not in repr(ForgetSet(["alice-1"], ["alice"]))


# States


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_only_the_known_ways_are_open(tmp_path, before, after):
    ledger = Ledger.begin(tmp_path / "ledger", tmp_path / "keys")
    request_id = lead_to(ledger, before)
    if (before, after) in WAYS:
        ledger.advance([request_id], after, {"new": 1})
        assert ledger.request(request_id).state == after
        assert ledger.history()[-1].detail == {"new": 1}
    else:
        head = ledger.head
        with pytest.raises(
            LedgerError, match=f"Expected request {request_id}, which is {before}, to go .*got {after};"
        ):
            ledger.advance([request_id], after, {"new": 1})
        assert ledger.head == head
    ledger.check()


@pytest.mark.parametrize("state", STATES[1:])
def test_the_same_state_and_detail_is_not_noted_again(ledger, state):
    request_id = lead_to(ledger, state)
    head = ledger.head
    ledger.advance([request_id], state, {"to": state})
    assert ledger.head == head


def test_many_advance_together_or_not_at_all(ledger):
    first, second = ledger.receive(["a"]).request_id, ledger.receive(["b"]).request_id
    ledger.advance([first], "planned")
    with pytest.raises(LedgerError, match=f"Expected request {second}, which is received"):
        ledger.advance([first, second], "retraining", {"slice": 1})
    with pytest.raises(LedgerError, match=r"Expected a request that .* holds, got 'none'; nothing was noted"):
        ledger.advance([first, "none"], "retraining")
    assert [request.state for request in ledger.requests()] == ["planned", "received"]
    ledger.advance([second], "planned")
    ledger.advance([first, second, first], "retraining", {"slice": 1})
    assert [event.state for event in ledger.history()][-2:] == ["retraining"] * 2
    assert ledger.head.seq == 6
    ledger.advance([], "failed")
    assert ledger.head.seq == 6


def test_what_cannot_be_noted_is_refused(ledger):
    request_id = lead_to(ledger, "planned")
    with pytest.raises(LedgerError, match=r"Expected one of the states received, .*, got 'done'"):
        ledger.advance([request_id], "done")
    with pytest.raises(ValueError, match=r"detail\['path'\] to be plain JSON, got PosixPath"):
        ledger.advance([request_id], "retraining", {"path": Path()})
    with pytest.raises(ValueError, match="a sequence of request ids"):
        ledger.advance(request_id, "retraining")
    with pytest.raises(ValueError, match=r"Expected states among received, .*, got 'done'"):
        ledger.requests("done")


def test_requests_and_hashes_by_state(ledger):
    names = {state: lead_to(ledger, state, f"in-{state}", "shared") for state in STATES}
    assert [request.state for request in ledger.requests()] == list(STATES)
    for state in STATES:
        assert [request.request_id for request in ledger.requests(state)] == [names[state]]
        expected = {ledger.key.hide("example", name) for name in (f"in-{state}", "shared")}
        assert ledger.hashes(state) == ledger.request(names[state]).example_hashes == expected
    assert {request.state for request in ledger.requests(*OPEN)} == set(STATES) - {"attested"}
    assert len(ledger.hashes()) == len(STATES) + 1
    assert ledger.hashes("purged", "failed") == ledger.hashes("purged") | ledger.hashes("failed")


@pytest.mark.parametrize("prefix", ["", "abc", "%", "zzzz", "ABCD" * 16])
def test_a_prefix_is_at_least_four_digits(ledger, prefix):
    ledger.receive(["a"])
    with pytest.raises(LedgerError, match="Expected a request id, or 4 or more of its first hexadecimal digits"):
        ledger.request(prefix)


def test_a_prefix_names_one_request(ledger, monkeypatch):
    taken = iter(["abcd" + "0" * 60, "abcd" + "f" * 60])
    monkeypatch.setattr(Ledger, "_request_id", lambda self, request: next(taken))
    ledger.receive(["a"]), ledger.receive(["b"])
    with pytest.raises(LedgerError, match=r"whose id begins with abcd, got both abcd0+ and abcdf+: give more digits"):
        ledger.history("abcd")
    with pytest.raises(LedgerError, match="whose id begins with abce, got none: list the requests"):
        ledger.request("abce")
    assert ledger.request("abcdf").example_hashes == {ledger.key.hide("example", "b")}


def test_a_clock_that_goes_back_never_takes_the_ledger_along(ledger, monkeypatch):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    hours = iter([0, 1, -5, -4, 2])
    monkeypatch.setattr(ledger_events, "_now", lambda: start + timedelta(hours=next(hours)))
    request_ids = [ledger.receive([f"{index}"]).request_id for index in range(5)]
    told = [datetime.fromisoformat(event.time) - start for event in ledger.history()]
    assert told == [timedelta(hours=hour) for hour in (0, 1, 1, 1, 2)]
    assert [request.request_id for request in ledger.requests()] == request_ids
    ledger.check()


class LedgerModel(RuleBasedStateMachine):
    """The ledger against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.ledger = Ledger.begin(root / "ledger", root / "keys")
        self.states: dict[frozenset[str], str] = {}
        self.names: dict[str, frozenset[str]] = {}
        self.heads: list[Head] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(asked=st.lists(id_sets, min_size=1, max_size=3))
    def receive(self, asked: list[frozenset[str]]) -> None:
        for examples, request in zip(asked, self.ledger.receive_many(map(ForgetSet, asked)), strict=True):
            self.states.setdefault(examples, "received")
            self.names[request.request_id] = examples
        self.heads.append(self.ledger.head)

    @rule(data=st.data(), state=st.sampled_from(STATES), step=st.integers(0, 2))
    def advance(self, data: st.DataObject, state: str, step: int) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.names)), unique=True)) if self.names else []
        allowed = all(
            (self.states[self.names[name]], state) in WAYS
            or (self.states[self.names[name]] == state and self.ledger.history(name)[-1].detail == {"step": step})
            for name in chosen
        )
        try:
            self.ledger.advance(chosen, state, {"step": step})
        except LedgerError:
            assert not allowed
        else:
            assert allowed
            self.states |= {self.names[name]: state for name in chosen}

    @invariant()
    def agrees(self) -> None:
        key = self.ledger.key
        found = {self.names[request.request_id]: request for request in self.ledger.requests()}
        assert list(found) == list(self.states)
        assert {examples: request.state for examples, request in found.items()} == self.states
        for examples, request in found.items():
            assert request.example_hashes == {key.hide("example", name) for name in examples}
        everyone = frozenset().union(*self.states)
        first = {name: next(examples for examples in self.states if name in examples) for name in everyone}
        named = self.ledger.forgotten([*everyone, "somebody else"])
        assert {name: self.names[request_id] for name, request_id in named.items()} == first
        self.ledger.check(self.heads)


LedgerModel.TestCase.settings = settings(
    max_examples=12, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_ledger_agrees_with_a_dictionary = LedgerModel.TestCase
