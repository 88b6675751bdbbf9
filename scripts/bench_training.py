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
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from fairsisa.data.batches import inference_batches, training_batches
from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.execution import Event
from fairsisa.models.base import Base, find_base, load_tokenizer
from fairsisa.models.batching import collate, run_batched
from fairsisa.models.classifier import Classifier, Schedule, initial_state
from fairsisa.models.device import dtype_of, numeric_environment, resolve_precision
from fairsisa.models.network import build_encoder, build_network, logits_of, pooled_features
from fairsisa.settings import ModelSettings, TrainerSettings
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.chain import Chain
from fairsisa.sisa.training import FeaturesTask, ShardTask, make_features, train_shard
from torch import nn
from transformers import AutoModelForSequenceClassification

SHARD_SIZE = 3077  # a fifth of HateXplain's training split
BATCH = 32
ENCODER_PARAMETERS = 10_646_784  # weights in MiniLM's linear layers; 2 flops each forward, 4 backward, per token


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every table reads: one shard of real posts as token ids, the held-out posts, the base."""

    shard: Inputs
    held_out: Inputs
    base: Base
    pad_id: int
    precision: str


def ignore(event: Event) -> None:
    """Take no notice of progress."""


def processor_seconds(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def prepare(data: Path) -> Bench:
    examples = load_hatexplain(root=data, cache=Path(tempfile.gettempdir()))
    base = find_base(ModelSettings())
    tokenizer = load_tokenizer(base)
    inputs = encode_examples(examples, tokenizer, 128)
    split = examples.frame["split"].to_numpy()
    train = np.random.default_rng(0).permutation(np.flatnonzero(split == "train"))[:SHARD_SIZE]
    held_out = np.flatnonzero(split == "test")
    return Bench(
        inputs.take(train), inputs.take(held_out), base, tokenizer.pad_token_id, resolve_precision("auto", "cpu")
    )


def gemm_peak(dtype: torch.dtype) -> float:
    """Return the best GFLOP/s of one thread over the shapes of MiniLM's layers and a square one."""
    best = 0.0
    for rows, out, inner in [(1024, 1536, 384), (1024, 384, 1536), (1024, 384, 384), (2048, 2048, 2048)]:
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(out, inner).to(dtype)
        nn.functional.linear(left, right)
        repeats = 20
        seconds = min(
            processor_seconds(lambda: [nn.functional.linear(left, right) for _ in range(repeats)]) for _ in range(3)
        )
        best = max(best, 2 * rows * out * inner * repeats / seconds / 1e9)
    return best


def batches_of(bench: Bench, count: int) -> list[np.ndarray]:
    """Return a fair sample of the batches of one epoch."""
    every = training_batches(bench.shard.lengths, len(bench.shard), batch_size=BATCH, seed=0)
    return every[:count]


