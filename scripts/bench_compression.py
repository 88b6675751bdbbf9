"""Measure what distilling, pruning and quantising cost, and what the smaller models give back, as ratios in one run.

A: a step of distillation against a step of plain training of the same student on the same batches, with a teacher's
outputs stored and with a live teacher, for a MiniLM-shaped classifier and a GPT-2-shaped language model. B: Wanda on a
GPT-2-shaped model of 125M parameters against one forward pass over its calibration rows and one sort of each weight
matrix, in time and in peak memory; SparseGPT beside it on one layer's matrices. C: size, memory, latency and
throughput of every scheme against fp32 and bf16, on a MiniLM-shaped classifier, a Llama-shaped and a GPT-2-shaped
language model; a scheme that refuses a model shows why. D: who catches a compressor that changes nothing.

All weights are MiniLM's or random, all tokens made up: neither moves a time. Run `OMP_NUM_THREADS=1 python
scripts/bench_compression.py`; `--only A C` runs some parts, `--device cuda` runs C on a GPU. On the CPU a time is
processor time of one thread, which another process disturbs less than the clock on the wall. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from fairsisa.compression.calibration import measured
from fairsisa.compression.card import Card, bytes_in_memory
from fairsisa.compression.classifier_student import ClassifierStudent
from fairsisa.compression.compressing import Compressed, compress
from fairsisa.compression.distilling import DistillationWeights
from fairsisa.compression.folders import MODEL, save_compressed
from fairsisa.compression.language_student import LanguageDistillation, distil_language_model
from fairsisa.compression.layers import LayerWeight, weight_layers
from fairsisa.compression.pruning import magnitude_mask, wanda_mask
from fairsisa.compression.sparsegpt import input_products, sparsegpt
from fairsisa.compression.stored_logits import StoredLogits, store_logits
from fairsisa.data.batches import training_batches
from fairsisa.data.corpus_blocks import Blocks
from fairsisa.data.encoding import Inputs
from fairsisa.errors import FairsisaError
from fairsisa.models.base import find_base
from fairsisa.models.batching import collate, run_batched
from fairsisa.models.classifier import Classifier, Schedule, initial_state
from fairsisa.models.device import dtype_of, numeric_environment, resolve_precision
from fairsisa.models.fitting import fit_quietly
from fairsisa.models.language import BlockData, LanguageModule, new_language_model
from fairsisa.models.network import Batch, build_network, logits_of
from fairsisa.settings import ModelSettings, TrainerSettings
from fairsisa.settings.steps import PRESETS, Step

MINILM = ModelSettings(dropout=0.0)
BATCH = 32
EPOCHS, CONSTITUENTS = 3, 5
VOCABULARY = 8192
GPT2_VOCABULARY = 50_257
TEACHER = {"n_embd": 384, "n_head": 6, "n_layer": 6, "n_positions": 128, "vocab_size": VOCABULARY}
LLAMA = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1408,
    "vocab_size": VOCABULARY,
}
GPT2 = {"n_embd": 512, "n_head": 8, "n_layer": 6, "n_positions": 128, "vocab_size": VOCABULARY}
CALIBRATION_ROWS, CALIBRATION_BATCH = 128, 16
MEMORY = """
import json, sys
import torch
from fairsisa.compression.calibration import measured
from fairsisa.compression.compressing import compress
from fairsisa.models.language import new_language_model
from fairsisa.settings.steps import PRESETS
what, num_layers, rows, length = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
model = new_language_model("gpt2", {"n_layer": num_layers}, 0).eval()
tokens = torch.randint(0, 50257, (2, rows, length), generator=torch.Generator().manual_seed(0))
compress(new_language_model("gpt2", {"n_layer": 1}, 0), [PRESETS["wanda"]], [{"tokens": tokens[0, :1, :2]}])
def act():
    if what == "wanda":
        return compress(model, [PRESETS["wanda"]], [{"tokens": batch} for batch in tokens])
    with torch.no_grad(), measured(model):
        return [model.base_model(input_ids=batch)[0].sum() for batch in tokens]
