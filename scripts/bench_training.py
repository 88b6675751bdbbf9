"""Measure training and inference speed against named peers, in one run, as ratios.

Peers: the pipeline people write today (fp32, every text padded to 128 tokens, dropout, all weights trained, unfused
AdamW); the same in fp32 with length buckets; a bare PyTorch loop over the package's own batches and number format.
All with one thread, in examples per second of processor time. Run `python scripts/bench_training.py` with
FAIRSISA_DATA set; `--only NAME` runs one table. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from fairsisa.data.batches import inference_batches, training_batches
from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.execution import Event
from fairsisa.models.base import Base, find_base, load_tokenizer
from fairsisa.models.batching import SliceData, collate, run_batched
from fairsisa.models.classifier import Classifier, Schedule, initial_state
from fairsisa.models.device import dtype_of, numeric_environment, resolve_precision
from fairsisa.models.network import build_encoder, build_network, logits_of, pooled_features
from fairsisa.settings import ModelSettings, TrainerSettings
from fairsisa.sisa.chain import Chain
from fairsisa.sisa.training import FeaturesTask, ShardTask, make_features, train_shard

SHARD_SIZE = 3077  # a fifth of HateXplain's training split
BATCH = 32
LAYERS = 6
LINEAR_WEIGHTS = 10_616_832  # in MiniLM's layers; 2 flops each and token forward, 4 backward
MINILM = ModelSettings(dropout=0.0)
GEMMS = ((1024, 1536, 384), (1024, 384, 1536), (1024, 384, 384), (2048, 2048, 2048))
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
Step = Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every table reads: one shard of real posts as token ids, held-out posts, the base."""

    shard: Inputs
    held_out: Inputs
    base: Base
    pad_id: int
    precision: str
    steps: int

    @property
    def trainer(self) -> TrainerSettings:
        """Fine-tuning settings; one epoch, so that no cycle is measured twice."""
        return TrainerSettings(precision=self.precision, accelerator="cpu", max_epochs=1.0)


def prepare(data: Path, steps: int) -> Bench:
    examples = load_hatexplain(root=data, cache=Path(tempfile.gettempdir()))
    base = find_base(ModelSettings())
    tokenizer = load_tokenizer(base)
    inputs = encode_examples(examples, tokenizer, 128)
    split = examples.frame["split"].to_numpy()
    shuffled = np.random.default_rng(0).permutation(len(inputs))
    train = [row for row in shuffled if split[row] == "train"][:SHARD_SIZE]
    test = [row for row in shuffled if split[row] == "test"]
    precision = resolve_precision("auto", "cpu")
    return Bench(inputs.take(train), inputs.take(test), base, tokenizer.pad_token_id, precision, steps)


def ignore(event: Event) -> None:
    """Take no notice of progress."""


def processor_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def gemm_peak(dtype: torch.dtype) -> float:
    """Return the best GFLOP/s of one thread over the shapes of MiniLM's layers and a square one."""
    return max(gemm_speed(dtype, *shape) for shape in GEMMS for _ in range(3))


def gemm_speed(dtype: torch.dtype, rows: int, out: int, inner: int) -> float:
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(out, inner).to(dtype)
    nn.functional.linear(left, right)
    seconds = processor_seconds(lambda: [nn.functional.linear(left, right) for _ in range(20)])
    return 40 * rows * out * inner / seconds / 1e9


def naive_step(bench: Bench, pad_to: int | None, *, dropout: float, frozen_embeddings: bool, fused: bool) -> Step:
    model = AutoModelForSequenceClassification.from_pretrained(
        bench.base.folder, num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    ).train()
    model.bert.embeddings.requires_grad_(not frozen_embeddings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=fused)

    def step(rows: np.ndarray) -> None:
        ids = padded(bench.shard, rows, pad_to)
        labels = torch.from_numpy(bench.shard.labels[rows])
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def padded(inputs: Inputs, rows: np.ndarray, pad_to: int | None) -> torch.Tensor:
    texts = [inputs.row_tokens(row) for row in rows]
    tokens = torch.zeros(len(texts), pad_to or max(map(len, texts)), dtype=torch.long)
    for line, text in zip(tokens, texts, strict=True):
        line[: len(text)] = torch.from_numpy(text.astype(np.int64))
    return tokens