def naive_step(
    bench: Bench, pad_to: int | None, *, dropout: float, freeze: bool, fused: bool
) -> Callable[[np.ndarray], None]:
    model = AutoModelForSequenceClassification.from_pretrained(
        bench.base.folder, num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    ).train()
    if freeze:
        model.bert.embeddings.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=fused)

    def step(rows: np.ndarray) -> None:
        texts = [bench.shard.row_tokens(row) for row in rows]
        width = pad_to or max(len(text) for text in texts)
        tokens = np.full((len(texts), width), bench.pad_id)
        for line, text in zip(tokens, texts, strict=True):
            line[: len(text)] = text
        ids = torch.from_numpy(tokens)
        labels = torch.from_numpy(bench.shard.labels[rows])
        model(input_ids=ids, attention_mask=(ids != bench.pad_id).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_step(
    bench: Bench, settings: ModelSettings, trainer: TrainerSettings, num_steps: int
) -> Callable[[np.ndarray], None]:
    """Return the package's recipe written out as a plain loop, without Lightning and without the package's module."""
    network = build_network(settings, bench.base, num_features=0, num_classes=2, seed=0)
    trained = [p for p in network.parameters() if p.requires_grad]
    masters = [p.detach().float().clone() for p in trained]
    network.to(dtype_of(trainer.precision)).train()
    for master in masters:
        master.grad = torch.zeros_like(master)
    groups = [
        {"params": [m for m in masters if m.ndim > 1], "weight_decay": trainer.weight_decay},
        {"params": [m for m in masters if m.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=trainer.learning_rate, fused=True)
    schedule, done = Schedule(num_steps, 1.0, 0.0, trainer.warmup), iter(range(num_steps + 1))

    def step(rows: np.ndarray) -> None:
        batch = collate(bench.shard, rows, bench.pad_id)
        nn.functional.cross_entropy(logits_of(network, batch), batch["labels"]).backward()
        torch._foreach_copy_([m.grad for m in masters], [p.grad for p in trained])
        nn.utils.clip_grad_norm_(masters, trainer.gradient_clip or 1.0)
        for group in optimizer.param_groups:
            group["lr"] = trainer.learning_rate * schedule.factor(next(done, 0))
        optimizer.step()
        torch._foreach_copy_([p.data for p in trained], masters)
        for parameter in trained:
            parameter.grad = None

    return step


def chain_of(
    bench: Bench, settings: ModelSettings, trainer: TrainerSettings, folder: str, num_slices: int = 1
) -> Chain:
    parts = np.array_split(np.array(bench.shard.example_ids), num_slices)
    blocks = tuple((tuple(part.tolist()),) for part in parts)
    contents = dict(zip(bench.shard.example_ids, bench.shard.contents, strict=True))
    return Chain("shard-0", blocks, contents, settings, trainer, bench.base, 2, 0, Path(folder))


def fine_tuning(bench: Bench, steps: int) -> Iterator[str]:
    peak = {name: gemm_peak(dtype_of(name)) for name in ("fp32", "bf16")}
    yield f"GEMM peak of one thread here: fp32 {peak['fp32']:.0f}, bf16 {peak['bf16']:.0f} GFLOP/s.\n"
    yield "| fine-tuning MiniLM, batch 32, 1 thread | examples per core-second | against today's | against fp32 buckets | useful GFLOP/s | share of GEMM peak |"
    yield "|---|---|---|---|---|---|"
    batches = batches_of(bench, steps + 2)
    trainer = TrainerSettings(precision=bench.precision, accelerator="cpu", max_epochs=1.0)
    minilm = ModelSettings(dropout=0.0)
    shuffled = [random.Random(0).sample(range(len(bench.shard)), BATCH) for _ in range(max(4, steps // 6))]
    plans: list[tuple[str, str, Callable[[np.ndarray], None], list[Any]]] = [
        (
            "today's pipeline: fp32, padded to 128, dropout, unfused AdamW",
            "fp32",
            naive_step(bench, 128, dropout=0.1, freeze=False, fused=False),
            shuffled,
        ),
        ("fp32, length buckets", "fp32", naive_step(bench, None, dropout=0.0, freeze=True, fused=True), batches),
        (
            f"bare PyTorch loop, the package's recipe ({bench.precision})",
            bench.precision,
            bare_step(bench, minilm, trainer, len(batches)),
            batches,
        ),
    ]
    rates: list[float] = []
    for name, precision, step, rows in plans:
        for warm in rows[:2]:
            step(np.asarray(warm))
        measured = rows[2:]
        seconds = processor_seconds(lambda m=measured, s=step: [s(np.asarray(r)) for r in m])  # type: ignore[misc]
        rates.append(sum(len(r) for r in measured) / seconds)
        yield fine_tuning_row(bench, name, rates, precision, peak, frozen=0)
    for frozen in (0, 3):
        settings = ModelSettings(dropout=0.0, frozen_layers=frozen)
        rate = package_rate(bench, settings, trainer, batches)
        yield fine_tuning_row(
            bench,
            f"fairsisa{f', {frozen} of 6 layers frozen' if frozen else ''} ({bench.precision})",
            [*rates[:2], rate],
            bench.precision,
            peak,
            frozen=frozen,
        )
        if not frozen:
            bare = rates[2]
            yield f"| fairsisa against the bare loop: {bare / rate:.3f} of its time | | | | | |"


def package_rate(bench: Bench, settings: ModelSettings, trainer: TrainerSettings, batches: list[np.ndarray]) -> float:
    """Return examples per core-second of a Lightning fit over the given batches, set-up and warm-up left out."""
    from fairsisa.models.batching import SliceData  # noqa: PLC0415 - what is measured

    network = build_network(settings, bench.base, num_features=0, num_classes=2, seed=0)
    state = initial_state(network)
    network.to(dtype_of(trainer.precision)).train()
    model = Classifier(network, state, trainer, Schedule(len(batches), 1.0, 0.0, trainer.warmup))
    marks: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.process_time())

    fit = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[Clock()], deterministic=True,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fit.fit(model, datamodule=SliceData(bench.shard, batches, pad_id=bench.pad_id, bundle=1))
    return sum(len(rows) for rows in batches[2:]) / (marks[-1] - marks[1])


def fine_tuning_row(
    bench: Bench, name: str, rates: list[float], precision: str, peak: dict[str, float], *, frozen: int
) -> str:
    rate = rates[-1]
    tokens = float(bench.shard.lengths.mean())
    work = 2 + 4 * (6 - frozen) / 6
    useful = rate * tokens * ENCODER_PARAMETERS * work / 1e9
    against = [f"{rate / rates[0]:.1f}x" if rates else "", f"{rate / rates[1]:.2f}x" if len(rates) > 1 else ""]
    return f"| {name} | {rate:.1f} | {against[0]} | {against[1]} | {useful:.0f} | {useful / peak[precision]:.0%} |"


def profile(bench: Bench, steps: int) -> Iterator[str]:
    trainer = TrainerSettings(precision=bench.precision, accelerator="cpu", max_epochs=1.0)
    step = bare_step(bench, ModelSettings(dropout=0.0), trainer, steps)
    batches = batches_of(bench, steps)
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
    """Lightning's own cost per step: a network of one small layer, stepped bare and through the Trainer."""
    yield "| a step of a 16-feature logistic regression, batch 32 | microseconds |\n|---|---|"
    steps = 2000
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4096, 16)).astype(np.float32)
    ids = tuple(map(str, range(4096)))
    inputs = Inputs(ids, ("0" * 64,) * 4096, rng.integers(0, 2, 4096), features=features)
    rows = [rng.integers(0, 4096, 32) for _ in range(steps)]
    from fairsisa.models.batching import SliceData  # noqa: PLC0415 - what is measured

    for name, bundle in (
        ("bare loop (the same module, no Trainer)", 0),
        ("Trainer, one step a batch", 1),
        ("Trainer, 64 steps a batch (what fairsisa does)", 64),
    ):
        network = nn.Sequential(nn.Linear(16, 2))
        trainer = TrainerSettings(accelerator="cpu", precision="fp32")
        model = Classifier(network, initial_state(network), trainer, Schedule(steps, 1.0, 0.0, 0.1))
        if bundle:
            fit = pl.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            data = SliceData(inputs, rows, pad_id=0, bundle=bundle)
            seconds = processor_seconds(lambda f=fit, m=model, d=data: f.fit(m, datamodule=d))  # type: ignore[misc]
        else:
            model.configure_optimizers()
            seconds = processor_seconds(lambda m=model: [m._step(collate(inputs, r, 0)) for r in rows])  # type: ignore[misc]
        yield f"| {name} | {seconds / steps * 1e6:.0f} |"


def head_mode(bench: Bench) -> Iterator[str]:
    settings = ModelSettings(trains="head")
    trainer = TrainerSettings(
        accelerator="cpu", precision=bench.precision, max_epochs=20, batch_size=256, learning_rate=1e-2
    )
    part = bench.shard.take(range(1000))
    encoder = build_encoder(settings, bench.base).to(dtype_of(bench.precision))
    with torch.inference_mode():
        raw = processor_seconds(
            lambda: [
                pooled_features(encoder, collate(part, rows, 0))
                for rows in inference_batches(part.lengths, max_tokens=2048)
            ]
        )
    with tempfile.TemporaryDirectory() as folder:
        chain = chain_of(dataclasses.replace(bench, shard=part), settings, trainer, folder)
        made = processor_seconds(lambda: make_features(FeaturesTask(chain, part), ignore))
    with tempfile.TemporaryDirectory() as folder:
        chain = chain_of(bench, settings, trainer, folder, num_slices=4)
        task = ShardTask(chain, bench.shard, bench.pad_id)
        train_shard(task, ignore)
        times = []
        for seed in range(1, 6):
            again = dataclasses.replace(task, chain=dataclasses.replace(chain, seed=seed))
            started = time.perf_counter()
            train_shard(again, ignore)
            times.append(time.perf_counter() - started)
    steps = sum(slice_epochs(trainer, 4)[i] * SHARD_SIZE * (i + 1) / 4 / 256 for i in range(4))
    yield "| head on cached features | |\n|---|---|"
    yield f"| encoder inference alone, texts per core-second | {1000 / raw:.0f} |"
    yield f"| features made and stored by fairsisa, loading included, texts per core-second | {1000 / made:.0f} |"
    yield f"| retrain a shard of {SHARD_SIZE}, 4 slices, {steps:.0f} steps: median of 5 | {statistics.median(times) * 1000:.0f} ms |"


def ensemble_inference(bench: Bench) -> Iterator[str]:
    members = 5
    sample = bench.held_out.take(np.random.default_rng(0).permutation(len(bench.held_out))[:192])
    settings = ModelSettings(dropout=0.0)
    networks = [
        build_network(settings, bench.base, num_features=0, num_classes=2, seed=k).eval() for k in range(members)
    ]
    shuffled = np.arange(len(sample))

    def padded() -> None:
        with torch.inference_mode():
            for network in networks:
                for start in range(0, len(shuffled), 32):
                    texts = [sample.row_tokens(row) for row in shuffled[start : start + 32]]
                    tokens = torch.zeros(len(texts), 128, dtype=torch.long)
                    for line, text in zip(tokens, texts, strict=True):
                        line[: len(text)] = torch.from_numpy(text.astype(np.int64))
                    network(input_ids=tokens, attention_mask=(tokens != 0).long())

    def exact() -> None:
        for network in networks:
            run_batched(lambda batch, n=network: logits_of(n, batch), sample, width=2, device="cpu")  # type: ignore[misc]

    slow = processor_seconds(padded)
    fp32 = processor_seconds(exact)
    for network in networks:
        network.to(dtype_of(bench.precision))
    exact()
    fast = min(processor_seconds(exact) for _ in range(2))
    yield f"| inference of an ensemble of {members} | examples per core-second | against padded |\n|---|---|---|"
    for name, seconds in (
        ("fp32, padded to 128, one after the other", slow),
        ("fp32, exact lengths", fp32),
        (f"fairsisa: {bench.precision}, exact lengths", fast),
    ):
        yield f"| {name} | {len(sample) / seconds:.1f} | {slow / seconds:.1f}x |"


def memory() -> Iterator[str]:
    yield "| peak memory of `fairsisa train` on 20,000 made-up rows, one worker | MiB |\n|---|---|"
    script = Path(sys.executable).with_name("fairsisa")
    for shards, slices in ((1, 1), (5, 4), (20, 4), (20, 16)):
        with tempfile.TemporaryDirectory() as folder:
            words = [str(script), "train", "data=synthetic_tabular", "data.options.num_examples=20000", "model=logistic",
                     "trainer=tabular", "trainer.max_epochs=2", f"partition.num_shards={shards}",
                     f"partition.num_slices={slices}", "evaluation.baselines=[]", "execution.num_workers=1",
                     "evaluation.num_replicates=100", f"paths.root={folder}", f"paths.store={folder}/store"]  # fmt: skip
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{' '.join(words)} failed with status {status}")
            yield f"| S={shards}, R={slices} | {max(usage.ru_maxrss, 0 * before) / 1024:.0f} |"


TABLES = ("fine_tuning", "profile", "lightning_overhead", "head_mode", "ensemble_inference", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FAIRSISA_DATA"), help="the data folder")
    parser.add_argument("--only", choices=TABLES, nargs="*", default=TABLES)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps measured for each row")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set FAIRSISA_DATA or give --data")
    torch.set_num_threads(1)
    bench = prepare(options.data)
    print(f"{numeric_environment('cpu', bench.precision, 1)}\n")
    tables = {
        "fine_tuning": lambda: fine_tuning(bench, options.steps),
        "profile": lambda: profile(bench, 12),
        "lightning_overhead": lambda: lightning_overhead(bench),
        "head_mode": lambda: head_mode(bench),
        "ensemble_inference": lambda: ensemble_inference(bench),
        "memory": memory,
    }
    for name in options.only:
        for line in tables[name]():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
