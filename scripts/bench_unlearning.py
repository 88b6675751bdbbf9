"""Measure what unlearning costs against what was promised.

A: example-epochs, planned, trained and in closed form. B: wall-clock time of retraining MiniLM on HateXplain, and where
the rest of the verb's time goes. C: the SISA headline. D: planning. E: the ledger.

Run `python scripts/bench_unlearning.py` with FAIRSISA_DATA set, on an idle machine; `--only A,C` runs some tables,
`--quick` all on tiny sizes, `--full` B on all posts. Prints Markdown; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fairsisa import settings as given
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.data.synthetic_samples import load_synthetic_tabular
from fairsisa.execution import Event
from fairsisa.models.device import numeric_environment, resolve_precision
from fairsisa.runs.assembly import assemble, resolve
from fairsisa.runs.directory import Run
from fairsisa.runs.keeping import planned_epochs, slice_sizes
from fairsisa.runs.making import Workplace, train_missing
from fairsisa.runs.planning import plan_deletion
from fairsisa.runs.requests import begin_ledger
from fairsisa.runs.training import deal, machine, train_run
from fairsisa.runs.unlearning import unlearn
from fairsisa.sisa import formulas
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.cost import plan_requests
from fairsisa.sisa.ledger import ForgetSet, Ledger
from fairsisa.sisa.partition import Partition
from fairsisa.sisa.simulation import deal_examples, simulate_requests
from fairsisa.sisa.training import new_network
from fairsisa.tables import TRAIN, Examples

BATCH = 8
ALONE = given.ExecutionSettings(num_workers=1)
TABULAR = given.TrainerSettings(max_epochs=2.0, batch_size=64, learning_rate=5e-3, schedule="chain", accelerator="cpu")
WRITE = """
import sys
from pathlib import Path
from fairsisa.sisa.ledger import Ledger
ledger = Ledger.begin(Path(sys.argv[1]), Path(sys.argv[2]))
for number in range(int(sys.argv[3])):
    ledger.receive([f"written-{number}"])
"""
STEPS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("received", "planned"): "plan",
        ("planned", "retraining"): "note that it begins",
        ("retraining", "retraining"): "tokenise, train, score held-out posts",
        ("retraining", "published"): "switch tables and pointer",
        ("published", "purged"): "purge",
        ("purged", "attested"): "verify, sign the certificate",
    }
)
Lines = Iterator[str]
Rows = list[Sequence[object]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `posts` None means all of HateXplain."""

    grid: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 5, 20), (1, 4, 16))
    tabular: int = 30_000
    requests: int = 200
    trained: int = 20
    posts: int | None = 3_000
    trains: str = "full"
    max_epochs: float = 1.0
    repeats: tuple[int, int] = (2, 3)
    headline: tuple[int, int, int] = (20, 50, 4)
    simulated: int = 250_000
    plan: tuple[int, int] = (10_000_000, 10_000)
    ledger: int = 10_000


TINY = Sizes(grid=((1, 20), (1, 4)), tabular=1_000, requests=40, trained=2, posts=200, repeats=(1, 1))
QUICK = replace(TINY, headline=(20, 4, 1), simulated=10_000, plan=(100_000, 100), ledger=200)


@dataclass(frozen=True)
class Bench:
    """What every table reads: sizes, an empty folder to work in, the folder of data sets."""

    sizes: Sizes
    folder: Path
    data: Path | None


@dataclass(frozen=True)
class Training:
    """Examples shown; seconds of it all, of its stages (without base load and checkpoint writes), of the processor."""

    presentations: float
    wall: float
    stages: float
    cores: float


def ignore(event: Event) -> None:
    """Take no notice of progress."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def verdict(met: bool) -> str:
    return "met" if met else "not met"


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Return what the function returns, and the seconds it took."""
    started = time.perf_counter()
    found = function(*arguments, **options)
    return found, time.perf_counter() - started


