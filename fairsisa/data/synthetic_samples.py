"""Draw examples from a world, as rows of features or as reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.data.columns import DEFAULT_FRACTIONS, keyed_splits, require_known
from fairsisa.data.synthetic import REGIONS, CueWorld, GaussianWorld
from fairsisa.errors import ConfigError
from fairsisa.tables import FEATURE, SENSITIVE, Examples

NUM_MIXED, NUM_NUISANCE = 4, 3
SENSITIVE_NAME = "region"
CLASSES = ("unhappy", "happy")

OPENINGS = (
    "We spent a weekend at an inn on the {region} coast.",
    "Last spring I stayed at a guest house in the {region} hills.",
    "Our family booked a cottage near the {region} lakes.",
    "After a long walk we stopped at a lodge in the {region} woods.",
    "I visited a small hotel in the {region} quarter of the town.",
    "My sister and I tried the old farmhouse in the {region} valley.",
)
ASPECTS = (
    "room", "breakfast", "view", "garden", "welcome", "bed", "music", "bread", "terrace", "tea", "bathroom", "soup",
)  # fmt: skip
PRAISE = ("lovely", "wonderful", "charming", "excellent", "delightful", "splendid", "superb", "pleasant")
BLAME = ("dreadful", "disappointing", "poor", "dull", "shabby", "mediocre", "awful", "tiresome")


@dataclass(frozen=True)
class Draw:
    """Subjects, groups and labels of a sample, as integers, each of shape (num_examples,)."""

    subjects: np.ndarray
    groups: np.ndarray
    labels: np.ndarray


def sample_world(
    world: GaussianWorld | CueWorld,
    num_examples: int,
    *,
    seed: int,
    repeat_share: float = 0.0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
) -> Examples:
    """Draw an examples table: features from a `GaussianWorld`, reviews from a `CueWorld`.

    The only sensitive feature is `region`; the classes are unhappy and happy. An example belongs to the same subject as
    the one before with probability `repeat_share` in [0, 1); a subject has one region, and each row by itself follows
    the world's law whatever `repeat_share`. Subjects are dealt in `fractions` by a keyed hash. The same arguments give
    the same examples, run after run.

    Raises:
        ConfigError: when `num_examples` or `repeat_share` is out of range.
    """
    if num_examples < 1:
        raise ConfigError(f"Expected num_examples of at least 1, got {num_examples}.")
    if not 0.0 <= repeat_share < 1.0:
        raise ConfigError(f"Expected repeat_share of at least 0 and below 1, got {repeat_share}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    draw = _draw(world, num_examples, repeat_share, rng)
    regions = np.asarray(REGIONS, dtype=object)[draw.groups]
    subjects = np.asarray([f"person-{subject:06d}" for subject in draw.subjects], dtype=object)
    table: dict[str, Any] = {
        "example_id": [f"synthetic-{row:06d}" for row in range(num_examples)],
        "subject_id": subjects,
        "label": draw.labels,
        "split": keyed_splits(subjects, fractions),
    }
    if isinstance(world, GaussianWorld):
        table |= _features(world, draw, regions, rng)
    else:
        table["text"] = _reviews(world, draw, regions, rng)
    table[SENSITIVE + SENSITIVE_NAME] = regions
    kind = "tabular" if isinstance(world, GaussianWorld) else "text"
    return Examples(f"synthetic_{kind}", pd.DataFrame(table), CLASSES)


def load_synthetic_text(
    *,
    num_examples: int = 2000,
    seed: int = 0,
    repeat_share: float = 0.2,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    world: Mapping[str, Any] | None = None,
) -> Examples:
    """Draw reviews; `world` gives the fields of `CueWorld` that differ from its defaults. See `sample_world`."""
    law = CueWorld(**_world_fields(CueWorld, world))
    return sample_world(law, num_examples, seed=seed, repeat_share=repeat_share, fractions=fractions)


def load_synthetic_tabular(
    *,
    num_examples: int = 2000,
    seed: int = 0,
    repeat_share: float = 0.2,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    world: Mapping[str, Any] | None = None,
) -> Examples:
    """Draw features; `world` gives the fields of `GaussianWorld` that differ from its defaults. See `sample_world`."""
    law = GaussianWorld(**_world_fields(GaussianWorld, world))
    return sample_world(law, num_examples, seed=seed, repeat_share=repeat_share, fractions=fractions)


def recover_score(examples: Examples) -> np.ndarray:
    """Return the score each sampled example was made from, float64, shape (num_examples,).

    Features give it back up to single precision, reviews exactly, by counting the words of praise.
    """
    if examples.is_text:
        return np.asarray([count_praise(text) for text in examples.frame["text"]], dtype=np.float64)
    mixed = [f"{FEATURE}mixed_{index}" for index in range(NUM_MIXED)]
    return reflect(examples.frame[mixed].to_numpy(dtype=np.float64))[:, 0]


def count_praise(text: str) -> int:
    """Return the number of praising words in a sampled review."""
    return sum(text.count(f" was {word}.") for word in PRAISE)


def reflect(rows: np.ndarray) -> np.ndarray:
    """Return x - 2 v (v.x) / (v.v) for each row x, with v = (1, ..., d); shape as given, (num_rows, d).

    This Householder reflection is orthogonal and its own inverse; it spreads the first coordinate over all.
    """
    axis = np.arange(1.0, rows.shape[1] + 1.0)
    along = sum(rows[:, index] * axis[index] for index in range(len(axis)))
    return np.asarray(rows - (2.0 / (axis**2).sum()) * np.multiply.outer(along, axis))


def _world_fields(kind: type[GaussianWorld | CueWorld], given: Mapping[str, Any] | None) -> dict[str, Any]:
    named = {} if given is None else given
    require_known("options.world", "field", named, [field.name for field in fields(kind)])
    return {name: _tuples(value) for name, value in named.items() if value is not None}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _draw(world: GaussianWorld | CueWorld, num_examples: int, repeat_share: float, rng: np.random.Generator) -> Draw:
    starts = rng.random(num_examples) >= repeat_share
    starts[0] = True
    subjects = np.cumsum(starts) - 1
    inner = np.cumsum(world.group_shares)[:-1]
    groups = np.searchsorted(inner, rng.random(num_examples), side="right")[np.flatnonzero(starts)][subjects]
    labels = (rng.random(num_examples) < np.asarray(world.base_rates)[groups]).astype(np.int64)
    return Draw(subjects, groups, labels)


def _features(world: GaussianWorld, draw: Draw, regions: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the reflected (score, noise, noise, noise), pure noise, and the region one-hot."""
    noise = rng.standard_normal((len(draw.labels), NUM_MIXED + NUM_NUISANCE))
    noise[:, 0] += world.means[draw.groups, draw.labels]
    mixed = reflect(noise[:, :NUM_MIXED]).astype(np.float32)
    nuisance = noise[:, NUM_MIXED:].astype(np.float32)
    names = REGIONS[: len(world.group_shares)]
    return (
        {f"{FEATURE}mixed_{index}": mixed[:, index] for index in range(NUM_MIXED)}
        | {f"{FEATURE}nuisance_{index}": nuisance[:, index] for index in range(NUM_NUISANCE)}
        | {f"{FEATURE}region={name}": (regions == name).astype(np.float32) for name in names}
    )


def _reviews(world: CueWorld, draw: Draw, regions: np.ndarray, rng: np.random.Generator) -> list[str]:
    shape = (len(draw.labels), world.num_cues)
    praised = rng.random(shape) < np.asarray(world.cue_rates)[draw.groups, draw.labels][:, None]
    openings = np.asarray(OPENINGS, dtype=object)[rng.integers(len(OPENINGS), size=shape[0])]
    aspects = np.asarray(ASPECTS, dtype=object)[rng.random((shape[0], len(ASPECTS))).argsort(axis=1)[:, : shape[1]]]
    words = np.where(praised, _pick(PRAISE, shape, rng), _pick(BLAME, shape, rng))
    return [
        " ".join([opening.format(region=region), *map("The {} was {}.".format, row_aspects, row_words)])
        for opening, region, row_aspects, row_words in zip(openings, regions, aspects, words, strict=True)
    ]


def _pick(words: Sequence[str], shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return np.asarray(words, dtype=object)[rng.integers(len(words), size=shape)]
