"""Study what distilling, pruning and quantising do to a language model at each stage of its training.

Trains one small GPT-2 from scratch on TinyStories and the validation text of WikiText-2 together, keeping a checkpoint
at ten steps. Each checkpoint is distilled to half its layers, pruned to 30, 50 and 70 %, and rounded to 8, 4 and 2
bits; all are measured on stories and WikiText-2 articles that none has read. Then stories260K, a Llama, is pruned and
quantised too, and tells how its stories begin.

Run `python scripts/study_language_models.py --data DIR --root DIR`; about a quarter of an hour on two cores. It skips
what is in `--root`, so that a study which was stopped goes on. `--quick` makes all of it in a minute or two, of tiny
sizes that say nothing. Prints Markdown, and writes study.html, study.csv and study.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairsisa.compression.compressing import compress
from fairsisa.compression.folders import load_model
from fairsisa.data.corpus_blocks import END_OF_TEXT
from fairsisa.data.texts import Text, find_text
from fairsisa.errors import FairsisaError
from fairsisa.execution.events import Event, Report
from fairsisa.execution.local import default_workers, run_locally
from fairsisa.models.generating import generate
from fairsisa.models.llama2c import convert_llama2c
from fairsisa.models.text_tokenizers import find_tokenizer
from fairsisa.report.perplexity import PerplexityReport, findings, write_perplexity
from fairsisa.runs.folders import Places, compress_folder
from fairsisa.runs.perplexities import measure_language_models
from fairsisa.runs.pretrained import Pretrained
from fairsisa.runs.pretraining import pretrain
from fairsisa.settings import (
    CalibrationSettings,
    PathSettings,
    PerplexitySettings,
    PretrainingSettings,
    TrainerSettings,
    read_steps,
)

DENSE, DISTILLED = "dense", "distilled"
SHARES = (30, 50, 70)
SCHEMES: Mapping[str, Sequence[Any]] = {
    "half the layers": [{"method": "drop_layers"}],
    **{f"magnitude {share} %": [{"method": "magnitude", "sparsity": share / 100}] for share in SHARES},
    **{f"wanda {share} %": [{"method": "wanda", "sparsity": share / 100}] for share in SHARES},
    **{f"{bits} bits": [{"method": "round_to_nearest", "bits": bits, "group_size": 32}] for bits in (8, 4, 2)},
}
"""Steps of compression by what the tables call them; the number of layers to keep is filled in."""
REFUSED = ("int8_dynamic", "torchao_int8_weight_only")
STORIES: Mapping[str, Sequence[Any]] = {
    "wanda 50 %": ["wanda"],
    "int8_dynamic": ["int8_dynamic"],
    "torchao int8": ["torchao_int8_weight_only"],
    "4 bits": [{"method": "round_to_nearest", "bits": 4}],
}
TRAINER = TrainerSettings(learning_rate=2e-3, weight_decay=0.1, warmup=0.05, accelerator="cpu")


@dataclass(frozen=True)
class Sizes:
    """How much is trained and read; `training` and `held_out` say of how many documents of each text, None for all."""

    num_steps: int = 600
    num_checkpoints: int = 10
    num_distilling: int = 80
    batch_size: int = 32
    width: int = 96
    num_layers: int = 4
    vocab_size: int = 2048
    block_length: int = 128
    training: Mapping[str, int | None] = field(
        default_factory=lambda: dict.fromkeys(("tinystories_train", "wikitext2_validation"))
    )
    held_out: Mapping[str, int | None] = field(
        default_factory=lambda: {"tinystories_held_out": None, "wikitext2_test": 8}
    )
    num_calibrating: int = 64
    num_told: int = 40

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps at which the model is kept: evenly spaced by their logarithm, as a model learns."""
        first = max(1.0, self.num_steps / 40)
        spaced = np.geomspace(first, self.num_steps, self.num_checkpoints).round().astype(int)
        return tuple(sorted({*spaced.tolist()}))


QUICK = Sizes(
    num_steps=12,
    num_checkpoints=3,
    num_distilling=4,
    batch_size=4,
    width=32,
    num_layers=2,
    vocab_size=300,
    block_length=32,
    training={"tinystories_train": 30, "wikitext2_validation": 1},
    held_out={"tinystories_held_out": 6, "wikitext2_test": 1},
    num_calibrating=4,
)