def table(headers: str, rows: Sequence[Sequence[object]]) -> Lines:
    """Yield a Markdown table whose columns stand under each other; `headers` are parted by bars."""
    cells = [[name.strip() for name in headers.split("|")], *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in (cells[0], ["-" * width for width in widths], *cells[1:]):
        yield "| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |"
    yield ""


def begin_run(
    examples: Examples, folder: Path, split: tuple[int, int], model: given.ModelSettings, trainer: given.TrainerSettings
) -> Run:
    """Return a run begun on the given examples, dealt to `split` shards and slices; nothing is trained."""
    partition, evaluation = given.PartitionSettings(*split), given.EvaluationSettings(baselines=())
    data = {"name": examples.name, "options": {}}
    settings = resolve(given.RunSettings(0, data, model, partition, trainer, evaluation))
    run, dealt, store = Run(folder / "run"), deal(settings, examples), str(folder / "store")
    run.begin(settings, examples, dealt, source=None, store=store, environment=machine(settings))
    return run


def retrain(run: Run, forget: Collection[str] = ()) -> Training:
    """Train what the run without the given examples lacks; its tables stay, so requests are independent."""
    examples = run.examples
    retained = examples.keep(~examples.frame["example_id"].isin(forget).to_numpy())
    assembly = assemble(run.settings, retained, run.partition.without(forget), run.store.location)
    cores = time.process_time()
    results, wall = timed(train_missing, assembly, Workplace(run, run.settings, ALONE, ignore))
    new = [row for row in results if row.status == "trained"]
    shown, stages = sum(row.num_presentations for row in new), sum(row.seconds for row in new)
    return Training(shown, wall, stages, time.process_time() - cores)


def train_all(run: Run) -> Training:
    """Train all of the run, and publish it as the verb `train` does."""
    found = retrain(run)
    paths = given.PathSettings(store=run.store.location)
    train_run(run.settings, run, paths=paths, execution=ALONE, on_event=ignore)
    return found


def planned(run: Run, ids: Collection[str]) -> int:
    return plan_deletion(run, ids).presentations


def planned_alone(run: Run, requests: Sequence[Collection[str]]) -> np.ndarray:
    """Return what each request would cost if it alone were executed."""
    kept = np.ones(slice_sizes(run).shape, dtype=bool)
    plan = plan_requests(run.table("partition"), requests, epochs=planned_epochs(run), kept=kept)
    return plan.request_presentations


def relative_error(values: np.ndarray) -> float:
    """Return the standard error of a mean as a share of it."""
    return float(values.std(ddof=1) / values.mean() / math.sqrt(len(values)))


def draw_evenly(partition: Partition, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct ids, each equally likely, with every slice drawn in proportion to its size.

    Systematic sampling along (slice, shard): its mean is right, and varies far less than that of free draws.
    """
    total = len(partition.example_ids)
    order = np.lexsort((rng.permutation(total), partition.shard, partition.slice))
    places = ((np.arange(count) + rng.random()) * total / count).astype(int)
    return np.asarray(np.array(partition.example_ids)[order[places]])


def example_epochs(bench: Bench) -> Lines:
    sizes = bench.sizes
    yield (
        f"Goal: trained equals planned exactly; means over {sizes.requests} requests within 2 % of the closed forms."
        " A request names one example, and is planned alone, on the whole partition (`plan_requests`);"
        f" {sizes.trained} a row are planned by the verb too (`plan_deletion`) and trained: 'equal' counts those where"
        " all three agree. Their mean is compared with `formulas.slicing_request`. Examples are drawn evenly over"
        " slices (systematic sampling); 's.e.' is what free draws would have. Then as many batches of"
        f" {BATCH}, with `formulas.combined_batch`.\n"
    )
    rows: Rows = []
    for shards in sizes.grid[0]:
        for slices in sizes.grid[1]:
            say(f"A: S={shards}, R={slices}")
            with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
                examples = load_synthetic_tabular(num_examples=sizes.tabular, repeat_share=0.0)
                model = given.ModelSettings(kind="logistic")
                rows.append(_cell(begin_run(examples, Path(folder), (shards, slices), model, TABULAR), sizes))
    yield from table("S|R|N|equal|mean|closed form|off|s.e.|batches|closed form|off|s.e.|goal", rows)


def _cell(run: Run, sizes: Sizes) -> Sequence[object]:
    train_all(run)
    rng, partition = np.random.default_rng(0), run.partition
    ids = draw_evenly(partition, sizes.requests, rng)
    together = rng.permutation(draw_evenly(partition, BATCH * sizes.requests, rng)).reshape(-1, BATCH)
    alone, batches = planned_alone(run, ids[:, None].tolist()), planned_alone(run, together.tolist())
    total, shards, slices = len(partition.example_ids), partition.num_shards, partition.num_slices
    closed = formulas.slicing_request(shard_size=total / shards, num_slices=slices, max_epochs=TABULAR.max_epochs)
    counts = {"num_examples": total, "num_shards": shards, "num_slices": slices, "num_requests": BATCH}
    closed_batch = formulas.combined_batch(**counts, max_epochs=TABULAR.max_epochs)
    tried = rng.choice(sizes.requests, size=sizes.trained, replace=False)
    equal = sum(planned(run, {ids[i]}) == retrain(run, {ids[i]}).presentations == alone[i] for i in tried)
    row, met = [shards, slices, total, f"{equal} of {sizes.trained}"], equal == sizes.trained
    for costs, wanted in ((alone, closed), (batches, closed_batch)):
        off = costs.mean() / wanted - 1
        met = met and abs(off) <= 0.02
        row += [f"{costs.mean():,.1f}", f"{wanted:,.1f}", f"{off:+.2%}", f"{relative_error(costs):.1%}"]
    return [*row, verdict(met)]


def wall_clock(bench: Bench) -> Lines:
    sizes, rng = bench.sizes, np.random.default_rng(0)
    trainer = given.TrainerSettings(max_epochs=sizes.max_epochs, accelerator="cpu")
    model, examples = minilm(bench), posts(bench)
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        say("B: warming up")
        few = begin_run(first_of(examples, 64), Path(name, "few"), (1, 1), model, trainer)
        warming = timed(retrain, few)[1]
        run = begin_run(examples, Path(name, "all"), (5, 4), model, trainer)
        say(f"B: training on all of {len(run.partition.example_ids)} posts, then scoring held-out ones")
        full = train_all(run)
        yield from _speed_ups(run, full, sizes, rng)
        yield from _start_up(run, full, warming)
        yield from _whole_verb(run, Path(name, "keys"), rng)


def minilm(bench: Bench) -> given.ModelSettings:
    return given.ModelSettings(trains=bench.sizes.trains, dropout=0.0)


def posts(bench: Bench) -> Examples:
    if bench.data is None:
        raise SystemExit("Table B reads HateXplain: set FAIRSISA_DATA or give --data.")
    examples = load_hatexplain(root=bench.data, cache=bench.folder)
    return examples if bench.sizes.posts is None else first_of(examples, bench.sizes.posts)


def first_of(examples: Examples, count: int) -> Examples:
    """Return so many training examples, drawn by chance, and the same share of the other splits."""
    frame = examples.frame
    share = count / (frame["split"] == TRAIN).sum()
    ranks = frame.sample(frac=1, random_state=0).groupby("split").cumcount().reindex(frame.index)
    return examples.keep((ranks < share * frame.groupby("split")["split"].transform("size")).to_numpy())


def _speed_ups(run: Run, full: Training, sizes: Sizes, rng: np.random.Generator) -> Lines:
    partition, settings, (repeats, batches) = run.partition, run.settings, sizes.repeats
    cells = [(int(rng.integers(5)), place) for _ in range(repeats) for place in range(4)]
    asked = [(f"1 request, slice {cell[1]}", [str(rng.choice(partition.slice_ids(*cell)))]) for cell in cells]
    asked += [(f"{BATCH} requests", rng.choice(partition.example_ids, BATCH, False).tolist()) for _ in range(batches)]
    rows: Rows = []
    found: dict[int, list[Training]] = {1: [], BATCH: []}
    for name, forget in asked:
        say(f"B: {name}")
        plan, done = planned(run, forget), retrain(run, forget)
        found[len(forget)].append(done)
        rows.append((name, plan, *_ratios(done, full), "equal" if plan == done.presentations else "NOT equal"))
    for count, group in found.items():
        mean = Training(*np.mean([list(asdict(one).values()) for one in group], axis=0).tolist())
        met = full.wall / mean.wall >= 0.9 * full.presentations / mean.presentations
        expected = formulas.speed_ups(num_shards=5, num_slices=4, num_requests=count).expected
        rows.append(
            (f"K={count}: mean of {len(group)}", f"closed: {expected:.2f}x", *_ratios(mean, full), verdict(met))
        )
    yield (
        "Goal: for the means, the speed-up in wall-clock seconds is at least 0.9 of the theoretical one. One worker,"
        f" S=5, R=4, {len(partition.example_ids):,} posts, trainer.max_epochs={settings.trainer.max_epochs:g},"
        f" model.trains={settings.model.trains}. All from scratch: {full.presentations:,} example-epochs in"
        f" {full.wall:.1f} s, {full.stages:.1f} of them in stages, {full.cores:.1f} core-s. Theory is the ratio of"
        " example-epochs; each measured ratio has its share of theory behind it. Wall-clock time holds base loads and"
        " checkpoint writes, stages do not; start-up and the rest of the verb follow below.\n"
    )
    headers = "request|planned|trained|theory|wall, s|ratio|of theory|stages, s|ratio|of theory|core-s|ratio|of theory|"
    yield from table(headers, rows)


def _ratios(done: Training, full: Training) -> Iterator[str]:
    """Yield what was trained, the theoretical speed-up, and per clock: seconds, speed-up, its share of theory."""
    theory = full.presentations / done.presentations
    yield from (f"{done.presentations:g}", f"{theory:.2f}x")
    for seconds, whole in ((done.wall, full.wall), (done.stages, full.stages), (done.cores, full.cores)):
        yield from (f"{seconds:.2f}", f"{whole / seconds:.2f}x", f"{whole / seconds / theory:.3f}")


def _start_up(run: Run, full: Training, warming: float) -> Lines:
    imports = timed(subprocess.run, [sys.executable, "-c", "import fairsisa.runs.unlearning"], check=True)[1]
    assembly, tokenising = timed(assemble, run.settings, run.examples, run.partition, run.store.location)
    loading = timed(new_network, assembly.constituents[0], 0)[1]
    rows = [
        ("process and imports", f"{imports:.2f}"),
        ("tokenising all posts", f"{tokenising:.2f}"),
        ("loading the base, once for each constituent that is retrained", f"{loading:.2f}"),
        ("a first training, of 64 posts, which warms caches", f"{warming:.2f}"),
        ("all from scratch: 5 base loads, 20 checkpoint writes", f"{full.wall - full.stages:.2f}"),
    ]
    yield from table("start-up|seconds", rows)


def _whole_verb(run: Run, keys: Path, rng: np.random.Generator) -> Lines:
    """Unlearn one example for good, and read from the ledger when each step was done."""
    say("B: the verb unlearn")
    request = given.RequestSettings(ids=(str(rng.choice(run.partition.slice_ids(0, 2))),))
    settings = given.UnlearningSettings(verify="disk", membership=False, evaluate=False)
    done, total = timed(unlearn, run, request, keys=keys, settings=settings, execution=ALONE, on_event=ignore)
    rows = []
    for before, after in pairwise(begin_ledger(run, keys).history(done.request_ids[0])):
        seconds = (datetime.fromisoformat(after.time) - datetime.fromisoformat(before.time)).total_seconds()
        rows.append((STEPS[before.state, after.state], f"{seconds:.2f}"))
        made = after.detail.get("constituents", {}) if after.state == "retraining" else {}
        rows += [(f"... of which stages of {name}", f"{part['core_seconds']:.2f}") for name, part in made.items()]
    rows.append(("the whole verb, without imports", f"{total:.2f}"))
    yield from table("`fairsisa unlearn`: one request, slice 2, verify=disk|seconds", rows)


def headline(bench: Bench) -> Lines:
    most, slices, _ = bench.sizes.headline
    num_examples, trials = bench.sizes.simulated, 20 * bench.sizes.requests
    yield (
        f"Goal: at least 4x for {BATCH} requests at S=20, here with R={slices}. Bourtoule et al. (2021) report 4.63x on"
        " Purchase, 250,000 examples, of which 8 are 0.003 %. Speed-ups are ratios of example-epochs, but in the column"
        " that says seconds.\n"
    )
    rows: Rows = []
    for shards in sorted({1, 5, 10, most}):
        say(f"C: simulating S={shards}")
        closed = formulas.speed_ups(num_shards=shards, num_slices=slices, num_requests=BATCH).expected
        world, epochs = deal_examples(num_examples, num_shards=shards, num_slices=slices), slice_epochs(TABULAR, slices)
        found = simulate_requests(world, epochs, num_requests=BATCH, window=BATCH, num_trials=trials).summary()
        mean, error = map(float, found.set_index("quantity").loc["speed_up", ["mean", "standard_error"]].to_numpy())
        goal = verdict(mean >= 4) if shards == most else ""
        rows.append((f"S={shards}: simulated, N={num_examples:,}", f"{closed:.2f}", f"{mean:.2f} ± {error:.2f}", goal))
    yield from table("setting|closed form|speed-up ± s.e.|goal", rows)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        yield from _headline_trained(bench.sizes, Path(folder))


def _headline_trained(sizes: Sizes, folder: Path) -> Lines:
    shards, slices, trained = sizes.headline
    examples = load_synthetic_tabular(num_examples=sizes.tabular, repeat_share=0.0)
    run = begin_run(examples, folder, (shards, slices), given.ModelSettings(kind="mlp", hidden=(16,)), TABULAR)
    ids, rng = run.partition.example_ids, np.random.default_rng(0)
    say(f"C: training {shards} x {slices} slices of {len(ids)} examples")
    full = train_all(run)
    many = [rng.choice(ids, size=BATCH, replace=False).tolist() for _ in range(sizes.requests)]
    costs = planned_alone(run, many)
    ratio = full.presentations / costs.mean()
    error = f"{ratio:.2f} ± {ratio * relative_error(costs):.2f}"
    rows: Rows = [(f"planned: mean of {len(many)} batches, N={len(ids):,}", error, "", "", verdict(ratio >= 4))]
    for number, forget in enumerate(many[:trained]):
        say(f"C: batch {number}")
        plan, done = planned(run, forget), retrain(run, forget)
        equal = "equal" if plan == done.presentations == costs[number] else "NOT equal"
        seconds = (f"{full.wall / done.wall:.2f}", f"{full.wall:.1f} / {done.wall:.1f}")
        rows.append((f"trained: batch {number}", f"{full.presentations / plan:.2f}", *seconds, equal))
    yield from table(f"S={shards}, R={slices}|speed-up ± s.e.|of seconds|seconds, all / batch|goal", rows)


def planning(bench: Bench) -> Lines:
    examples, requests = map(str, bench.sizes.plan)
    say(f"D: planning {requests} requests on {examples} examples")
    script = str(Path(__file__).with_name("bench_planning.py"))
    command = [sys.executable, script, "--examples", examples, "--requests", requests]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    *counts, seconds, mib, _ = (cell.strip() for cell in found.strip("| ").split("|"))
    memory = float(mib) * 2**20 / 1e9
    rows = [
        ("seconds", seconds, "under 5", verdict(float(seconds) < 5)),
        ("peak memory, GB", f"{memory:.2f}", "under 2", verdict(memory < 2)),
    ]
    yield from table("{1} requests on {0} examples|measured|goal|".format(*counts), rows)


def ledger(bench: Bench) -> Lines:
    count, rows = bench.sizes.ledger, list[Sequence[object]]()
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        keys = Path(name, "keys")
        one, many, shared = (Ledger.begin(Path(name, f"{kind}.sqlite"), keys) for kind in ("one", "many", "shared"))
        ways: dict[str, Callable[[], object]] = {
            "receive, a call each": lambda: [one.receive([f"example-{i}"]) for i in range(count)],
            "receive_many, one call": lambda: many.receive_many(ForgetSet([f"example-{i}"]) for i in range(count)),
        }
        for way, receive in ways.items():
            say(f"E: {count:,} requests, {way}")
            seconds, most = timed(receive)[1], 60 * count / 10_000
            rows.append(
                (f"{count:,} requests, durable: {way}", f"{seconds:.1f} s", f"{most:g} s", verdict(seconds < most))
            )
        rows += _readers(shared, keys, count)
    yield from table("ledger|measured|goal|", rows)


def _readers(shared: Ledger, keys: Path, count: int) -> Rows:
    """Read a ledger while another process writes; a read that fails ends the benchmark."""
    say("E: reading while another process writes")
    first = shared.receive(["first"]).request_id
    seen, alone, whole = [1], [0.0], [0.0]
    with subprocess.Popen([sys.executable, "-c", WRITE, str(shared.path), str(keys), str(count)]) as writer:
        while writer.poll() is None:
            alone.append(timed(shared.history, first)[1])
            events, seconds = timed(shared.history)
            whole.append(seconds)
            seen.append(len(events))
    if writer.returncode:
        raise SystemExit(f"Expected the writing process to end well, got exit status {writer.returncode}.")
    grown = sum(before < after for before, after in pairwise(seen))
    met = seen == sorted(seen) and len(shared.history()) == count + 1
    rows: Rows = [
        ("read while another process writes", f"{len(seen)} times, {grown} saw more", "all come", verdict(met))
    ]
    for name, times in (("one request's history", alone), ("the whole history", whole)):
        low, high, most = np.quantile(times, [0.5, 0.99, 1.0]) * 1e3
        rows.append((f"... {name}: median / 99 % / most", f"{low:.1f} / {high:.1f} / {most:.1f} ms", "", ""))
    return rows


TABLES: Mapping[str, Callable[[Bench], Lines]] = MappingProxyType(
    {"A": example_epochs, "B": wall_clock, "C": headline, "D": planning, "E": ledger}
)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help="tables, as in A,C")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs; no goal counts")
    parser.add_argument("--full", action="store_true", help="B: all of HateXplain, three epochs")
    parser.add_argument("--posts", type=int, help="B: this many training posts")
    parser.add_argument("--trains", choices=("full", "lora"), default="full", help="B: which part of MiniLM trains")
    parser.add_argument("--data", type=Path, default=os.environ.get("FAIRSISA_DATA"), help="the data folder")
    parser.add_argument(
        "--scratch", type=Path, default=tempfile.gettempdir(), help="where to write; E wants a real disk"
    )
    asked = parser.parse_args(words)
    names = asked.only.split(",")
    if set(names) - set(TABLES):
        parser.error(f"--only names tables among {','.join(TABLES)}")
    sizes = QUICK if asked.quick else Sizes()
    sizes = replace(sizes, posts=asked.posts or sizes.posts, trains=asked.trains)
    if asked.full:
        sizes = replace(sizes, posts=None, max_epochs=3.0)
    torch.set_num_threads(1)
    print(f"{platform.platform()}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores")
    print(f"{numeric_environment('cpu', resolve_precision('auto', 'cpu'), 1)}\n")
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        for name in names:
            print_table(name, Bench(sizes, Path(folder), asked.data and Path(asked.data)))


def print_table(name: str, bench: Bench) -> None:
    before, started = os.getloadavg()[0], time.perf_counter()
    print(f"## {name}. {TABLES[name].__name__.replace('_', ' ')}\n")
    for line in TABLES[name](bench):
        print(line, flush=True)
    load = f"{before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"{time.perf_counter() - started:.0f} s; load average {load}.\n", flush=True)


if __name__ == "__main__":
    main()
