"""How fast masked language models are asked, against one sentence at a time: `python scripts/bench_bias_masked.py`.

The model is the embedded encoder ("minilm") under a random vocabulary head tied to its embeddings: of real size, but
what it says means nothing. FAIRSISA_DATA names the folder of CrowS-Pairs and StereoSet (dev). The reference is
bias-bench's procedure: one forward a masked token, batch of one, the head on every position.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import gzip
import json
import os
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from fairsisa.bias.answers import Answers
from fairsisa.bias.asking import chunks_of
from fairsisa.bias.benchmark import CHUNK
from fairsisa.bias.candidate import MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked import ask_blank, ask_modified
from fairsisa.compression.folders import load_model
from fairsisa.models.base import folder_of, quiet, read_tokenizer
from fairsisa.settings import ScoringSettings

PRECISIONS = ("fp32", "bf16", "fast")
Reference = Callable[[Any, Any, Item], list[float]]


@dataclass(frozen=True)
class Timing:
    """How one way of asking did on one benchmark, against one sentence at a time.

    `seconds` are core-seconds for all of `num_items`, `ratio` how many times as many items a core-second has;
    `largest_difference` is in nats, on the items that were asked one at a time; `preferences_changed` counts items of
    which two options change places, against fp32 and against one at a time.
    """

    benchmark: str
    way: str
    num_items: int
    seconds: float
    ratio: float
    largest_difference: float
    preferences_changed: int


@dataclass(frozen=True)
class Task:
    """A benchmark's items, how they are asked, and how they are asked one at a time."""

    name: str
    items: tuple[Item, ...]
    ask: Callable[..., Any]
    reference: Reference


def minilm_candidate() -> Candidate:
    """Return the embedded encoder as a masked language model: its head drawn from a seed, its decoder tied."""
    folder = folder_of("minilm")
    torch.manual_seed(0)
    with quiet():
        network = AutoModelForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
    return Candidate("minilm", "0" * 64, MASKED, network=network.eval(), tokenizer=read_tokenizer(folder))


def folder_candidate(folder: Path) -> Candidate:
    """Return a masked language model that was saved, such as one of `fairsisa pretrain experiment=minilm_masked`."""
    return Candidate(folder.name, "0" * 64, MASKED, network=load_model(folder), tokenizer=read_tokenizer(folder))