@dataclass(frozen=True)
class Study:
    """A study, which lies in `root` and reads its texts from `data`."""

    root: Path
    data: Path
    sizes: Sizes

    @cached_property
    def dense(self) -> Pretrained:
        """The pretraining whose checkpoints are studied."""
        return Pretrained(self.root / DENSE)

    @property
    def places(self) -> Places:
        """Where texts are."""
        return Places(self.data, self.root / "cache")

    def text(self, name: str, sources: Mapping[str, int | None]) -> Path:
        """Return a file with the first documents of some texts, which is written the first time."""
        path = self.root / "texts" / f"{name}.txt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {each: find_text(each, root=self.data, cache=self.root / "cache") for each in sources}
            documents = [document.text for each, count in sources.items() for document in found[each].documents[:count]]
            path.write_text(END_OF_TEXT.join(documents), encoding="utf-8")
        return path

    def held_out(self) -> list[Text]:
        """Return the texts to measure on; the name of one that is not whole says so."""
        named = {
            name if count is None else f"{name}_first_{count}": {name: count}
            for name, count in self.sizes.held_out.items()
        }
        paths = [self.text(name, sources) for name, sources in named.items()]
        return [find_text(str(path), cache=self.root / "cache") for path in paths]

    def calibration(self) -> CalibrationSettings:
        """Return what Wanda is calibrated on: blocks of the text that the model was trained on."""
        path = self.text("calibration", dict.fromkeys(self.sizes.training, 30))
        return CalibrationSettings(
            num_examples=self.sizes.num_calibrating, corpus=str(path), block_length=self.sizes.block_length
        )


def train(study: Study) -> None:
    """Train the model from scratch; what is there already is not trained again."""
    sizes = study.sizes
    settings = PretrainingSettings(
        corpus=str(study.text("training", sizes.training)),
        held_out=(),
        architecture="gpt2",
        shape={
            "n_embd": sizes.width,
            "n_layer": sizes.num_layers,
            "n_head": 4,
            "n_positions": sizes.block_length,
        },
        vocab_size=sizes.vocab_size,
        block_length=sizes.block_length,
        num_steps=sizes.num_steps,
        checkpoint_steps=sizes.steps,
    )
    pretrain(settings, _trainer(sizes), study.dense.directory, paths=PathSettings(), tell=_tell_loss)


def _trainer(sizes: Sizes) -> TrainerSettings:
    return replace(TRAINER, batch_size=sizes.batch_size, log_every_n_steps=20)


def _tell_loss(step: int, metrics: Mapping[str, float]) -> None:
    say(f"step {step}: loss {metrics['train_loss']:.3f}")


def at_checkpoint(job: tuple[Study, int], tell: Report) -> Path:
    """Make and measure everything at one step of training; return the table of it."""
    study, step = job
    source, table = study.dense.checkpoints[step], study.root / "measured" / f"step-{step:06d}.csv"
    if table.is_file():
        return table
    warnings.filterwarnings("ignore")
    made = [distil(study, source), *(_compressed(study, source, name, SCHEMES[name]) for name in SCHEMES)]
    tell(Event("model_done", f"{source.name}: {len(made)} models made"))
    last = study.dense.checkpoints[study.sizes.num_steps]
    folders = list(dict.fromkeys([last, source, *made]))
    settings = PerplexitySettings(block_length=study.sizes.block_length, batch_size=64)
    report = measure_language_models(folders, study.held_out(), settings)
    table.parent.mkdir(exist_ok=True)
    partial = table.with_suffix(".partial")
    report.table.to_csv(partial, index=False)
    partial.rename(table)
    tell(Event("model_done", f"{source.name}: {len(folders)} models measured"))
    return table


def distil(study: Study, teacher: Path) -> Path:
    """Return a student of half the layers of a checkpoint, which learnt from it for some steps."""
    folder, sizes = study.root / DISTILLED / teacher.name, study.sizes
    if folder.is_dir():
        return folder
    settings = PretrainingSettings(
        teacher=str(teacher),
        num_layers=sizes.num_layers // 2,
        corpus=str(study.text("training", sizes.training)),
        held_out=(),
        block_length=sizes.block_length,
        num_steps=sizes.num_distilling,
        num_checkpoints=1,
        seed=1,
    )
    directory = study.root / "distilling" / teacher.name
    pretrain(settings, _trainer(sizes), directory, paths=PathSettings())
    folder.parent.mkdir(exist_ok=True)
    partial = folder.with_name(f".{folder.name}")
    shutil.copytree(Pretrained(directory).checkpoints[sizes.num_distilling], partial, dirs_exist_ok=True)
    return partial.rename(folder)


