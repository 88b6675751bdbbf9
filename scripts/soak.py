"""Kill unlearning commands again and again, and compare what they leave with training from scratch.

`python scripts/soak.py --kills 200 --seed 0` sends random requests to a small run in a temporary folder. Each command
is killed at a random time or write boundary, and run again, until it ends. After every operation the artefacts must
be, digest for digest, those of an ensemble trained from scratch on what is left; the exit status is 1 if any are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from fairsisa.runs.adding import joined, load_more
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.training import train_run
from fairsisa.settings import ExecutionSettings, PathSettings
from fairsisa.sisa.ledger import Ledger
from fairsisa.sisa.partition import Partition
from fairsisa.tables import TRAIN, Examples

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from faults import KILLED, Fault, zygote
from scenes import Scene, begin, problems_of

NUM_EXAMPLES, NUM_ADDED, MOST_ADDS = 600, 12, 4
KILLS_IN_A_ROW, SHARE_KILLED, SHARE_MEASURED = 4, 0.85, 0.2
COLUMNS = {
    "label": "label",
    "numeric": "[first,second,third]",
    "sensitive": "[region]",
    "example_id": "example",
    "subject_id": "person",
}
ALONE = "execution.num_workers=1"
TRAINING = (
    "train",
    "data=own_table",
    "data.path=../data/people.csv",
    *(f"data.columns.{key}={value}" for key, value in COLUMNS.items()),
    "model=logistic",
    "trainer.batch_size=16",
    "trainer.max_epochs=2",
    "partition.num_shards=3",
    "partition.num_slices=3",
    "evaluation.num_replicates=100",
    "evaluation.baselines=[]",
    "run=run",
    "paths.store=store",
    ALONE,
)
KINDS = ("ids", "subjects", "batch", "queued", "degraded", "add")
console = Console()


@dataclass(frozen=True)
class Operation:
    """Something asked of the run: its commands, one after the other, the ids it forgets, the examples it brings."""

    kind: str
    commands: tuple[tuple[str, ...], ...]
    gone: frozenset[str] = frozenset()
    new: Examples | None = None


@dataclass(frozen=True)
class State:
    """What the run should hold by now, kept beside it."""

    examples: Examples
    partition: Partition

    def after(self, operation: Operation) -> State:
        """Return the state once an operation is done."""
        if operation.new is not None:
            examples, partition = joined(self.examples, operation.new), self.partition
            return State(
                examples, partition.with_slice(examples) if (operation.new.frame["split"] == TRAIN).any() else partition
            )
        keep = ~self.examples.frame["example_id"].isin(operation.gone).to_numpy()
        return State(self.examples.keep(keep), self.partition.without(operation.gone))


@dataclass(frozen=True)
class Score:
    """What was counted."""

    phases: Counter[str] = field(default_factory=Counter)
    means: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """The kills that hit."""
        return self.phases.total()


@dataclass(frozen=True)
class Soak:
    """A run under fire: where it lies, the dice, what was counted, and how long undisturbed commands take."""

    scene: Scene
    folder: Path
    rng: np.random.Generator
    num_kills: int
    score: Score
    lengths: dict[str, tuple[float, int]] = field(default_factory=dict)

    def carry_out(self, operation: Operation) -> None:
        """Run the commands of an operation, each until it has ended by itself."""
        for words in operation.commands:
            known = num_requests(self.scene.run)
            for _ in range(KILLS_IN_A_ROW):
                if not self.attempt(operation.kind, words, self.draw(words), known):
                    break
            else:
                self.attempt(operation.kind, words, None, known)

    def attempt(self, kind: str, words: tuple[str, ...], fault: Fault | None, known: int) -> bool:
        """Run a command; return whether it was killed. What else is wrong with it ends the soak."""
        done = self.scene.act(words, fault)
        self.score.others["commands"] += 1
        if done.code == KILLED and fault is not None:
            self.score.phases[phase_of(self.scene, kind, known)] += 1
            self.score.means["at a random time" if fault.at is None else "at a write boundary"] += 1
            if self.score.num_kills % 10 == 0:
                console.print(f"{self.score.num_kills} of {self.num_kills} kills", highlight=False)
            return True
        if done.code != 0:
            sys.exit(f"`fairsisa {' '.join(words)}` ended with status {done.code}:\n{done.said}")
        if fault is None:
            self.lengths[" ".join(words[:2])] = (done.seconds, len(done.boundaries))
        return False

    def draw(self, words: tuple[str, ...]) -> Fault | None:
        """Draw what befalls a command; None when it is left alone."""
        if self.score.num_kills >= self.num_kills or self.rng.random() > SHARE_KILLED:
            return None
        seconds, boundaries = self.lengths.get(" ".join(words[:2]), (1.0, 120))
        if self.rng.random() < 0.5:
            return Fault("signal", after=float(self.rng.uniform(0.0, seconds)))
        return Fault("signal", at=int(self.rng.integers(max(1, boundaries))))


def num_requests(run: Run) -> int:
    return len(Ledger.open(run.path(LEDGER), run.directory.parent / "keys").requests()) if has_ledger(run) else 0


def has_ledger(run: Run) -> bool:
    return run.path(LEDGER).is_file()


def phase_of(scene: Scene, kind: str, known: int) -> str:
    """Return how far a killed command had come: the last state in the ledger."""
    if kind == "add":
        return "adding"
    if num_requests(scene.run) == 0:
        return "before the first receipt"
    state = scene.ledger.requests()[-1].state
    return "before receipt" if state == "attested" and num_requests(scene.run) == known else state


def people(rng: np.random.Generator, first: int, count: int) -> pd.DataFrame:
    """Return made-up rows; some people have several."""
    numbers = np.arange(first, first + count)
    region = rng.integers(2, size=count)
    features = rng.normal(size=(count, 3)) + 0.3 * region[:, None]
    label = (features.sum(axis=1) + rng.normal(size=count) > 0).astype(int)
    table = {"example": [f"row-{n:06d}-x" for n in numbers], "person": [f"person-{n // 3:06d}-x" for n in numbers]}
    table |= {name: features[:, place].round(4) for place, name in enumerate(("first", "second", "third"))}
    return pd.DataFrame(table | {"region": np.where(region == 1, "north", "south"), "label": label})


def next_operation(soak: Soak, state: State) -> Operation:
    """Draw what is asked of the run next."""
    rng = soak.rng
    kind = str(rng.choice(KINDS))
    if kind == "add" and soak.score.operations["add"] < MOST_ADDS:
        return adding(soak)
    frame = state.examples.frame
    ids = [str(example) for example in rng.choice(frame["example_id"], size=6, replace=False)]
    measured = f"unlearning.evaluate={'true' if rng.random() < SHARE_MEASURED else 'false'}"
    quiet = ("run=run", ALONE, measured, "unlearning.membership=false")
    if kind == "subjects":
        subjects = frame.loc[frame["example_id"].isin(ids[:2]), "subject_id"].unique()
        gone = frame.loc[frame["subject_id"].isin(subjects), "example_id"]
        return Operation(kind, (("unlearn", *quiet, listed("subjects", subjects)),), frozenset(gone))
    if kind == "queued":
        waiting = [("unlearn", "run=run", "queue=true", listed("ids", part)) for part in (ids[:2], ids[2:3], ids[3:])]
        return Operation(kind, (*waiting, ("unlearn", "flush", *quiet)), frozenset(ids))
    chosen = ids if kind == "batch" else ids[:2]
    extra = ("unlearning.degraded=true",) if kind == "degraded" else ()
    return Operation(kind, (("unlearn", *quiet, *extra, listed("ids", chosen)),), frozenset(chosen))


def listed(key: str, names: Sequence[str]) -> str:
    return f"request.{key}=[{','.join(names)}]"


def adding(soak: Soak) -> Operation:
    count = soak.score.operations["add"]
    path = soak.folder / "data" / f"more-{count}.csv"
    people(soak.rng, NUM_EXAMPLES + NUM_ADDED * count, NUM_ADDED).to_csv(path, index=False)
    new = load_more(soak.scene.run, {"path": str(path)}, root=None, cache=soak.folder)
    words = ("add", "run=run", f"data.path=../data/{path.name}", "evaluate=false", ALONE)
    return Operation("add", (words,), new=new)


def from_scratch(run: Run, state: State, folder: Path) -> Run:
    """Train an ensemble on what the run should hold, in a store of its own."""
    made = Run(folder / "run")
    made.begin(
        run.settings,
        state.examples,
        state.partition,
        source=run.source,
        store=str(folder / "store"),
        environment=run.environment,
    )
    execution = ExecutionSettings(num_workers=1)
    train_run(run.settings, made, paths=PathSettings(), execution=execution, on_event=lambda event: None)
    return made


def differences(scene: Scene, state: State, folder: Path) -> list[str]:
    """Return what tells the run from one that was trained from scratch."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        oracle, run = from_scratch(scene.run, state, Path(name)), scene.run
        expected, got = (
            {name: store.manifest(name).sha256 for name in store.names()} for store in (oracle.store, run.store)
        )
        served = [(r.ensemble.checkpoints, r.ensemble.predictions, r.ensemble.status) for r in (oracle, run)]
    found = [f"{len(expected.items() ^ got.items())} artefacts differ"] if expected != got else []
    found += ["another ensemble is served"] if served[0] != served[1] else []
    found += ["another table of examples"] if not run.examples.frame.equals(state.examples.frame) else []
    return found + (["another partition"] if not run.partition.frame().equals(state.partition.frame()) else [])