def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":")) * 1024
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew
before = resident("VmRSS")
act()
print(json.dumps([sum(p.numel() * p.element_size() for p in model.parameters()), resident("VmHWM") - before]))
"""
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536"
}  # freed buffers leave the process at once, so that its size is what lives


@dataclass(frozen=True)
class Bench:
    """How it is measured: where part C runs, how many turns everything takes, and tokens in a row of calibration."""

    device: str
    rounds: int
    length: int


def seconds_of(act: Callable[[], Any], device: str = "cpu") -> float:
    """Return the processor seconds of an act, or on a GPU the seconds until it is idle again."""
    if device == "cpu":
        started = time.process_time()
        act()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(acts: Mapping[str, Callable[[], Any]], turns: int, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of each act, all of them run once to warm up, then one after another `turns` times.

    An act that has taken 5 seconds in all sits out what is left; if its warm-up did, that is its measure.
    """
    first = {name: seconds_of(act, device) for name, act in acts.items()}
    times = {name: [seconds] if seconds >= 5 else [] for name, seconds in first.items()}
    for turn in range(turns):
        for name in list(acts)[:: 1 if turn % 2 else -1]:
            if sum(times[name]) < 5:
                times[name].append(seconds_of(acts[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def verdict(ratio: float, goal: float) -> str:
    """Return a ratio with its goal, and whether it is met."""
    return f"{ratio:.2f} (goal {goal:g}: {'met' if round(ratio, 2) <= goal else 'MISSED'})"


def made_up_texts(count: int, seed: int = 0) -> Inputs:
    """Return texts as long as HateXplain's posts (mean 28 tokens, 95 % below 56), with a teacher's probabilities."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.2, 0.5, count).astype(np.int64), 4, 110)
    scores = rng.random(count, dtype=np.float32)
    return Inputs(
        example_ids=tuple(map(str, range(count))),
        contents=("0" * 64,) * count,
        labels=rng.integers(0, 2, count),
        tokens=rng.integers(1000, 30_000, lengths.sum(), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        targets=np.stack([1 - scores, scores], axis=1),
    )


def classifier_steps(bench: Bench) -> Iterator[str]:
    """Time a student's step, batch by batch in turns, with what its teacher says computed once or every time."""
    precision = resolve_precision("auto", "cpu")
    inputs, base = made_up_texts(BATCH * (4 * bench.rounds + 2)), find_base(MINILM)
    batches = training_batches(inputs.lengths, len(inputs), batch_size=BATCH, seed=0)
    settings = TrainerSettings(accelerator="cpu", precision=precision)
    network = partial(build_network, MINILM, base, num_features=0, num_classes=2)
    teacher = network(seed=1).to(dtype_of(precision)).eval()

    def trained(kind: type[Classifier], **options: Any) -> Classifier:
        student = network(seed=0)
        state = initial_state(student)
        schedule = Schedule(len(batches), 1.0, 0.0, 0.1)
        module = kind(student.to(dtype_of(precision)).train(), state, settings, schedule, **options)
        module.configure_optimizers()
        return module

    weights, untold = DistillationWeights(soft=1.0, hard=1.0), replace(inputs, targets=None)
    modules = {
        "plain training (cross-entropy)": (trained(Classifier), untold),
        "distillation, stored probabilities": (trained(ClassifierStudent, weights=weights), inputs),
        "distillation, one live teacher": (trained(ClassifierStudent, weights=weights, teacher=teacher), untold),
    }
    times = {name: [] for name in modules}
    for number, rows in enumerate(batches):
        for name in list(modules)[:: 1 if number % 2 else -1]:
            module, told = modules[name]
            times[name].append(seconds_of(lambda m=module, t=told, r=rows: m._step(collate(t, r, 0))))
    yield f"| a student's step: MiniLM's 6 layers, batch {BATCH}, {precision}, medians | ms | to plain |\n|---|---|---|"
    yield from step_rows({name: values[2:] for name, values in times.items()}, goal=1.1)
    scoring = seconds_of(lambda: run_batched(partial(logits_of, teacher), untold, width=2, device="cpu"))
    plain = statistics.fmean(next(iter(times.values()))[2:]) * len(batches)
    share = CONSTITUENTS * scoring / plain
    yield (
        f"\nOne teacher reads the texts in {scoring / plain:.2f} of the time of an epoch of plain training. The mean "
        f"score of {CONSTITUENTS} constituents, over {EPOCHS} epochs of training: once {share / EPOCHS:.0%} on top of "
        f"it, every epoch {share:.0%}."
    )


def step_rows(times: Mapping[str, list[float]], goal: float | None) -> Iterator[str]:
    """Give a table's rows: the median, and the median of the ratios to the first row's step of the same number."""
    first = next(iter(times.values()))
    for place, (name, values) in enumerate(times.items()):
        ratio = statistics.median(ours / plain for ours, plain in zip(values, first, strict=True))
        told = verdict(ratio, goal) if goal is not None and place == 1 else f"{ratio:.2f}"
        yield f"| {name} | {1e3 * statistics.median(values):.0f} | {told} |"


class Clock(pl.Callback):
    """Note the processor time after every batch."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.marks.append(time.process_time())

    @property
    def steps(self) -> list[float]:
        """The seconds of each step but the first two."""
        return np.diff(self.marks)[1:].tolist()


def language_steps(bench: Bench) -> Iterator[str]:
    """Time a language student's step in whole fits that take turns: plain, from stored logits, beside its teacher."""
    num_steps, batch_size, length = 8, 8, 128
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, num_steps * batch_size * length, dtype=np.int32)
    blocks = Blocks(("0",), np.array([0, len(tokens)]), tokens, length)
    precision = resolve_precision("auto", "cpu")
    settings = TrainerSettings(accelerator="cpu", precision=precision)
    plan = LanguageDistillation(DistillationWeights(soft=1.0, hard=1.0), settings, num_steps, batch_size, seed=0)
    teacher = new_language_model("gpt2", TEACHER, seed=1)
    names = ("plain training", "distillation, stored logits", "distillation, live teacher")
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "teacher.safetensors")
        storing = seconds_of(lambda: store_logits(path, teacher, blocks, batch_size=batch_size))
        size = path.stat().st_size
        teachers = dict(zip(names, (None, StoredLogits(path), teacher), strict=True))
        for turn in range(min(bench.rounds, 3)):
            for name in names[:: 1 if turn % 2 else -1]:
                times[name] += fit_language(teachers[name], blocks, plan)
    yield (
        f"| a student's step: GPT-2-shaped, 3 of 6 layers, width 384, vocabulary {VOCABULARY:,}, {batch_size} x "
        f"{length} tokens, {precision} autocast | ms | to plain |\n|---|---|---|"
    )
    yield from step_rows(times, goal=None)
    plain = statistics.median(times[names[0]]) * num_steps
    yield (
        f"\nStoring took {storing / plain:.2f} of the time of an epoch of plain training, in fp32, and "
        f"{size / len(tokens) / 1024:.0f} KiB a token ({size / 2**20:.0f} MiB for {len(tokens):,} tokens); GPT-2's "
        f"vocabulary takes {2 * GPT2_VOCABULARY / 1024:.0f} KiB a token, {2e6 * GPT2_VOCABULARY / 2**30:.0f} GiB for a "
        "million."
    )


def fit_language(teacher: nn.Module | StoredLogits | None, blocks: Blocks, plan: LanguageDistillation) -> list[float]:
    """Train a new student, and return the seconds of its steps."""
    student, clock = new_language_model("gpt2", {**TEACHER, "n_layer": 3}, seed=0), Clock()
    if teacher is not None:
        distil_language_model(student, teacher, blocks, plan, callbacks=[clock])
        return clock.steps
    module = LanguageModule(student, plan.trainer, Schedule(plan.num_steps, 1.0, 0.0, 0.1), seed=plan.seed)
    data = BlockData(student, blocks, num_steps=plan.num_steps, batch_size=plan.batch_size, seed=plan.seed)
    fit_quietly(module, data, accelerator="cpu", seed=plan.seed, callbacks=[clock], autocast=plan.trainer.precision)
    return clock.steps


def calibration_batches(rows: int, length: int, vocabulary: int = GPT2_VOCABULARY) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    size = min(rows, CALIBRATION_BATCH)
    return [{"tokens": torch.randint(0, vocabulary, (size, length), generator=generator)} for _ in range(rows // size)]


def run_body(model: Any, batches: list[Batch]) -> None:
    """Run a language model without its head over batches, as a calibration has to, and do nothing else."""
    with torch.no_grad(), measured(model):
        for batch in batches:
            model.base_model(input_ids=batch["tokens"])


def sort_each(layers: Mapping[str, LayerWeight]) -> None:
    """Sort each row of each weight matrix once, stably, as Wanda's authors do."""
    for layer in layers.values():
        torch.sort(layer.matrix().abs(), dim=-1, stable=True)


def wanda(bench: Bench) -> Iterator[str]:
    """Time Wanda against what it cannot do without, in turns, and measure its memory in processes of its own."""
    model: Any = new_language_model("gpt2", {}, seed=0).eval()
    batches, layers = calibration_batches(CALIBRATION_ROWS, bench.length), weight_layers(model, include_head=False)
    step = PRESETS["wanda"]
    run_body(model, batches[:1])
    times: dict[str, list[float]] = {"forward": [], "sort": [], "compress": []}
    for turn in range(min(bench.rounds, 2)):
        fresh = copy.deepcopy(model)
        acts = {
            "forward": partial(run_body, model, batches),
            "sort": partial(sort_each, layers),
            "compress": partial(compress, fresh, [step], batches),
        }
        for name in list(acts)[:: 1 if turn % 2 else -1]:
            times[name].append(seconds_of(acts[name]))
    forward, sort, ours = (statistics.median(values) for values in times.values())
    yield (
        f"| Wanda 50 %, GPT-2's shape ({sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters), "
        f"{CALIBRATION_ROWS} rows of {bench.length} tokens, fp32 | s | to forward + sorts |\n|---|---|---|"
    )
    yield f"| one forward pass over the calibration rows, no head | {forward:.1f} | |"
    yield f"| one stable sort of each of {len(layers)} weight matrices, row by row | {sort:.1f} | |"
    yield f"| `compress(model, [wanda])`, its card included | {ours:.1f} | {verdict(ours / (forward + sort), 1.2)} |\n"
    yield from wanda_memory(bench)
    yield ""
    yield from one_layer(model, batches)


def wanda_memory(bench: Bench) -> Iterator[str]:
    """Measure peaks above the model's own memory; a pass without gradient holds one layer's activations at a time."""
    _, layer = peak_of("forward", 1, bench, GIVE_BACK)
    _, forward = peak_of("forward", 12, bench, GIVE_BACK)
    model, ours = peak_of("wanda", 12, bench, GIVE_BACK)
    _, held = peak_of("wanda", 12, bench, {})
    yield f"| peak memory above the loaded model's, batches of {CALIBRATION_BATCH} x {bench.length} tokens | MiB |"
    yield "|---|---|"
    yield f"| one layer's activations: a forward pass, no head, of a model of one layer | {layer / 2**20:.0f} |"
    yield f"| the same of the 12 layers | {forward / 2**20:.0f} |"
    yield f"| `compress(model, [wanda])`, in place | {ours / 2**20:.0f} |"
    yield f"| the same with what glibc by its default keeps of freed memory | {held / 2**20:.0f} |"
    ratio = verdict((model + ours) / (model + layer), 1.0)
    yield f"\nPeak with the model ({model / 2**20:.0f} MiB), to model and one layer's activations: {ratio}."


def peak_of(what: str, num_layers: int, bench: Bench, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the bytes of a model's weights, and by how many a process that holds it grows at most in an act."""
    words = [sys.executable, "-W", "ignore", "-c", MEMORY, what]
    words += map(str, (num_layers, CALIBRATION_BATCH, bench.length))
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    model, grown = json.loads(done.stdout.splitlines()[-1])
    return model, grown


def one_layer(model: nn.Module, batches: list[Batch]) -> Iterator[str]:
    """Time the choice of weights in one block's matrices by magnitude, Wanda and SparseGPT."""
    layers = {n: each for n, each in weight_layers(model).items() if n.startswith("transformer.h.0.")}
    products = input_products(model, batches[:1], layers)
    norms = {name: product.diagonal().sqrt() for name, product in products.items()}
    acts: dict[str, Callable[[], Any]] = {
        "magnitude": lambda: [magnitude_mask(each.matrix(), 0.5) for each in layers.values()],
        "Wanda": lambda: [wanda_mask(each.matrix(), norms[name], 0.5) for name, each in layers.items()],
        "SparseGPT": lambda: [
            sparsegpt(each.matrix().contiguous(), products[name], sparsity=0.5) for name, each in layers.items()
        ],
    }
    times = in_turns(acts, turns=3)
    shapes = ", ".join("x".join(map(str, each.matrix().shape)) for each in layers.values())
    yield f"| one layer's matrices ({shapes}), calibration apart | ms | to Wanda |\n|---|---|---|"
    for name, seconds in times.items():
        yield f"| {name} | {1e3 * seconds:.0f} | {seconds / times['Wanda']:.1f} |"


@dataclass(frozen=True)
class Shape:
    """A model of part C, and what it reads: batches of `rows` texts of 32 tokens."""

    name: str
    make: Callable[[], nn.Module]
    num_layers: int
    rows: int
    vocabulary: int = VOCABULARY
    head_fits_int4: bool = True


def classifier() -> nn.Module:
    return build_network(MINILM, find_base(MINILM), num_features=0, num_classes=2, seed=0)


SHAPES = (
    Shape("MiniLM-shaped classifier", classifier, 6, 32, 30_000, head_fits_int4=False),
    Shape("Llama-shaped language model, 8 layers of width 512", partial(new_language_model, "llama", LLAMA, 0), 8, 8),
    Shape("GPT-2-shaped language model, 6 layers of width 512", partial(new_language_model, "gpt2", GPT2, 0), 6, 8),
)


def schemes(shape: Shape) -> dict[str, Step | None]:
    """Return every scheme by what the table calls it; None for a number format alone."""
    return {
        "fp32": None,
        "bf16": None,
        "magnitude 50 %": PRESETS["magnitude"],
        "Wanda 50 %": PRESETS["wanda"],
        "Wanda 2:4": PRESETS["wanda_2to4"],
        "half of the layers dropped": Step("drop_layers", num_layers=shape.num_layers // 2),
        "round to nearest, 8 bits": PRESETS["round_to_nearest_8"],
        "round to nearest, 4 bits": PRESETS["round_to_nearest_4"],
        "int8_dynamic (torch)": PRESETS["int8_dynamic"],
        "torchao int8 weight-only": PRESETS["torchao_int8_weight_only"],
        "torchao int8 dynamic": PRESETS["torchao_int8_dynamic"],
        "torchao int4 weight-only" + ("" if shape.head_fits_int4 else ", the head kept"): Step(
            "torchao", scheme="int4_weight_only", include_head=shape.head_fits_int4
        ),
        "bitsandbytes 8 bits": PRESETS["bitsandbytes_8"],
        "bitsandbytes 4 bits": PRESETS["bitsandbytes_4"],
    }


def scheme_table(shape: Shape, bench: Bench) -> Iterator[str]:
    """Compress one model by every scheme; time all that were made, in turns, on one text and on a batch."""
    original = shape.make().requires_grad_(False).eval()
    made, refused = {}, {}
    for name, step in schemes(shape).items():
        try:
            made[name] = compressed_by(step, name, copy.deepcopy(original).to(bench.device), shape)
        except FairsisaError as error:
            refused[name] = textwrap.shorten(str(error), 170, placeholder=" ...")
    read = {rows: on(bench.device, tokens_of(rows, 32, shape.vocabulary)) for rows in (1, shape.rows)}
    turns = {1: 5 * bench.rounds, shape.rows: bench.rounds}
    medians = {
        rows: in_turns({n: partial(answer, each.model, batch) for n, each in made.items()}, turns[rows], bench.device)
        for rows, batch in read.items()
    }
    goal = answer(made["fp32"].model, read[shape.rows])
    yield (
        f"| {shape.name}, {bench.device} | one text, ms | speed to fp32, bf16 | texts/s, batches of {shape.rows} | "
        "speed to fp32, bf16 | on disk, MB | in memory, MB | to fp32 | answers moved |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, each in made.items():
        one, many = (medians[rows][name] for rows in read)
        moved = (answer(each.model, read[shape.rows]) - goal).norm() / goal.norm()
        held = each.card.bytes_after
        yield (
            f"| {name} | {1e3 * one:.1f} | {speeds(medians[1], name)} | {shape.rows / many:.1f} "
            f"| {speeds(medians[shape.rows], name)} | {size_on_disk(each) / 1e6:.1f} | {held / 1e6:.1f} "
            f"| {held / made['fp32'].card.bytes_after:.2f} | {moved:.1%} |"
        )
    for name, reason in refused.items():
        yield f"| {name} | refused: {reason} | | | | | | | |"


def compressed_by(step: Step | None, name: str, model: nn.Module, shape: Shape) -> Compressed:
    """Return a model compressed by a step, or as it is in the number format that `name` is."""
    if step is None:
        model = model.to(dtype_of(name))
        return Compressed(model, Card((), bytes_after=bytes_in_memory(model)))
    device = next(model.parameters()).device.type
    calibration = [on(device, {"tokens": tokens_of(16, 32, shape.vocabulary)["tokens"]})]
    return compress(model, [step], calibration)


def tokens_of(rows: int, length: int, vocabulary: int) -> Batch:
    return {"tokens": torch.randint(1, vocabulary, (rows, length), generator=torch.Generator().manual_seed(rows))}


def on(device: str, batch: Batch) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def answer(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch in fp32, every position's where it is a language model."""
    return logits_of(model, batch)


def speeds(medians: Mapping[str, float], name: str) -> str:
    return ", ".join(f"{medians[peer] / medians[name]:.2f}x" for peer in ("fp32", "bf16"))


def size_on_disk(each: Compressed) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_compressed(each, Path(folder, "model"))
        return Path(folder, "model", MODEL).stat().st_size


def part_a(bench: Bench) -> Iterator[str]:
    yield from classifier_steps(bench)
    yield ""
    yield from language_steps(bench)


def part_c(bench: Bench) -> Iterator[str]:
    yield "Speeds above 1 are faster. Weights pruned or rounded in place are stored and multiplied as dense fp32."
    for shape in SHAPES:
        yield ""
        yield from scheme_table(shape, bench)


def part_d(_bench: Bench) -> Iterator[str]:
    yield (
        "A compressor that silently changes nothing is caught by the contract suite: `pytest "
        "tests/test_compression_contract.py`, whose broken compressors each have to fail one check."
    )


PARTS: Mapping[str, Callable[[Bench], Iterator[str]]] = {"A": part_a, "B": wanda, "C": part_c, "D": part_d}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), nargs="*", default=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where part C runs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each measurement, and batches in A")
    parser.add_argument("--length", type=int, default=64, help="tokens in a row of calibration, part B")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    bench = Bench(options.device, options.rounds, options.length)
    precision = resolve_precision("auto", "cpu")
    print(f"{numeric_environment('cpu', precision, 1)}, load {os.getloadavg()[0]:.1f}\n")
    for name in options.only:
        started = time.perf_counter()
        print(f"### {name}\n")
        for line in PARTS[name](bench):
            print(line, flush=True)
        seconds = time.perf_counter() - started
        print(f"\n({name}: {seconds:.0f} s on the wall, load {os.getloadavg()[0]:.1f})\n", flush=True)


if __name__ == "__main__":
    main()
