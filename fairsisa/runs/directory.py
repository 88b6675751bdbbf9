"""A run's directory: its settings, its data as dealt, and what was made from them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fairsisa.errors import DataError, FairsisaError, RunError
from fairsisa.lineage import canonical_json
from fairsisa.settings import RunSettings, StorageSettings, plain, run_settings, settings_from
from fairsisa.sisa.partition import Partition
from fairsisa.store import Store
from fairsisa.store.durable import PARTIAL, delete, explained, make_folder, write_durably
from fairsisa.tables import Examples, read_examples, write_examples

CONFIG, ENSEMBLE, ENVIRONMENT = "config.yaml", "ensemble.json", "environment.json"
LEDGER, TABLES, REPLAY = "ledger.sqlite", "tables", ".replay-"
UNTRAINED, DEGRADED, WHOLE = "untrained", "degraded", "whole"


@dataclass(frozen=True)
class Descendant:
    """A student, or compressed copies, that a run keeps under a name.

    `verb`, "distil" or "compress", with its plain `settings` (and, for "compress", `calibration`) says how it is made.
    `models` maps a member to its artefact: "student", or the constituents with a model each. It is empty while the
    descendant is out of service, and `reason` says why. `predictions` maps a split to the scores of each member.
    """

    verb: str
    settings: Mapping[str, Any]
    calibration: Mapping[str, Any]
    models: Mapping[str, str]
    predictions: Mapping[str, Mapping[str, str]]
    reason: str | None = None

    @property
    def names(self) -> frozenset[str]:
        """The names of its artefacts, predictions included."""
        return frozenset(self.models.values()).union(*(made.values() for made in self.predictions.values()))


@dataclass(frozen=True)
class Ensemble:
    """What a run serves: the checkpoint after every slice of every constituent, and what they predict.

    `checkpoints` and `baselines` map a constituent to the names of its checkpoints, in slice order; `predictions` maps
    a split and a constituent to the name of its scores. A constituent without predictions has left the vote. `status`
    is "whole"; "degraded" while constituents that a deletion touched are being retrained, and left out; or
    "untrained". `generation` counts the changes of the run's tables, `tables` holds the SHA-256 of each.
    `postprocessors` maps a name to the plain values `settings`, `groups` (those it was first fitted for), `artefact`
    (its name in the store, or None while it is out of service) and `reason` (why it is). `descendants` are the students
    and compressed copies, by name.
    """

    checkpoints: Mapping[str, tuple[str, ...]]
    baselines: Mapping[str, tuple[str, ...]]
    predictions: Mapping[str, Mapping[str, str]]
    status: str = WHOLE
    generation: int = 0
    tables: Mapping[str, str] = field(default_factory=dict)
    postprocessors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    descendants: Mapping[str, Descendant] = field(default_factory=dict)

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """The checkpoints of constituents and baselines, by name."""
        return {**self.checkpoints, **self.baselines}

    @property
    def names(self) -> frozenset[str]:
        """The names of all checkpoints, predictions, post-processors and descendants."""
        names = {name for steps in self.chains.values() for name in steps}
        names = names.union(*(made.names for made in self.descendants.values()))
        names |= {entry["artefact"] for entry in self.postprocessors.values() if entry["artefact"] is not None}
        return frozenset(names.union(*(made.values() for made in self.predictions.values())))


class Run:
    """A handle on a run's directory. Every file in it is replaced whole; one command at a time may write.

    `ensemble.json` is what readers follow: it names the checkpoints, the predictions and the generation of the tables.
    So one rename switches the models and the data they were trained on together.

    Raises:
        RunError: from every method that reads, when what it needs is not there, naming the command that makes it.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser()

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.path(ENSEMBLE).is_file()

    @cached_property
    def store(self) -> Store:
        """The store that holds the run's artefacts."""
        return Store(self._config()["store"])

    @cached_property
    def settings(self) -> RunSettings:
        """The settings the run was begun with, resolved; they are read back, never composed again."""
        return run_settings(self._config()["settings"])

    @property
    def storage(self) -> StorageSettings:
        """Which checkpoints the run keeps, as it was last asked."""
        return settings_from(StorageSettings, self._config()["storage"], "store")

    @property
    def source(self) -> str | None:
        """The SHA-256 of the user's own data file when the run was begun; None for a named corpus."""
        digest: str | None = self._config()["source"]
        return digest

    @property
    def examples(self) -> Examples:
        """The examples table: what the run was begun with, less what was forgotten, and what was added."""
        examples: Examples = self._current("examples", read_examples)
        return examples

    @property
    def partition(self) -> Partition:
        """The assignment of training subjects to shards and slices."""
        table = self.read_table("partition")
        return Partition.from_frame(table.to_pandas(), **json.loads((table.schema.metadata or {})[b"fairsisa"]))

    @property
    def num_slices(self) -> int:
        """The number of slices of each shard, those added later included."""
        metadata = self._current("partition", pq.read_schema).metadata or {}
        return int(json.loads(metadata[b"fairsisa"])["num_slices"])

    @property
    def ensemble(self) -> Ensemble:
        """The checkpoints and predictions that are published."""
        self.require_trained()
        return self.pointer

    def require_trained(self) -> None:
        """Raise RunError unless an ensemble is published."""
        if self.pointer.status == UNTRAINED:
            raise RunError(
                f"{self.directory} is not trained: run `fairsisa train run={self.directory} ...` to its end."
            )

    @property
    def pointer(self) -> Ensemble:
        """What `ensemble.json` says, also before training has ended."""
        path = self._require(ENSEMBLE)
        with intact(path):
            values = json.loads(path.read_text(encoding="utf-8"))
            digest = values.pop("digest", None)
            if digest not in (None, _digest(values)):
                raise ValueError("its contents are not those of its digest")
            for key in ("checkpoints", "baselines"):
                values[key] = {name: tuple(steps) for name, steps in values[key].items()}
            # Runs of earlier versions have neither these nor a digest; a key that no field has is damage, and an error.
            made = values.setdefault("descendants", {})
            values["descendants"] = {name: Descendant(**entry) for name, entry in made.items()}
            return Ensemble(**values)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and command of the training that began the run."""
        path = self._require(ENVIRONMENT)
        with intact(path):
            return dict(json.loads(path.read_text(encoding="utf-8")))

    def path(self, *parts: str) -> Path:
        """Return a path inside the run."""
        return self.directory.joinpath(*parts)

    def table(self, name: str, generation: int | None = None) -> Path:
        """Return the file of the table "examples" or "partition", of the current generation by default."""
        number = self.pointer.generation if generation is None else generation
        return self.path(TABLES, f"{name}-{number}.parquet")

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the current table of that name, or some of its columns, its bytes verified."""
        return self._current(name, partial(pq.read_table, columns=columns))

    def begin(
        self,
        settings: RunSettings,
        examples: Examples,
        partition: Partition,
        *,
        source: str | None,
        store: str,
        environment: Mapping[str, Any],
    ) -> None:
        """Write down what the run is made from; the pointer comes last, so that a run that exists is whole.

        `source` is the digest of the user's own data file, if the data came from one.
        """
        make_folder(self.directory)
        self.write(ENVIRONMENT, json.dumps(environment, indent=1))
        config = {"store": store, "source": source, "storage": plain(StorageSettings())}
        config |= {"settings_digest": _digest(plain(settings)), "settings": plain(settings)}
        self.write(CONFIG, yaml.safe_dump(config, sort_keys=False))
        self.publish(Ensemble({}, {}, {}, UNTRAINED), examples, partition)

    def keep(self, storage: StorageSettings) -> None:
        """Write down another retention policy."""
        self.write(CONFIG, yaml.safe_dump({**self._config(), "storage": plain(storage)}, sort_keys=False))

    def publish(
        self, ensemble: Ensemble, examples: Examples | None = None, partition: Partition | None = None
    ) -> Ensemble:
        """Switch to the given checkpoints and predictions, and to new tables where given, at once; return the pointer.

        Tables of former generations stay until `prune`.
        """
        number, digests = (self.pointer.generation, self.pointer.tables) if self.exists else (-1, {})
        if examples is not None and partition is not None:
            number += 1
            self._write_table("examples", number, partial(write_examples, examples))
            self._write_table("partition", number, partial(_write_partition, partition))
            digests = {name: file_digest(self.table(name, number)) for name in ("examples", "partition")}
        ensemble = replace(ensemble, generation=number, tables=dict(digests))
        values = asdict(ensemble)
        self.write(ENSEMBLE, json.dumps(values | {"digest": _digest(values)}, indent=1))
        return ensemble

    def mend(self) -> None:
        """Delete what is damaged of the artefacts that are served, so that it is found missing, and made again."""
        self.store.mend(self.pointer.names)

    def prune(self) -> tuple[Path, ...]:
        """Delete the tables of other generations, and files of unfinished writes; return what was deleted."""
        keep = {self.table(name) for name in ("examples", "partition")}
        files = {*self.path(TABLES).glob("*"), *self.directory.rglob("*" + PARTIAL)} - keep
        for folder in self.directory.glob(REPLAY + "*"):
            shutil.rmtree(folder)
        return tuple(delete(sorted(path for path in files if path.is_file())))

    def write(self, name: str, text: str) -> Path:
        """Replace a file of the run by `text`, durably; return its path."""
        path = self.path(name)
        with explained(f"write {path}"):
            write_durably(path, text.encode())
        return path

    @contextmanager
    def locked(self, otherwise: str = "choose another run=") -> Iterator[None]:
        """Hold the run for writing.

        Raises:
            RunError: at once, when another command holds it; `otherwise` is what to do instead of waiting.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path(".lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise RunError(f"Another command is at work on {self.directory}: wait for it, or {otherwise}.") from error
        try:
            yield
        finally:
            lock.release()

    def _current(self, name: str, read: Callable[[Path], Any]) -> Any:
        """Read a table of the current generation, also when another command switches to the next one meanwhile."""
        path = self.table(name)
        try:
            with intact(path):
                if file_digest(path) != self.pointer.tables[name]:
                    raise ValueError(f"its SHA-256 is not the one in {ENSEMBLE}")
                return read(path)
        except (DataError, RunError):
            if path == self.table(name):
                raise
        return self._current(name, read)

    def _write_table(self, name: str, generation: int, write: Callable[[Path], None]) -> None:
        path = self.table(name, generation)
        with explained(f"write {path}"):
            make_folder(path.parent)
            write(path)
            _settle(path)

    def _config(self) -> dict[str, Any]:
        path = self._require(CONFIG)
        with intact(path):
            config = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
            if _digest(config["settings"]) != config["settings_digest"]:  # what is cut off would take its default
                raise ValueError("its settings are not those of its digest")
            return {name: config[name] for name in ("store", "source", "storage", "settings_digest", "settings")}

    def _require(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            if name != ENSEMBLE and self.exists:
                raise RunError(f"{self.directory} has lost its {name}: restore it from a backup.")
            raise RunError(
                f"{self.directory} has no {name}: train it first, `fairsisa train run={self.directory} ...`."
            )
        return path


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a RunError that names it."""
    try:
        yield
    except FairsisaError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged ({error}): restore it from a backup.") from error


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values, "values")).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_partition(partition: Partition, path: Path) -> None:
    table = pa.Table.from_pandas(partition.frame(), preserve_index=False)
    header = {name: getattr(partition, name) for name in ("num_shards", "num_slices", "strategy", "seed")}
    header_bytes = {b"fairsisa": json.dumps(header).encode()}
    unfinished = path.with_name(path.name + PARTIAL)
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **header_bytes}), unfinished)
    unfinished.replace(path)


def _settle(path: Path) -> None:
    """Return once a file and its place in the folder are on the disk."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