def compare(soak: Soak, operation: Operation, state: State, gone: frozenset[str]) -> None:
    """Hold the run against training from scratch, and look for traces."""
    scene, score = soak.scene, soak.score
    if operation.kind == "add":
        scene.run.store.collect(older_than=0.0)  # scores that were superseded; an unlearning cleans up by itself
    found = differences(scene, state, soak.folder)
    if has_ledger(scene.run):
        found += problems_of(scene, gone)
        found += [f"a request is {r.state}" for r in scene.ledger.requests() if r.state != "attested"]
    score.others["comparisons equal" if not found else "comparisons unequal"] += 1
    if found:
        score.wrong.append(f"{operation.kind} ({score.operations.total()}): {'; '.join(found)}")
        console.print(score.wrong[-1], highlight=False, style="red")


def soak_until(soak: Soak) -> None:
    """Ask one thing after the other of the run until enough kills have hit, and one more."""
    state = State(soak.scene.run.examples, soak.scene.run.partition)
    gone, enough = frozenset[str](), False
    while not enough:
        enough = soak.score.num_kills >= soak.num_kills
        operation = next_operation(soak, state)
        soak.carry_out(operation)
        soak.score.operations[operation.kind] += 1
        state, gone = state.after(operation), gone | operation.gone
        compare(soak, operation, state, gone)


