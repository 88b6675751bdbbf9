"""Measure what asking causal language models costs, as ratios in one run.

A: log-likelihoods against lm-evaluation-harness at its best batch size, on the same items and model, with the largest
difference of a score. B: positions computed over the fewest that must be (each context once, of each option all but its
last token), on 2,000 items of real multiple-choice tasks. C: a token of full-vocabulary divergence between two models
against the two forward passes that it needs, in time and in memory.

The model is GPT-2-shaped with GPT-2's vocabulary and random weights, which moves no time; items are read from the
folder in FAIRSISA_DATA. Run `OMP_NUM_THREADS=1 FAIRSISA_DATA=... python scripts/bench_bias_causal.py`; `--only A` runs
one part. A needs `pip install lm_eval==0.4.13`. A time is processor time. Prints Markdown.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairsisa.bias.candidate import CAUSAL, Candidate
from fairsisa.bias.divergence import block_divergences
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.causal import ask_continuations, questions_of
from fairsisa.bias.readouts.causal_questions import score_questions
from fairsisa.data.corpus_blocks import Blocks, pack_blocks
from fairsisa.models.language import collate_blocks, new_language_model
from fairsisa.models.text_tokenizers import read_gpt2_tokenizer
from fairsisa.settings import ScoringSettings

SHAPE = {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 1024}
BATCH_SIZES = (4, 16, 32, 64)
CHUNK = 256
Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("A", "B", "C"), default=["A", "B", "C"])
    parser.add_argument("--items", type=int, default=200, help="how many items of each task A scores")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    options = parser.parse_args()
    if "FAIRSISA_DATA" not in os.environ:
        parser.error("set FAIRSISA_DATA to the data folder")
    data = Path(os.environ["FAIRSISA_DATA"])
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    candidate = random_gpt2(data, seed=0)
    if "A" in options.only:
        compare_with_harness(candidate, data, options.items, options.repeats)
    if "B" in options.only:
        count_positions(candidate, data)
    if "C" in options.only:
        measure_divergence(data, options.repeats)


def random_gpt2(data: Path, seed: int) -> Candidate:
    tokenizer = read_gpt2_tokenizer(data / "models" / "gpt2_bpe")
    network = new_language_model("gpt2", {**SHAPE, "vocab_size": len(tokenizer)}, seed).eval()
    return Candidate(name="random", digest="0" * 64, kind=CAUSAL, network=network, tokenizer=tokenizer)


def compare_with_harness(candidate: Candidate, data: Path, num_items: int, repeats: int) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        print("A: lm_eval is not installed: pip install lm_eval==0.4.13\n")
        return
    print("## A. Seconds of processor time against lm-evaluation-harness 0.4.13\n")
    print("| items | harness, best batch | fairsisa | times faster | largest difference | same likeliest |")
    print("|---|---|---|---|---|---|")
    for name, items in tasks(data, num_items).items():
        pairs = [(item.context, option) for item in items for option in item.options]
        harness = {size: harness_work(candidate, pairs, size) for size in BATCH_SIZES}
        theirs = {size: fastest(work, repeats) for size, work in harness.items()}
        best = min(theirs, key=lambda size: theirs[size])
        ours = fastest(lambda items=items: asked(candidate, items), repeats)
        answers, expected = asked(candidate, items), harness[best]()
        change = max(abs(value - pair[0]) for (value, _), pair in zip(answers, expected, strict=True))
        same = all(likeliest == pair[1] for (_, likeliest), pair in zip(answers, expected, strict=True))
        row = (
            f"{len(items)} of {name}",
            f"{theirs[best]:.2f} s ({best})",
            f"{ours:.2f} s",
            f"{theirs[best] / ours:.2f}",
        )
        print("|", " | ".join((*row, f"{change:.1e} nats", str(same))), "|", flush=True)
    print()


def harness_work(candidate: Candidate, pairs: Sequence[tuple[str, str]], batch_size: int) -> Work:
    from lm_eval.api.instance import Instance  # noqa: PLC0415  # optional
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    model = HFLM(pretrained=candidate.network, tokenizer=candidate.tokenizer, batch_size=batch_size)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)
    ]
    return lambda: model.loglikelihood(requests, disable_tqdm=True)


def asked(candidate: Candidate, items: Sequence[Item]) -> list[tuple[float, bool]]:
    """Return value and first choice of each option, asked by length and in parts, as an evaluation does."""
    found = {}
    for part in parts_of(items):
        frame = ask_continuations(candidate, part, ScoringSettings(), {}).frame
        for row in frame.itertuples():
            found[row.item_id, row.option] = (row.value, row.text != "")
    return [found[item.item_id, option] for item in items for option in range(len(item.options))]


def count_positions(candidate: Candidate, data: Path) -> None:
    print("## B. Positions computed over the fewest that must be\n")
    print("| items | fewest | computed | ratio |")
    print("|---|---|---|---|")
    for name, items in tasks(data, 2000).items():
        fewest = computed = 0
        for part in parts_of(items):
            questions = questions_of(candidate, part, chat=False)
            computed += score_questions(candidate, questions, ScoringSettings()).num_run
            fewest += sum(len(each.parts[0].prefix) for each in questions if each.option == 0)
            fewest += sum(each.num_tokens - 1 for each in questions)
        print(f"| {len(items)} of {name} | {fewest:,} | {computed:,} | {computed / fewest:.3f} |", flush=True)
    print()


def measure_divergence(data: Path, repeats: int) -> None:
    base, other = random_gpt2(data, seed=0), random_gpt2(data, seed=1)
    text = gzip.decompress((data / "wikitext2" / "valid.txt.gz").read_bytes()).decode()[:40_000]
    tokens = base.tokenizer(text, add_special_tokens=False)["input_ids"][:4096]
    blocks = pack_blocks(["text"], [tokens], length=256, end_id=base.tokenizer.eos_token_id)
    print("## C. Divergence over the full vocabulary, against the two forward passes\n")
    print("| batch | two passes | divergence | ratio | peak of passes | peak of divergence |")
    print("|---|---|---|---|---|---|")
    for batch_size in (1, 4):
        networks = (base.network, other.network)
        passes = [partial(each, *networks, blocks, batch_size) for each in (forward_passes, block_divergences)]
        seconds, peaks = [fastest(work, repeats) for work in passes], [peak_megabytes(work) for work in passes]
        ratio = seconds[1] / seconds[0]
        times = " | ".join(f"{each:.2f} s" for each in seconds)
        print(f"| {batch_size} | {times} | {ratio:.2f} | {peaks[0]:.0f} MB | {peaks[1]:.0f} MB |", flush=True)
    print()


@torch.inference_mode()
def forward_passes(base: Any, other: Any, blocks: Blocks, batch_size: int) -> None:
    for start in range(0, len(blocks), batch_size):
        rows = np.arange(start, min(start + batch_size, len(blocks)))
        batch = collate_blocks(blocks, rows)
        for network in (base, other):
            network(input_ids=batch["tokens"], attention_mask=batch.get("mask"), use_cache=False)


def tasks(data: Path, count: int) -> dict[str, list[Item]]:
    """Return items of real tasks, in the prompts that the harness gives them."""
    piqa = [
        (f"Question: {row['goal']}\nAnswer:", [f" {row['sol1']}", f" {row['sol2']}"])
        for row in lines(data / "mcq" / "piqa_validation.jsonl.gz")
    ]
    arc = [
        (f"Question: {row['question']}\nAnswer:", [f" {text}" for text in row["choices"]["text"]])
        for name in ("easy", "challenge")
        for row in lines(data / "mcq" / f"arc_{name}_validation.jsonl.gz")
    ]
    hellaswag = [
        (row["ctx"], [f" {ending}" for ending in row["endings"]])
        for row in lines(data / "mcq" / "hellaswag_1000.jsonl.gz")
    ]
    with (data / "crows_pairs" / "crows_pairs_anonymized.csv").open(newline="", encoding="utf-8") as file:
        crows = [("", [row["sent_more"], row["sent_less"]]) for row in csv.DictReader(file)]
    named = {
        "CrowS-Pairs": crows,
        "PIQA": piqa,
        "ARC, PIQA": arc + piqa[: max(0, 2000 - len(arc))],
        "HellaSwag": hellaswag,
    }
    return {
        name: [
            Item(str(number), context, tuple(options), "c") for number, (context, options) in enumerate(rows[:count])
        ]
        for name, rows in named.items()
    }


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def parts_of(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    ordered = sorted(items, key=lambda item: -len(item.context) - sum(map(len, item.options)))
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


def fastest(work: Work, repeats: int) -> float:
    return min(seconds_of(work) for _ in range(repeats))


def seconds_of(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_megabytes(work: Work) -> float:
    """Return how much more memory the process held at its height than before, as it is seen every few milliseconds."""
    work()
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0]


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
