"""Deal the training subjects to shards and slices, once and for all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fairsisa.errors import PartitionError
from fairsisa.lineage import derive_seed
from fairsisa.tables import TRAIN, Examples

RISK_UNIT = 2.0**-32
COLUMNS = ("example_id", "subject_id", "shard", "slice")


@dataclass(frozen=True)
class Partition:
    """The fixed assignment of subjects to shards and slices, both counted from 0.

    `example_ids` and `subject_ids` are aligned, in canonical training order: by shard, slice and example id, whatever
    the order of the table they came from. `sizes` holds the number of examples of each (shard, slice), in that order.
    """

    num_shards: int
    num_slices: int
    strategy: str
    seed: int
    example_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def shard(self) -> np.ndarray:
        """The shard of each example, int64, shape (num_examples,)."""
        return self._cells() // self.num_slices

    @property
    def slice(self) -> np.ndarray:
        """The slice of each example within its shard, int64, shape (num_examples,)."""
        return self._cells() % self.num_slices

    def slice_ids(self, shard: int, slice: int) -> tuple[str, ...]:  # noqa: A002
        """Return the example ids of one slice in canonical order; none when all were removed."""
        if not (0 <= shard < self.num_shards and 0 <= slice < self.num_slices):
            raise PartitionError(
                f"Expected shard < {self.num_shards} and slice < {self.num_slices}, got shard {shard}, slice {slice}."
            )
        ends = [0, *accumulate(self.sizes)]
        cell = shard * self.num_slices + slice
        return self.example_ids[ends[cell] : ends[cell + 1]]

    def without(self, gone: Iterable[str]) -> Partition:
        """Return the partition less some example ids; no other moves, and ids it does not hold are passed over."""
        forgotten = frozenset(gone)
        keep = np.fromiter((i not in forgotten for i in self.example_ids), dtype=bool, count=len(self.example_ids))
        sizes = np.bincount(self._cells()[keep], minlength=len(self.sizes))
        return replace(
            self,
            example_ids=tuple(i for i, kept in zip(self.example_ids, keep, strict=True) if kept),
            subject_ids=tuple(i for i, kept in zip(self.subject_ids, keep, strict=True) if kept),
            sizes=tuple(sizes.tolist()),
        )

    def with_slice(self, examples: Examples) -> Partition:
        """Return the partition with one more slice in every shard, which holds the train examples it lacks.

        No example moves. A subject it knows stays in its shard; a new one is dealt by the keyed hash of its id, as by
        the strategy "uniform". A shard that gets none has an empty slice.

        Raises:
            PartitionError: when `examples` hold no train example beside those of the partition.
        """
        known = set(self.example_ids)
        train = examples.split(TRAIN)
        rows = train[~train["example_id"].isin(known).to_numpy(dtype=bool)]
        if rows.empty:
            raise PartitionError(f"Expected new train examples in {examples.name!r}, got none: nothing to add.")
        new = rows[["example_id", "subject_id"]].reset_index(drop=True)
        homes = dict(zip(self.subject_ids, self.shard.tolist(), strict=True))
        dealt = _draws(new["subject_id"].tolist(), self.seed)[:, 0] % np.uint64(self.num_shards)
        shard = [homes.get(subject, int(draw)) for subject, draw in zip(new["subject_id"], dealt, strict=True)]
        frame = pd.concat([self.frame(), new.assign(shard=shard, slice=self.num_slices)], ignore_index=True)
        return Partition.from_frame(
            frame,
            num_shards=self.num_shards,
            num_slices=self.num_slices + 1,
            strategy=self.strategy,
            seed=self.seed,
        )

    def frame(self) -> pd.DataFrame:
        """Return the table example_id, subject_id (str), shard, slice (int64), one row per training example."""
        columns = (list(self.example_ids), list(self.subject_ids), self.shard, self.slice)
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, num_shards: int, num_slices: int, strategy: str, seed: int
    ) -> Partition:
        """Return the partition that `frame` describes, its rows in any order.

        Raises:
            PartitionError: when a column is missing, a shard or slice is out of range, an example id repeats, or a
                subject is in two shards.
        """
        _check_counts(num_shards, num_slices)
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise PartitionError(f"Expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} not found.")
        for column, count in (("shard", num_shards), ("slice", num_slices)):
            bad = ~frame[column].isin(range(count)).to_numpy(dtype=bool)
            if bad.any():
                row = frame.iloc[int(bad.argmax())]
                raise PartitionError(f"Expected {column} < {count}, got {row[column]} for example {row.example_id!r}.")
        _check_unique(frame)
        cells = frame["shard"].to_numpy(np.int64) * num_slices + frame["slice"].to_numpy(np.int64)
        return _arrange(frame, cells, num_shards=num_shards, num_slices=num_slices, strategy=strategy, seed=seed)

    def _cells(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


@dataclass(frozen=True)
class Subjects:
    """The training subjects, and what the strategies read of them; nothing here depends on the order of rows.

    `codes` gives the subject of each example, shape (num_examples,); `frame` holds the examples by example id.
    `draws` are two independent hashes of each subject id, uint64, shape (num_subjects, 2).
    """

    frame: pd.DataFrame
    codes: np.ndarray
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.draws)


def partition_examples(
    examples: Examples,
    *,
    num_shards: int,
    num_slices: int,
    strategy: str = "uniform",
    seed: int = 0,
    sensitive_feature: str | None = None,
) -> Partition:
    """Deal the train split's subjects to shards and slices; no subject is ever split.

    "uniform": shard and slice are keyed hashes of the subject id, so each subject's place depends on itself, `seed`
    and the two counts alone, and new subjects move nobody (Bourtoule et al. 2021, section IV, with hashing for
    drawing). "stratified": subjects are dealt in turn within their stratum, which is the most frequent pair of label
    and group among their examples (label alone without a sensitive feature; the unknown group counts as one).
    "risk_aware": Bourtoule et al. 2021, Algorithm 1, on `risk`; see `risk_shards`. The last two are fixed by the
    returned table: later removals go through `Partition.without`.

    Raises:
        PartitionError: when there are fewer subjects than shards, a shard would be empty, the strategy is unknown,
            or a column it reads is missing.
    """
    _check_counts(num_shards, num_slices)
    deal = STRATEGIES.get(strategy)
    if deal is None:
        raise PartitionError(f"Expected a strategy of {', '.join(STRATEGIES)}, got {strategy!r}.")
    if sensitive_feature is not None and strategy != "stratified":
        raise PartitionError(
            f"The strategy {strategy!r} reads no sensitive feature, got {sensitive_feature!r}: "
            "drop it, or ask for strategy=stratified."
        )
    subjects = _subjects(examples, seed, sensitive_feature)
    if len(subjects) < num_shards:
        raise PartitionError(
            f"Expected at least one subject a shard, got {len(subjects)} subjects for {num_shards} shards."
        )
    shard, place = deal(subjects, num_shards, num_slices)
    empty = np.setdiff1d(np.arange(num_shards), shard)
    if len(empty):
        raise PartitionError(
            f"Shard {empty[0]} of {num_shards} got none of {len(subjects)} subjects: "
            "ask for fewer shards, another seed, or strategy=stratified."
        )
    cells = (shard * num_slices + place)[subjects.codes]
    return _arrange(subjects.frame, cells, num_shards=num_shards, num_slices=num_slices, strategy=strategy, seed=seed)


def risk_shards(risks: np.ndarray, num_shards: int) -> np.ndarray:
    """Return the shard of each subject, given ascending risks in [0, 1], shape (num_subjects,).

    Algorithm 1 of Bourtoule et al. 2021 opens a new shard whenever the expected number of requests in the current
    one would reach a capacity C. Here the number of shards is given, and C is the smallest for which the algorithm
    makes no more than that many. Departures: risks are rounded to multiples of 2**-32, so that sums are exact; and
    no shard is left empty, as the paper's does before a first subject whose own risk reaches C.

    Raises:
        PartitionError: when every capacity gives more shards than asked, or fewer.
    """
    units = np.rint(risks / RISK_UNIT).astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(units)])
    low, high = 0, int(sums[-1]) + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(_cuts(sums, middle, num_shards)) <= num_shards
        low, high = (low, middle) if fits else (middle, high)
    starts = _cuts(sums, high, num_shards)
    if len(starts) < num_shards:
        raise PartitionError(
            f"Expected {num_shards} shards of equal expected requests, got {len(starts)}: with these risks "
            f"Algorithm 1 makes {len(starts)} or more than {num_shards}; ask for num_shards={len(starts)}."
        )
    return np.searchsorted(starts, np.arange(len(risks)), side="right") - 1


def _cuts(sums: np.ndarray, capacity: int, most: int) -> list[int]:
    starts = [0]
    while len(starts) <= most:
        reach = int(np.searchsorted(sums, sums[starts[-1]] + capacity, side="left")) - 1
        following = max(reach, starts[-1] + 1)
        if following >= len(sums) - 1:
            break
        starts.append(following)
    return starts


def _deal_uniformly(subjects: Subjects, num_shards: int, num_slices: int) -> tuple[np.ndarray, np.ndarray]:
    shard = subjects.draws[:, 0] % np.uint64(num_shards)
    place = subjects.draws[:, 1] % np.uint64(num_slices)
    return shard.astype(np.int64), place.astype(np.int64)


def _deal_by_stratum(subjects: Subjects, num_shards: int, num_slices: int) -> tuple[np.ndarray, np.ndarray]:
    turn = np.empty(len(subjects), dtype=np.int64)
    turn[np.lexsort((subjects.draws[:, 1], subjects.draws[:, 0], _strata(subjects)))] = np.arange(len(subjects))
    return turn % num_shards, turn // num_shards % num_slices


def _deal_by_risk(subjects: Subjects, num_shards: int, num_slices: int) -> tuple[np.ndarray, np.ndarray]:
    risks = _risks(subjects)
    order = np.lexsort((subjects.draws[:, 1], subjects.draws[:, 0], risks))
    shard, place = np.empty((2, len(subjects)), dtype=np.int64)
    shard[order] = risk_shards(risks[order], num_shards)
    sizes = np.bincount(shard, minlength=num_shards)
    ranks = np.arange(len(subjects)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place[order] = ranks * num_slices // np.repeat(sizes, sizes)
    return shard, place


STRATEGIES: Mapping[str, Callable[[Subjects, int, int], tuple[np.ndarray, np.ndarray]]] = MappingProxyType(
    {"uniform": _deal_uniformly, "stratified": _deal_by_stratum, "risk_aware": _deal_by_risk}
)


def _subjects(examples: Examples, seed: int, sensitive_feature: str | None) -> Subjects:
    columns = ["example_id", "subject_id", "label"]
    frame = examples.frame[columns + [name for name in ("risk",) if name in examples.frame.columns]]
    if sensitive_feature is not None:
        frame = frame.assign(group=examples.sensitive(sensitive_feature))
    frame = frame[examples.frame["split"] == TRAIN]
    frame = frame.iloc[_order(frame["example_id"])].reset_index(drop=True)
    codes, names = pd.factorize(frame["subject_id"])
    return Subjects(frame, codes, _draws(names, seed))


def _draws(names: Iterable[str], seed: int) -> np.ndarray:
    key = derive_seed(seed, "partition").to_bytes(8, "little")
    start = hashlib.blake2b(key=key, person=b"fairsisa", digest_size=16)
    digests = []
    for name in names:
        state = start.copy()
        state.update(name.encode())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def _strata(subjects: Subjects) -> np.ndarray:
    frame = subjects.frame
    strata = frame["label"].to_numpy(np.int64)
    if "group" in frame.columns:
        groups, known = pd.factorize(frame["group"], sort=True)
        groups[groups < 0] = len(known)
        strata = strata * (len(known) + 1) + groups
    base = int(strata.max()) + 1
    pairs, counts = np.unique(subjects.codes * base + strata, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // base))
    first = np.searchsorted(pairs[order] // base, np.arange(len(subjects)))
    return np.asarray(pairs[order][first] % base)


def _risks(subjects: Subjects) -> np.ndarray:
    if "risk" not in subjects.frame.columns:
        raise PartitionError(
            "The strategy 'risk_aware' reads the column 'risk' (the probability that an example's deletion is asked "
            "for), which the examples lack: add it, or choose another strategy."
        )
    order = np.argsort(subjects.codes, kind="stable")
    stays = 1.0 - subjects.frame["risk"].to_numpy(np.float64)[order]
    starts = np.searchsorted(subjects.codes[order], np.arange(len(subjects)))
    return np.asarray(1.0 - np.multiply.reduceat(stays, starts))


def _arrange(
    frame: pd.DataFrame, cells: np.ndarray, *, num_shards: int, num_slices: int, strategy: str, seed: int
) -> Partition:
    by_id = _order(frame["example_id"])
    order = by_id[np.argsort(cells[by_id], kind="stable")]
    ordered = frame.iloc[order]
    sizes = np.bincount(cells, minlength=num_shards * num_slices)
    return Partition(
        num_shards=num_shards,
        num_slices=num_slices,
        strategy=strategy,
        seed=seed,
        example_ids=tuple(ordered["example_id"].tolist()),
        subject_ids=tuple(ordered["subject_id"].tolist()),
        sizes=tuple(sizes.tolist()),
    )


def _order(names: pd.Series) -> np.ndarray:
    return np.asarray(pc.sort_indices(pa.array(names, type=pa.large_string())).to_numpy())


def _check_counts(num_shards: int, num_slices: int) -> None:
    for what, count in (("num_shards", num_shards), ("num_slices", num_slices)):
        if count < 1:
            raise PartitionError(f"Expected {what} of at least 1, got {count}.")


def _check_unique(frame: pd.DataFrame) -> None:
    repeated = frame["example_id"].duplicated()
    if repeated.any():
        raise PartitionError(f"Example {frame['example_id'][repeated].iloc[0]!r} is in the partition more than once.")
    places = frame[["subject_id", "shard"]].drop_duplicates()
    split = places["subject_id"].duplicated()
    if split.any():
        raise PartitionError(f"Subject {places['subject_id'][split].iloc[0]!r} is in more than one shard.")