def show(soak: Soak, seconds: float) -> None:
    score = soak.score
    requests = soak.scene.ledger.requests() if has_ledger(soak.scene.run) else ()
    table = Table("what", "count", box=None)
    rows = [("kills that hit", score.num_kills)]
    rows += [(f"  {name}", count) for name, count in sorted(score.means.items())]
    rows += [(f"  last state: {name}", count) for name, count in sorted(score.phases.items())]
    rows += [("operations", score.operations.total())]
    rows += [(f"  {name}", count) for name, count in sorted(score.operations.items())]
    rows += [("requests", len(requests)), ("requests attested", sum(r.state == "attested" for r in requests))]
    rows += [(name, score.others[name]) for name in ("commands", "comparisons equal", "comparisons unequal")]
    for name, count in [*rows, ("seconds", round(seconds))]:
        table.add_row(name, f"{count:,}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, start = np.random.Generator(np.random.PCG64(arguments.seed)), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fairsisa-soak-") as name, zygote(FAIRSISA_KEYS="keys") as actors:
        folder = Path(name)
        (folder / "data").mkdir()  # beside the run: what a corpus holds, nobody else forgets
        people(rng, 0, NUM_EXAMPLES).to_csv(folder / "data" / "people.csv", index=False)
        soak = Soak(begin(folder, actors, TRAINING), folder, rng, arguments.kills, Score())
        soak_until(soak)
        doctor = soak.scene.act(["doctor", "run=run"])
        show(soak, time.monotonic() - start)
        if soak.score.wrong or doctor.code != 0:
            sys.exit("\n".join([*soak.score.wrong, *([doctor.said] if doctor.code != 0 else [])]))


if __name__ == "__main__":
    main()