def bare_step(bench: Bench, num_steps: int) -> Step:
    """Return the package's recipe written out as a plain loop, without Lightning and without the package's module."""
    trainer = bench.trainer
    network = build_network(MINILM, bench.base, num_features=0, num_classes=2, seed=0)
    trained = [p for p in network.parameters() if p.requires_grad]
    masters = [p.detach().float().clone() for p in trained]
    network.to(dtype_of(bench.precision)).train()
    for master in masters:
        master.grad = torch.zeros_like(master)
    groups = [
        {"params": [m for m in masters if m.ndim > 1], "weight_decay": trainer.weight_decay},
        {"params": [m for m in masters if m.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=trainer.learning_rate, fused=True)
    schedule, count = Schedule(num_steps, 1.0, 0.0, trainer.warmup), iter(range(10**9))

    def step(rows: np.ndarray) -> None:
        batch = collate(bench.shard, rows, bench.pad_id)
        nn.functional.cross_entropy(logits_of(network, batch), batch["labels"]).backward()
        torch._foreach_copy_([m.grad for m in masters], [p.grad for p in trained])
        nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = trainer.learning_rate * schedule.factor(next(count))
        optimizer.step()
        torch._foreach_copy_([p.data for p in trained], masters)
        for parameter in trained:
            parameter.grad = None

    return step


def rate_of_step(step: Step, batches: Sequence[np.ndarray]) -> float:
    """Return examples per core-second over all batches but the first two."""
    for rows in batches[:2]:
        step(rows)
    seconds = processor_seconds(lambda: [step(rows) for rows in batches[2:]])
    return sum(map(len, batches[2:])) / seconds


def rate_of_package(bench: Bench, settings: ModelSettings, batches: Sequence[np.ndarray]) -> float:
    """Return examples per core-second of a Lightning fit over all batches but the first two."""
    network = build_network(settings, bench.base, num_features=0, num_classes=2, seed=0)
    state = initial_state(network)
    network.to(dtype_of(bench.precision)).train()
    model = Classifier(network, state, bench.trainer, Schedule(len(batches), 1.0, 0.0, 0.1))
    clock = Clock()
    quiet_trainer([clock]).fit(model, datamodule=SliceData(bench.shard, batches, pad_id=bench.pad_id, bundle=1))
    return sum(map(len, batches[2:])) / (clock.marks[-1] - clock.marks[1])


class Clock(pl.Callback):
    """Note the processor time after every batch."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.marks.append(time.process_time())


def quiet_trainer(callbacks: list[pl.Callback]) -> pl.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=callbacks, deterministic=True, **off)


def fine_tuning(bench: Bench) -> Iterator[str]:
    peak = {name: gemm_peak(dtype_of(name)) for name in ("fp32", "bf16")}
    yield f"GEMM peak of one thread: fp32 {peak['fp32']:.0f}, bf16 {peak['bf16']:.0f} GFLOP/s.\n"
    yield "| fine-tuning MiniLM, batch 32, 1 thread | ex/core-s | to today's | to buckets | GFLOP/s | of peak |"
    yield "|---|---|---|---|---|---|"
    tokens = float(bench.shard.lengths.mean())
    batches = training_batches(bench.shard.lengths, SHARD_SIZE, batch_size=BATCH, seed=0)[: bench.steps + 2]
    random = [np.arange(start, start + BATCH) for start in range(0, BATCH * (bench.steps // 5 + 2), BATCH)]
    naive = naive_step(bench, 128, dropout=0.1, frozen_embeddings=False, fused=False)
    buckets = naive_step(bench, None, dropout=0.0, frozen_embeddings=True, fused=True)
    frozen = dataclasses.replace(MINILM, frozen_layers=3)
    name = bench.precision
    measured = [
        ("today's pipeline: fp32, padded to 128, dropout, unfused AdamW", "fp32", 0, rate_of_step(naive, random)),
        ("fp32, length buckets, fused AdamW", "fp32", 0, rate_of_step(buckets, batches)),
        (
            f"bare PyTorch loop, fairsisa's recipe ({name})",
            name,
            0,
            rate_of_step(bare_step(bench, len(batches)), batches),
        ),
        (f"fairsisa ({name})", name, 0, rate_of_package(bench, MINILM, batches)),
        (f"fairsisa, model.frozen_layers=3 ({name})", name, 3, rate_of_package(bench, frozen, batches)),
    ]
    today, bucketed, bare, package = (row[3] for row in measured[:4])
    for what, precision, below, rate in measured:
        useful = rate * tokens * LINEAR_WEIGHTS * (2 + 4 * (LAYERS - below) / LAYERS) / 1e9
        ratios = f"{rate / today:.1f}x | {rate / bucketed:.2f}x"
        yield f"| {what} | {rate:.1f} | {ratios} | {useful:.0f} | {useful / peak[precision]:.0%} |"
    yield f"\nfairsisa takes {bare / package:.3f} of the bare loop's time."


def profile(bench: Bench) -> Iterator[str]:
    batches = training_batches(bench.shard.lengths, SHARD_SIZE, batch_size=BATCH, seed=0)[:12]
    step = bare_step(bench, len(batches))
    step(batches[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for rows in batches[1:]:
            step(rows)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    yield "| where a fine-tuning step goes (self time) | share |\n|---|---|"
    for event in events[:10]:
        yield f"| {event.key} | {event.self_cpu_time_total / total:.1%} |"


def lightning_overhead(bench: Bench) -> Iterator[str]:
    yield "| a step of a 16-feature logistic regression, batch 32 | microseconds |\n|---|---|"
    steps, rng = 2000, np.random.default_rng(0)
    ids, features = tuple(map(str, range(4096))), rng.normal(size=(4096, 16)).astype(np.float32)
    inputs = Inputs(ids, ("0" * 64,) * 4096, rng.integers(0, 2, 4096), features=features)
    batches = [rng.integers(0, 4096, 32) for _ in range(steps)]
    trainer = TrainerSettings(accelerator="cpu", precision="fp32")
    for name, bundle in (("the module's steps, no Trainer", 0), ("Trainer, 1 step a batch", 1), ("Trainer, 64", 64)):
        network = nn.Sequential(nn.Linear(16, 2))
        model = Classifier(network, initial_state(network), trainer, Schedule(steps, 1.0, 0.0, 0.1))
        if bundle:
            data = SliceData(inputs, batches, pad_id=0, bundle=bundle)
            seconds = processor_seconds(partial(quiet_trainer([]).fit, model, datamodule=data))
        else:
            model.configure_optimizers()
            seconds = processor_seconds(lambda m=model: [m._step(collate(inputs, rows, 0)) for rows in batches])
        yield f"| {name} | {seconds / steps * 1e6:.0f} |"


def head_mode(bench: Bench) -> Iterator[str]:
    settings = ModelSettings(trains="head")
    trainer = dataclasses.replace(
        bench.trainer, max_epochs=20.0, batch_size=256, learning_rate=1e-2, gradient_clip=None
    )
    encoder = build_encoder(settings, bench.base).to(dtype_of(bench.precision))
    batches = inference_batches(bench.shard.lengths, max_tokens=2048)
    with torch.inference_mode():
        raw = processor_seconds(lambda: [pooled_features(encoder, collate(bench.shard, r, 0)) for r in batches])
    with tempfile.TemporaryDirectory() as folder:
        blocks = tuple((tuple(part.tolist()),) for part in np.array_split(np.array(bench.shard.example_ids), 4))
        contents = dict(zip(bench.shard.example_ids, bench.shard.contents, strict=True))
        chain = Chain("shard-0", blocks, contents, settings, trainer, bench.base, 2, 0, Path(folder))
        ends = np.cumsum([0, *(len(block) for (block,) in blocks)])
        parts = [bench.shard.take(range(start, end)) for start, end in pairwise(ends)]
        made = processor_seconds(lambda: [make_features(FeaturesTask(chain, part), ignore) for part in parts])
        times, steps = [], 0
        for seed in range(6):
            task = ShardTask(dataclasses.replace(chain, seed=seed), bench.shard, bench.pad_id)
            started = time.perf_counter()
            steps = sum(result.steps for result in train_shard(task, ignore))
            times.append(time.perf_counter() - started)
    yield "| head on cached features | |\n|---|---|"
    yield f"| the encoder's bare inference, texts per core-second | {SHARD_SIZE / raw:.0f} |"
    yield f"| features made and stored slice by slice, loading included | {SHARD_SIZE / made:.0f} |"
    median = statistics.median(times[1:])
    yield f"| a shard of {SHARD_SIZE} retrained: 4 slices, {steps} steps, median of 5 | {median:.3f} s |"


def ensemble_inference(bench: Bench) -> Iterator[str]:
    few, many = bench.held_out.take(range(128)), bench.held_out
    networks = [build_network(MINILM, bench.base, num_features=0, num_classes=2, seed=k).eval() for k in range(5)]

    def slow() -> None:
        with torch.inference_mode():
            for network in networks:
                for start in range(0, len(few), 32):
                    ids = padded(few, np.arange(start, start + 32), 128)
                    network(input_ids=ids, attention_mask=(ids != 0).long())

    def exact(sample: Inputs) -> None:
        for network in networks:
            run_batched(partial(logits_of, network), sample, width=2, device="cpu")

    rates = {"fp32, padded to 128, one model after the other": len(few) / processor_seconds(slow)}
    rates["fp32, exact lengths"] = 640 / processor_seconds(exact, many.take(range(640)))
    for network in networks:
        network.to(dtype_of(bench.precision))
    rates[f"fairsisa: {bench.precision}, exact lengths"] = len(many) / processor_seconds(exact, many)
    first = next(iter(rates.values()))
    yield "| inference of an ensemble of 5 | ex/core-s | against padded |\n|---|---|---|"
    for name, rate in rates.items():
        yield f"| {name} | {rate:.1f} | {rate / first:.1f}x |"


def memory(bench: Bench) -> Iterator[str]:
    yield "| peak memory of `fairsisa train` on 20,000 made-up rows, one worker | MiB |\n|---|---|"
    fixed = "data=synthetic_tabular data.options.num_examples=20000 model=logistic trainer=tabular trainer.max_epochs=2"
    fixed += " evaluation.baselines=[] evaluation.num_replicates=100 execution.num_workers=1"
    for shards, slices in ((1, 1), (5, 4), (20, 4), (20, 16)):
        with tempfile.TemporaryDirectory() as folder:
            words = [str(Path(sys.executable).with_name("fairsisa")), "train", *fixed.split()]
            words += [f"partition.num_shards={shards}", f"partition.num_slices={slices}"]
            words += [f"paths.root={folder}", f"paths.store={folder}/store"]
            found = subprocess.run([sys.executable, "-c", PEAK, *words], check=True, capture_output=True, text=True)
            yield f"| S={shards}, R={slices} | {int(found.stdout) / 1024:.0f} |"


TABLES = (fine_tuning, profile, lightning_overhead, head_mode, ensemble_inference, memory)


def main() -> None:
    names = [table.__name__ for table in TABLES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FAIRSISA_DATA"), help="the data folder")
    parser.add_argument("--only", choices=names, nargs="*", default=names)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps measured for each row")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set FAIRSISA_DATA or give --data")
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec).*")
    torch.set_num_threads(1)
    bench = prepare(Path(options.data), options.steps)
    print(f"{numeric_environment('cpu', bench.precision, 1)}\n")
    for table in TABLES:
        if table.__name__ in options.only:
            for line in table(bench):
                print(line, flush=True)
            print()


if __name__ == "__main__":
    main()
