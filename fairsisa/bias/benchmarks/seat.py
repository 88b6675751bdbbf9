"""SEAT and WEAT: do the vectors of some people's names or terms lie nearer to pleasant words, careers, stereotypes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.association import associations, effect_size, permutation_p_value
from fairsisa.bias.benchmark import (
    BIAS,
    COMPLETIONS,
    Benchmark,
    Columns,
    Files,
    Metric,
    Readout,
    score_row,
    scores_table,
)
from fairsisa.bias.candidate import CAUSAL, ENCODER, MASKED
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.readouts.vectors import ask_vectors
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.errors import DataError

REPOSITORY, COMMIT = "McGill-NLP/bias-bench", "291426aab926f78ecfc7bd040b531429ee8123e0"
ROLES = MappingProxyType({"targ1": "X", "targ2": "Y", "attr1": "A", "attr2": "B"})
TEMPLATES = frozenset[str](
    ("a", "an", "the", "this", "that", "these", "those", "here", "there", "is", "are", "it", "they")
)
WORD = re.compile(r"\w+")
GENDER = ("sent-weat6", "sent-weat6b", "sent-weat7", "sent-weat7b", "sent-weat8", "sent-weat8b")
RACE = (
    "sent-angry_black_woman_stereotype",
    "sent-angry_black_woman_stereotype_b",
    "sent-weat3",
    "sent-weat3b",
    "sent-weat4",
    "sent-weat5",
    "sent-weat5b",
)
RELIGION = ("sent-religion1", "sent-religion1b", "sent-religion2", "sent-religion2b")
DOMAINS = MappingProxyType(
    {test: name for name, tests in (("gender", GENDER), ("race", RACE), ("religion", RELIGION)) for test in tests}
)
"""The tests that bias-bench reports (Meade et al. 2022), by domain."""
ELSEWHERE = "other"
SIGNIFICANCE = 0.01
ALL_AT_ONCE = 100_000


def load_tests(files: Files, sources: Mapping[str, SourceFile]) -> ItemTable:
    """Return the sentences of tests: an item a test, role and sentence, so that a sentence of many tests is many items.

    The readout encodes equal texts of a chunk once; a chunk holds all. The cluster is the word in question: what a
    sentence has that no other set has ("This is John." and "John is a person." are one cluster), or else the sentence
    itself. A sentence that stands twice in one role counts once, since vectors are kept by text (bias-bench); it is
    reported as malformed.
    """
    items: list[Item] = []
    malformed: list[Malformed] = []
    for test, source in sources.items():
        content = json.loads(files.text(source))
        words = {role: _words(content[part]["examples"]) for part, role in ROLES.items()}
        for part, role in ROLES.items():
            seen = set[str]()
            elsewhere = TEMPLATES.union(*(words[other] for other in words if other != role))
            for place, sentence in enumerate(content[part]["examples"]):
                item_id = f"{test}/{role}/{place}"
                if sentence in seen:
                    malformed.append(Malformed(item_id, f"{sentence!r} occurs twice as {role} of {test}"))
                    continue
                seen.add(sentence)
                labels = {"test": test, "role": role, "set": str(content[part]["category"])}
                cluster = _topic(sentence, words[role], elsewhere) or sentence
                items.append(Item(item_id, "", (sentence,), cluster, labels | {"domain": DOMAINS.get(test, ELSEWHERE)}))
    return ItemTable(tuple(items), tuple(malformed))


def _words(sentences: Iterable[str]) -> frozenset[str]:
    return frozenset(word for sentence in sentences for word in WORD.findall(sentence.lower()))


def _topic(sentence: str, own: Set[str], elsewhere: Set[str]) -> str:
    """Return the words of a sentence that are not `elsewhere`, those of a plural by a singular that its set has."""
    told = set[str]()
    for word in _words([sentence]):
        singulars = (word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
        known = [each for each in singulars if each in own and each != word]
        told.add(known[0] if word.endswith("s") and known else word)
    return " ".join(sorted(told - elsewhere))


def judge(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return scores: of a target (role X or Y), `value` is s(w, A, B) within its test; attributes have none.

    A sentence without a vector is not scored; an attribute without one is left out of its set's mean.

    Raises:
        DataError: when the answers hold no vectors, or not one for each item.
    """
    if answers.vectors is None:
        raise DataError("Expected answers with vectors, which ask_vectors gives; got none.")
    rows = pd.Series(np.arange(len(answers)), index=answers.frame["item_id"])
    ids = [item.item_id for item in items]
    if len(rows) != len(ids) or set(rows.index) != set(ids):
        raise DataError(f"Expected one vector for each of {len(ids)} items, got {len(rows)}.")
    order = rows.loc[ids].to_numpy()
    reasons = answers.frame["reason"].to_numpy()[order]
    values = _values(items, np.asarray(answers.vectors, dtype=np.float64)[order], reasons == "")
    told = zip(items, values.tolist(), reasons.tolist(), strict=True)
    return scores_table([score_row(item, value=value, reason=reason) for item, value, reason in told])


