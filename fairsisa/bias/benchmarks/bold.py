"""Toxicity of, or regard in, texts that go on from sentences about people, professions and beliefs (BOLD)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import BIAS, COMPLETIONS, LABEL, Benchmark, Files, Metric, Readout
from fairsisa.bias.benchmarks.real_toxicity import MEAN, MEAN_TOXICITY, SHARE, TOXIC_SHARE, score_toxicity
from fairsisa.bias.benchmarks.regard import NEGATIVES, POSITIVES, RATED, TEXTS_RATED, score_regard
from fairsisa.bias.benchmarks.text_quality import CHUNK, QUALITY, QUALITY_COLUMNS, quality, score_texts
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import difference_between, mean_of
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.errors import DataError

CHECKSUMS = {
    "gender": "a863aaf2492e3c911c39f435005abee2eba5f5edabe836e97de110cd83273054",
    "political_ideology": "a83ea7cc272971b618231e13bcb5c1d1be5b208c92135c4ffde85be31f8ab4c6",
    "profession": "5508012069f20419559417e64d8bb2b8d864ebf8afedd21e5ca564393c291794",
    "race": "200337f6c43b09671e580b1df6aea2cdc0196ee02779260e9881da07029e1cb6",
    "religious_ideology": "633830ea87d569e5476895a93f68b8f686cb0dcae6d67a1091a9247c5c4c931d",
}
SOURCES = {
    domain: SourceFile(
        path=f"bold/prompts/{domain}_prompt.json.gz",
        url=github_url(
            "amazon-science/bold", "3ad652c773f5d1e30d5f6f61657ed934d768ecad", f"prompts/{domain}_prompt.json"
        ),
        checksum=f"sha256:{checksum}",
    )
    for domain, checksum in CHECKSUMS.items()
}
PER_GROUP = 50
MAX_NEW_TOKENS = 40
REGARD = f"{LABEL}regard"
COLUMNS = (MEAN, SHARE, REGARD, NEGATIVES, POSITIVES, RATED, *QUALITY_COLUMNS)


def load(files: Files, *, per_group: int | None = PER_GROUP) -> ItemTable:
    """Return prompts of 43 groups in five domains, at most `per_group` of each group, all 23,674 for None.

    Those are taken whose id has the smallest SHA-256: a draw that depends neither on the order of the files nor on the
    other groups, and of which a smaller one is a part. The cluster is the entity that a prompt tells of.

    A prompt's last space is left out, unlike in the source: for most tokenizers it belongs to the word that follows.

    Raises:
        DataError: when a file does not hold groups of entities with lists of prompts.
    """
    rows = [row for domain, source in SOURCES.items() for row in _rows(domain, json.loads(files.text(source)))]
    groups = dict[tuple[Any, Any], list[Item]]()
    for row in rows:
        if isinstance(row, Item):
            groups.setdefault((row.labels["domain"], row.labels["group"]), []).append(row)
    kept = [item for found in groups.values() for item in sorted(found, key=_place)[:per_group]]
    return ItemTable(tuple(kept), tuple(row for row in rows if isinstance(row, Malformed)))


def judge_toxicity(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return the scores by toxicity, as `real_toxicity.score_toxicity` gives them; there is no regard."""
    return score_texts(items, answers, score_toxicity, COLUMNS)


def judge_regard(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return the scores by regard, as `regard.score_regard` gives them; there is no toxicity."""
    return score_texts(items, answers, _regard, COLUMNS)


def _regard(item: Item, found: pd.DataFrame) -> dict[str, Any]:
    row = score_regard(item, found)
    return row if row["reason"] else row | {REGARD: row["value"]} | quality(list(found["text"]))


def _rows(domain: str, groups: Any) -> Iterator[Item | Malformed]:
    if not isinstance(groups, dict) or not all(isinstance(entities, dict) for entities in groups.values()):
        raise DataError(f"Expected {SOURCES[domain].path} to hold groups of entities with lists of prompts.")
    for group, entities in groups.items():
        for entity, prompts in entities.items():
            for number, prompt in enumerate(prompts, start=1):
                item_id = f"{domain}/{group}/{entity}/{number}"
                if prompt.strip():
                    yield Item(item_id, prompt.rstrip(), (), entity, {"domain": domain, "group": group})
                else:
                    yield Malformed(item_id, "the prompt is empty")


def _place(item: Item) -> str:
    return hashlib.sha256(item.item_id.encode()).hexdigest()


METRICS = (
    MEAN_TOXICITY,
    replace(TOXIC_SHARE, flips="outcome"),
    Metric(
        "toxicity_difference",
        difference_between(MEAN, "group", within="domain"),
        BIAS,
        "texts about one group of a domain are more toxic than about another (largest minus smallest mean)",
        neutral=0.0,
        magnitude=True,
        of_both=True,
    ),
    Metric("mean_regard", mean_of(REGARD), BIAS, "texts hold those they tell of in higher regard", of_both=True),
    Metric(
        "negative_regard",
        mean_of(NEGATIVES, scale=100.0),
        BIAS,
        "more texts of negative regard",
        flips="outcome",
        unit="%",
        of_both=True,
    ),
    Metric(
        "regard_difference",
        difference_between(REGARD, "group", within="domain"),
        BIAS,
        "groups of a domain are held in more different regard (largest minus smallest mean)",
        neutral=0.0,
        magnitude=True,
        of_both=True,
    ),
    TEXTS_RATED,
    *QUALITY,
)
SETTINGS = {"max_new_tokens": MAX_NEW_TOKENS}
READOUTS = (
    Readout(
        "toxicity", CAUSAL, ask_texts, judge_toxicity, SETTINGS, chunk=CHUNK, answers=COMPLETIONS, rater="toxicity"
    ),
    Readout("regard", CAUSAL, ask_texts, judge_regard, SETTINGS, chunk=CHUNK, answers=COMPLETIONS, rater="regard"),
)
BENCHMARKS = tuple(
    Benchmark(
        name=name,
        title=title,
        load=partial(load, per_group=per_group),
        readouts=READOUTS,
        metrics=METRICS,
        source="Dhamala et al., BOLD, FAccT 2021",
        licence="CC BY-SA 4.0",
        criticism=(
            "Prompts, metrics, classifiers and sampling change what bias is found, up to contradiction (Akyürek et al. "
            "2022)."
        ),
        breakdown=("domain", "group"),
        files=tuple(SOURCES.values()),
    )
    for name, title, per_group in (
        ("bold", f"BOLD, {PER_GROUP} prompts a group", PER_GROUP),
        ("bold_all", "BOLD, all prompts", None),
    )
)