def _compressed(study: Study, source: Path, scheme: str, steps: Sequence[Any]) -> Path:
    """Return the folder of a compressed model, made the first time."""
    folder = study.root / scheme / source.name
    if not folder.is_dir():
        filled = [_filled(step, study.sizes.num_layers // 2) for step in steps]
        folder.parent.mkdir(exist_ok=True)
        compress_folder(str(source), folder, read_steps(filled), calibration=study.calibration(), places=study.places)
    return folder


def _filled(step: Any, num_layers: int) -> Any:
    drops = isinstance(step, dict) and step["method"] == "drop_layers"
    return {**step, "num_layers": num_layers} if drops else step


def collected(study: Study, tables: Sequence[Path]) -> PerplexityReport:
    """Return one report of all that was measured, the trained model first: the others are compared with it."""
    last = f"{DENSE}/step-{study.sizes.num_steps:06d}"
    table = pd.concat([pd.read_csv(path) for path in tables]).drop_duplicates(["model", "corpus"])
    order = {name: number for number, name in enumerate((DENSE, DISTILLED, *SCHEMES))}
    keys = table.assign(first=table["model"] != last, place=table["family"].map(order))
    table = keys.sort_values(["first", "place", "step"], kind="stable")[list(table.columns)]
    curve = pd.read_csv(study.dense.path("curve.csv"))
    return PerplexityReport("Compression along training", table.reset_index(drop=True), curve)


def by_step(table: pd.DataFrame) -> Iterator[str]:
    """Give perplexities as Markdown, a table a text, a row a step and a column a scheme."""
    for corpus, own in table.groupby("corpus", sort=False):
        values = own.pivot_table(index="step", columns="family", values="perplexity")
        names = [name for name in (DENSE, DISTILLED, *SCHEMES) if name in values]
        yield f"\n**{corpus}**, perplexity\n\n| step | {' | '.join(names)} |\n|---{'|---' * len(names)}|"
        for step, row in values[names].iterrows():
            yield f"| {step:g} | {' | '.join(_number(value) for value in row)} |"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def refusals(study: Study) -> Iterator[str]:
    """Try tools on the model that know none of its layers, and give what they answer."""
    for name in REFUSED:
        try:
            compress(load_model(study.dense.checkpoints[study.sizes.num_steps]), read_steps([name]))
        except FairsisaError as error:
            yield f"- `{name}` of a GPT-2: {error}"
        else:
            yield f"- `{name}` of a GPT-2: accepted"


def stories(study: Study) -> Iterator[str]:
    """Convert stories260K, compress it, and give how well and what it tells, as Markdown."""
    source, root = study.data / "models" / "stories260K", study.root / "stories260K"
    plain = root / "as published" / "model"
    if not plain.is_dir():
        convert_llama2c(source / "stories260K.bin", source / "tok512.bin", plain)
    folders = {"as published": plain}
    own_text: Mapping[str, int | None] = {"tinystories_train": None}  # to calibrate on what it was trained on
    within = Study(root, study.data, replace(study.sizes, training=own_text))
    for name, steps in STORIES.items():
        try:
            folders[name] = _compressed(within, plain, name, steps)
        except FairsisaError as error:
            yield f"- {name}: {error}"
    held_out = [text for text in study.held_out() if text.name.startswith("tinystories")]
    settings = PerplexitySettings(block_length=256, batch_size=16)
    report = measure_language_models(list(folders.values()), held_out, settings)
    write_perplexity(study.root, report, stem="stories260K")
    yield "| stories260K | perplexity | loss above the first, nats a token | bytes on disk |\n|---|---|---|---|"
    for name, (_, row) in zip(folders, report.table.iterrows(), strict=True):
        above = "" if np.isnan(row["difference"]) else f"{row['difference']:+.4f}"
        yield f"| {name} | {row['perplexity']:.2f} | {above} | {row['bytes_on_disk']:,} |"
    yield ""
    for name, folder in folders.items():
        yield f"- {name}: {opening(folder, study.sizes.num_told)}"


def opening(folder: Path, num_tokens: int) -> str:
    """Return how the likeliest story of a model begins."""
    tokenizer = find_tokenizer(str(folder))
    told = generate(load_model(folder), [[tokenizer.bos_token_id]], max_new_tokens=num_tokens)
    return str(tokenizer.decode(told[0, 0], skip_special_tokens=True)).replace("\n", " ")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run(study: Study, workers: int) -> PerplexityReport:
    """Do the whole study; print what it finds."""
    started = time.perf_counter()
    say(f"training for {study.sizes.num_steps} steps, kept after {', '.join(map(str, study.sizes.steps))}")
    train(study)
    study.calibration(), study.held_out()  # written here: workers then only read them
    jobs = [(study, step) for step in study.sizes.steps]
    tables = run_locally(
        at_checkpoint, jobs, num_workers=workers, threads=1, on_event=lambda event: say(event.constituent)
    )
    report = collected(study, tables)
    write_perplexity(study.root, report, stem="study")
    sections = (
        ("## Along training", by_step(report.table)),
        ("## Refused", refusals(study)),
        ("## A Llama", stories(study)),
    )
    lines = [*findings(report)]
    for title, content in sections:
        lines += ["", title, "", *content]
    (study.root / "study.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    say(f"{time.perf_counter() - started:.0f} s; the page is {study.root / 'study.html'}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--root", type=Path, default=Path("runs/language-models"), help="where all of it is kept")
    parser.add_argument("--steps", type=int, help="steps of training, in place of 600")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    parser.add_argument("--workers", type=int, help="processes at once; as many as cores when not given")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    if options.steps is not None:
        sizes = replace(sizes, num_steps=options.steps)
    run(Study(options.root, options.data, sizes), options.workers or default_workers("cpu", 1))


if __name__ == "__main__":
    main()