def _values(items: Sequence[Item], vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    tests, roles = (np.array([item.labels[name] for item in items], dtype=str) for name in ("test", "role"))
    values = np.full(len(items), np.nan)
    for test in dict.fromkeys(tests.tolist()):
        here = (tests == test) & known
        first, second = (vectors[here & (roles == role)] for role in "AB")
        targets = here & np.isin(roles, ("X", "Y"))
        if len(first) and len(second):
            values[targets] = associations(vectors[targets], first, second)
    return values


def effect_size_of(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the effect size of the one test the rows are of; NaN where there are several, which have no common one."""
    tests = _tests(columns)
    if len(tests) != 1:
        return np.full(weights.shape[1], np.nan)
    return np.asarray(_effects(columns, weights, tests)[0])


def mean_absolute_effect_size(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the mean over tests of |d|; a replicate that leaves a test without one is NaN."""
    tests = _tests(columns)
    if not tests:
        return np.full(weights.shape[1], np.nan)
    return np.asarray(np.abs(_effects(columns, weights, tests)).mean(axis=0))


def p_value_of(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the p-value of the one test the rows are of, under weights that are all one; NaN elsewhere.

    A permutation test says nothing about bootstrap replicates, so that there is no interval.
    """
    tests = _tests(columns)
    return (
        np.full(weights.shape[1], np.nan)
        if len(tests) != 1
        else _observed(weights, lambda: _p_value(columns, tests[0]))
    )


def share_significant(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the percentage of tests with a p-value below `SIGNIFICANCE`, if weights are all one; else NaN."""
    tests = _tests(columns)
    if not tests:
        return np.full(weights.shape[1], np.nan)
    return _observed(
        weights, lambda: 100.0 * float(np.mean([_p_value(columns, test) < SIGNIFICANCE for test in tests]))
    )


def _tests(columns: Columns) -> list[str]:
    there = ~np.isnan(np.asarray(columns["value"], dtype=np.float64))
    return sorted({str(test) for test in np.asarray(columns["label:test"])[there]})


def _targets(columns: Columns, test: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of a test's targets, their values, and which of them are in X."""
    values = np.asarray(columns["value"], dtype=np.float64)
    rows = np.flatnonzero((np.asarray(columns["label:test"]) == test) & ~np.isnan(values))
    return rows, values[rows], np.asarray(columns["label:role"])[rows] == "X"


def _effects(columns: Columns, weights: np.ndarray, tests: Sequence[str]) -> np.ndarray:
    found = []
    for test in tests:
        rows, values, in_first = _targets(columns, test)
        found.append(effect_size(values, in_first, weights[rows]))
    return np.stack(found)


def _p_value(columns: Columns, test: str) -> float:
    """Return a test's p-value; drawn from a seed of its own, so that it is the same whatever other tests run."""
    _, values, in_first = _targets(columns, test)
    seed = int.from_bytes(hashlib.sha256(test.encode()).digest()[:8], "big")
    return permutation_p_value(values, in_first, seed=seed)


def _observed(weights: np.ndarray, compute: Callable[[], float]) -> np.ndarray:
    """Return a value in the columns of weights that are all one, computed if there is such a column; NaN elsewhere."""
    observed = (weights == 1.0).all(axis=0)
    return np.where(observed, compute() if observed.any() else np.nan, np.nan)


SENTENCE_DIGESTS = (
    ("heilman_double_bind_competent_1+3-", "21924ce01aaee12162d8833e4f1dc5c3c332ebbbc720e7736ef554851cf1e4d2"),
    ("heilman_double_bind_competent_1-", "08d78185021e1dc899ca349759906d42a74d245de62a624ca7cf24853c85f936"),
    ("heilman_double_bind_competent_1", "83260f3683107446d18f20d1653a63cf53e30660fb800b4419719c0548d81c5e"),
    ("heilman_double_bind_competent_one_sentence", "472b008cdeaebc97287e25dda29cee80fbcfdf976bbdcc267a9789c39580b2bf"),
    ("heilman_double_bind_likable_1+3-", "7bae0867001c671175d1582e1607fa16fbf3268a4862d68ee05b8b0a046c5663"),
    ("heilman_double_bind_likable_1-", "aa3c3b26c8059b7f6318b37f1d1133161dc0b28531f9f2e797acbf46c1c219ca"),
    ("heilman_double_bind_likable_1", "ebfc4ce95c6687a96d8cecdd453c51b252803b1cd94c98efccb4860a5612f139"),
    ("heilman_double_bind_likable_one_sentence", "76a61eade11c46470d40746a45fff48235339aebe6302a00e7edeb95c6498a06"),
    ("sent-angry_black_woman_stereotype", "d421fb37fbac73184d60a73b95b5585cfc9bf0683b8100a57cd87d6d1c149588"),
    ("sent-angry_black_woman_stereotype_b", "95b0bf8cde740bcd5241af89a217687dcf0a13bb48db8a628a49872df9bb1505"),
    ("sent-heilman_double_bind_competent_one_word", "cc99565db26eaea3b09fe73b93109a6c3c11decb7b320f73942abdd7f60fa5d4"),
    ("sent-heilman_double_bind_likable_one_word", "f3bb2f8e41caec232262ca3eec86ad4d773e1cb6fa5d0e33c7a863dccd40db7a"),
    ("sent-religion1", "39eceaa76103c32772bf6d13e78686a10272754e821c3197d07cf2bd4cee34e2"),
    ("sent-religion1b", "baddaead03ed69f50bb29ac3130108ca753fb6933ed0de435d3146403b51fbf5"),
    ("sent-religion2", "692ca32dc36305d34792aea17b9b1e3d520fe0f3c686f59d34159c9cfb3cdb2a"),
    ("sent-religion2b", "b7012c637402e85f00da240daf040b92888df4923c31a06e64998abf3a043521"),
    ("sent-weat1", "ff493f29fa0e0984b67e1502b0c04688473e189fd6d107c91054507ed73ff77a"),
    ("sent-weat10", "04dd864639909052e2ee1f386cfc0a99b5d5311c7c3ab0411396a6f5ddf0aeae"),
    ("sent-weat2", "58378442b8894e6987250a4ca52fc36495429c85695e9dcf952e9c4c31626609"),
    ("sent-weat3", "1e1b9f89f518ad5bba47cbe5bd1d08d679b296b3eb640ee0b060f080c5d7ffef"),
    ("sent-weat3b", "8db3f84b109031a8b86392fbd4544ca1b29f361d98b30b1e83a82b1ca60ee351"),
    ("sent-weat4", "5eb5a2bc5b36d8c0567b1992aea7adb015f3e170e4d24a220c2dca763f59a418"),
    ("sent-weat5", "2478d808135759371ee43754fa8efd89a928e434ad2981df61726b7328c5fb47"),
    ("sent-weat5b", "c0af61519bee074d0c3218bf8e5537b10fae5d795230422cd7bff92f90cafc26"),
    ("sent-weat6", "bcf1a6864e3da0e8982d70451721877f23e2efaf6aea33628df843d826b68ae2"),
    ("sent-weat6b", "8d1dd09833d1854784503c2eb9986d1951d684fb3289a18da85e72fa1e59e4ff"),
    ("sent-weat7", "86c151b640bc9ebf6f60cd94920ab1f5bff68ea1a993f322f729cf3620173e0f"),
    ("sent-weat7b", "16b7c23eb529421b411b508b2928b0d62e52cbb80cf40f8e9acbdfb52cd75350"),
    ("sent-weat8", "352fea8d5440800a219dd6141a6f5e414a708770bc2717bfc581bc249e108ded"),
    ("sent-weat8b", "c410535cac813f806d20a7f76f4bea62ee44f98d8828f8f0ac6a4b7694c414bc"),
    ("sent-weat9", "dd1b60d64dedde7ce532915a6a39cd8ec7d036e90896a6a854bfcd6315866c6c"),
)
WORD_DIGESTS = (
    ("angry_black_woman_stereotype", "06ac61a1054ff82596a4b713e1acc5d800e5b70e84b1dd24d9e32231854e8828"),
    ("angry_black_woman_stereotype_b", "69844f32f32f1f33264446d5a8ff75b11e896719c6627e8721a2e3153c493b9d"),
    ("heilman_double_bind_competent_one_word", "2926a59745fa07c4069cdfe5eec3153b3a1eb43e1edeefe41667765f2b87a32f"),
    ("heilman_double_bind_likable_one_word", "47566cb0cf9a96a102f96a8b4f5fa1a7ff5108fc9d51b7564adcae30f4031ae4"),
    ("weat1", "c12c192a4b8011590cfe7de237cb2e0dbcd0e7328e3b7baf63869ccfd61bc0ea"),
    ("weat10", "4878efc95d1bbb9c482fc90a5c2c379f9b5a990c7ea9e61f13611fff355a23bc"),
    ("weat2", "d907a10b5a84a72f4e60bf069562565aa88b0e0c84e26adb38a75536718e25b9"),
    ("weat3", "99e5fdbfe3749608afb803eb55d1fb291f81399862ba4cc2b21461ae82215bf7"),
    ("weat3b", "1642a16492fb2e65ff84c858f81ee50737825b96cc0ce880f3409b4dc2e8dd5a"),
    ("weat4", "c0d0c606d20a0ccb8759dcbddaea1b692a860e9dbeea2ccdcade3e3c25868dbb"),
    ("weat5", "7e1ac48a1c8b549200ce5e4c9ed7fd6f0c2c766485d04e73adee05358a9b3224"),
    ("weat5b", "95d5e31bebbe612274fcde0bb311c6fe012f26623522ac4a2b2c9a78ddbb9d2a"),
    ("weat6", "21681d3f4d7fdf97cf4cd2c0f9160940cfbd797ec62c7621b5600dc9e6e5b248"),
    ("weat6b", "b6c85b5228a3786827b528af3d633fbbddc4fbf05d93e6ceb6f76a4881386c1d"),
    ("weat7", "c7e68ec95e30f42df3faa9e1ba933596c9e49651e0017bb90c19d0f58312f2b0"),
    ("weat7b", "714c42ccf6ec71113fcb2064daa7b4dfc80b0cd4bb191c8d0196053681a9792b"),
    ("weat8", "86e650b44e8fd539a9082564f5ede5dae2ed67d120938b9c92a7495f143801e9"),
    ("weat8b", "db822460372ae472b8cf8fd41a44ca13e4f166bb9ee05ea13a983fe0301016ef"),
    ("weat9", "e4c9ab7cd719dcc05a2bd86c390de31ae2778db3c362b360206c0491751fe9f7"),
)


def _sources(digests: Sequence[tuple[str, str]]) -> dict[str, SourceFile]:
    """Return the file of each test."""
    return {
        test: SourceFile(
            f"seat/{test}.jsonl", github_url(REPOSITORY, COMMIT, f"data/seat/{test}.jsonl"), f"sha256:{digest}"
        )
        for test, digest in digests
    }


def _benchmark(name: str, title: str, sources: Mapping[str, SourceFile], source: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        load=lambda files: load_tests(files, sources),
        readouts=tuple(
            Readout("vectors", kind, ask_vectors, judge, chunk=ALL_AT_ONCE, answers=COMPLETIONS)
            for kind in (ENCODER, MASKED, CAUSAL)
        ),
        metrics=METRICS,
        source=source,
        licence="not stated in bias-bench, whose files these are; the tests come from sent-bias",
        criticism=(
            "Its authors see patterns of sensitivity which suggest that its assumptions may not hold (May et al. "
            "2019); published p-values depend on which tests ran before (bias-bench seeds once)."
        ),
        breakdown=("test", "domain"),
        files=tuple(sources.values()),
        whole="test",
    )


METRICS = (
    Metric(
        "mean_absolute_effect_size",
        mean_absolute_effect_size,
        BIAS,
        "sentences of one group of people associate more strongly with one set of attributes, whichever it is",
        neutral=0.0,
        magnitude=True,
    ),
    Metric(
        "effect_size",
        effect_size_of,
        BIAS,
        "the first targets (X) associate more with the first attributes (A), the second ones (Y) with the second (B)",
        neutral=0.0,
    ),
    Metric("p_value", p_value_of, BIAS, "the association is weaker evidence against chance"),
    Metric(
        "share_significant",
        share_significant,
        BIAS,
        f"more tests show an association of the stereotyped sign with a p-value below {SIGNIFICANCE}",
        neutral=0.0,
        magnitude=True,
        unit="%",
    ),
)
SENTENCE_TESTS, WORD_TESTS = _sources(SENTENCE_DIGESTS), _sources(WORD_DIGESTS)
BENCHMARKS = (
    _benchmark(
        "seat",
        "SEAT",
        SENTENCE_TESTS,
        "May et al. On Measuring Social Biases in Sentence Encoders. NAACL 2019; as in Meade et al., ACL 2022.",
    ),
    _benchmark(
        "weat",
        "WEAT",
        WORD_TESTS,
        "Caliskan, Bryson, Narayanan. Semantics derived automatically from language corpora contain human-like biases. "
        "Science 2017.",
    ),
)