def crows_items(root: Path) -> tuple[Item, ...]:
    """Return the pairs of CrowS-Pairs that bias-bench reports on: gender, race and religion."""
    with (root / "crows_pairs" / "crows_pairs_anonymized.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    items = []
    for number, row in enumerate(rows):
        pair = (row["sent_more"], row["sent_less"])
        if row["bias_type"] in ("gender", "race-color", "religion"):
            items.append(
                Item(str(number), "", pair if row["stereo_antistereo"] == "stereo" else pair[::-1], str(number))
            )
    return tuple(items)


def stereoset_items(root: Path) -> tuple[Item, ...]:
    """Return the intrasentence tests of StereoSet whose context has one BLANK that a word fills."""
    lines = gzip.decompress((root / "stereoset" / "stereoset_dev.jsonl.gz").read_bytes()).decode().splitlines()
    items = []
    for row in map(json.loads, lines):
        place = next((place for place, word in enumerate(row["context"].split(" ")) if "BLANK" in word), None)
        sentences = [row[name].split(" ") for name in ("stereotype", "anti-stereotype", "unrelated")]
        if place is None or row["context"].count("BLANK") != 1 or any(place >= len(words) for words in sentences):
            continue
        words = tuple(words[place].translate(str.maketrans("", "", string.punctuation)) for words in sentences)
        if all(words):
            items.append(Item(str(row["id"]), row["context"], words, str(row["target"])))
    return tuple(items)


@torch.no_grad()
def pair_at_a_time(network: Any, tokenizer: Any, item: Item) -> list[float]:
    """Return the mean log-probability of the modified tokens of two sentences, a forward each."""
    encoded = [tokenizer(text)["input_ids"] for text in item.options]
    pieces = [[str(number) for number in ids] for ids in encoded]
    changes = [code for code in difflib.SequenceMatcher(None, *pieces).get_opcodes() if code[0] != "equal"]
    values = []
    for ids, (start, stop) in zip(encoded, ((1, 2), (3, 4)), strict=True):
        logs = []
        for place in (place for code in changes for place in range(code[start], code[stop])):
            seen = torch.tensor([ids])
            seen[0, place] = tokenizer.mask_token_id
            logs.append(float(network(seen).logits[0, place].log_softmax(-1)[ids[place]]))
        values.append(float(np.mean(logs)) if logs else float("nan"))
    return values if not np.isnan(values).any() else [float("nan")] * 2


@torch.no_grad()
def word_at_a_time(network: Any, tokenizer: Any, item: Item) -> list[float]:
    """Return the mean probability of the subwords of each word that may fill the blank, a forward each."""
    values = []
    for word in item.options:
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        probabilities = []
        for place, token in enumerate(tokens):
            text = item.context.replace("BLANK", tokenizer.decode(tokens[:place]) + tokenizer.mask_token)
            seen = torch.tensor([tokenizer(text)["input_ids"]])
            logits = network(seen).logits[seen == tokenizer.mask_token_id]
            probabilities.append(float(logits.softmax(-1)[0, token]))
        values.append(float(np.mean(probabilities)))
    return values


def measure(task: Task, candidate: Candidate, *, num_reference: int) -> list[Timing]:
    """Return how each precision does on all items of a task, and one at a time on `num_reference` of them."""
    sample = [*np.random.default_rng(0).permutation(len(task.items))[:num_reference]]
    start = time.process_time()
    expected = [task.reference(candidate.network, candidate.tokenizer, task.items[number]) for number in sample]
    per_item = (time.process_time() - start) / len(sample)
    timings = [Timing(task.name, "one at a time", len(sample), per_item * len(sample), 1.0, 0.0, 0)]
    task.ask(candidate, task.items[:8], ScoringSettings(precision="fast"), {})  # makes the copy in bf16
    exact: list[np.ndarray] = []
    for precision in PRECISIONS:
        scoring = ScoringSettings(precision=precision)
        start = time.process_time()
        answers = [task.ask(candidate, chunk, scoring, {}) for chunk in chunks_of(task.items, CHUNK)]
        seconds = time.process_time() - start
        values = _in_order(answers, task.items)
        exact = exact or values
        found = np.array([values[number] for number in sample])
        difference = np.nanmax(np.abs(_in_nats(found) - _in_nats(np.array(expected))))
        changed = sum(_changed(one, other) for one, other in zip(exact, values, strict=True))
        changed += sum(_changed(expected[k], values[number]) for k, number in enumerate(sample))
        ratio = per_item * len(task.items) / seconds
        timings.append(Timing(task.name, precision, len(task.items), seconds, ratio, float(difference), changed))
    return timings


def tasks(root: Path) -> list[Task]:
    """Return the two benchmarks."""
    return [
        Task("CrowS-Pairs, modified", crows_items(root), ask_modified, pair_at_a_time),
        Task("StereoSet, intrasentence", stereoset_items(root), ask_blank, word_at_a_time),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100, help="how many items are asked one at a time")
    parser.add_argument("--limit", type=int, help="how many items there are in all")
    parser.add_argument("--model", type=Path, help="folder of a masked model to take instead")
    arguments = parser.parse_args()
    if "FAIRSISA_DATA" not in os.environ:
        parser.error("set FAIRSISA_DATA to the data folder")
    torch.set_num_threads(1)
    candidate = minilm_candidate() if arguments.model is None else folder_candidate(arguments.model)
    titles = f"{'benchmark':26}{'way':15}{'items':>7}{'core-s':>9}{'items/core-s':>14}"
    print(f"{titles}{'ratio':>8}{'max diff':>11}{'changed':>9}")
    for task in tasks(Path(os.environ["FAIRSISA_DATA"])):
        bounded = replace(task, items=task.items[: arguments.limit])
        for each in measure(bounded, candidate, num_reference=min(arguments.items, len(bounded.items))):
            print(
                f"{each.benchmark:26}{each.way:15}{each.num_items:7}{each.seconds:9.2f}"
                f"{each.num_items / each.seconds:14.1f}{each.ratio:8.1f}{each.largest_difference:11.1e}"
                f"{each.preferences_changed:9}"
            )


def _in_nats(values: np.ndarray) -> np.ndarray:
    """Return log-probabilities as they are, and probabilities as their logarithms."""
    return np.log(values) if np.nanmin(values) > 0 else values


def _in_order(answers: Sequence[Answers], items: Sequence[Item]) -> list[np.ndarray]:
    """Return the values of each item's options, items in their order."""
    found = {str(name): part["value"].to_numpy() for each in answers for name, part in each.frame.groupby("item_id")}
    return [found[item.item_id] for item in items]


def _changed(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two of an item's options change places."""
    ranks = [np.sign(np.subtract.outer(values, values)) for values in (np.array(one), np.array(other))]
    return bool(not np.isnan(ranks[0]).any() and (ranks[0] != ranks[1]).any())


if __name__ == "__main__":
    main()
