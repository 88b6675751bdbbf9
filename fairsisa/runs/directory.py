"""A run's directory: its settings, its data as dealt, and what was made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fairsisa.errors import RunError
from fairsisa.settings import RunSettings, plain, run_settings
from fairsisa.sisa.partition import Partition
from fairsisa.store import Store
from fairsisa.tables import Examples, read_examples, write_examples

CONFIG, EXAMPLES, PARTITION = "config.yaml", "examples.parquet", "partition.parquet"
ENSEMBLE, ENVIRONMENT = "ensemble.json", "environment.json"


@dataclass(frozen=True)
class Ensemble:
    """What a run serves: the checkpoint after every slice of every constituent, and what they predict.

    `checkpoints` and `baselines` map a constituent to the names of its checkpoints, in slice order; `predictions` maps
    a split and a constituent to the name of its scores. A constituent without predictions has left the vote.
    """

    checkpoints: Mapping[str, tuple[str, ...]]
    baselines: Mapping[str, tuple[str, ...]]
    predictions: Mapping[str, Mapping[str, str]]


class Run:
    """A handle on a run's directory. Every file in it is replaced whole; one command at a time may write.

    Raises:
        RunError: from every method that reads, when what it needs is not there, naming the command that makes it.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser()

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.path(CONFIG).is_file()

    @property
    def store(self) -> Store:
        """The store that holds the run's artefacts."""
        return Store(Path(self._config()["store"]))

    @property
    def settings(self) -> RunSettings:
        """The settings the run was begun with, resolved; they are read back, never composed again."""
        return run_settings(self._config()["settings"])

    @property
    def source(self) -> str | None:
        """The SHA-256 of the user's own data file when the run was begun; None for a named corpus."""
        digest: str | None = self._config()["source"]
        return digest

    @property
    def examples(self) -> Examples:
        """The examples table that the run was begun with."""
        return read_examples(self._require(EXAMPLES))

    @property
    def partition(self) -> Partition:
        """The assignment of training subjects to shards and slices."""
        table = pq.read_table(self._require(PARTITION))
        return Partition.from_frame(table.to_pandas(), **json.loads((table.schema.metadata or {})[b"fairsisa"]))

    @property
    def ensemble(self) -> Ensemble:
        """The checkpoints and predictions that are published."""
        values = json.loads(self._require(ENSEMBLE).read_text())
        names = {
            key: {name: tuple(steps) for name, steps in values[key].items()} for key in ("checkpoints", "baselines")
        }
        return Ensemble(**names, predictions=values["predictions"])

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and command of the training that began the run."""
        values: dict[str, Any] = json.loads(self._require(ENVIRONMENT).read_text())
        return values

    def path(self, *parts: str) -> Path:
        """Return a path inside the run."""
        return self.directory.joinpath(*parts)

    def begin(
        self,
        settings: RunSettings,
        examples: Examples,
        partition: Partition,
        *,
        source: str | None,
        store: Path,
        environment: Mapping[str, Any],
    ) -> None:
        """Write down what the run is made from; the settings come last, so that a run that exists is whole.

        `source` is the digest of the user's own data file, if the data came from one.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write(ENVIRONMENT, json.dumps(environment, indent=1))
        write_examples(examples, self.path(EXAMPLES))
        table = pa.Table.from_pandas(partition.frame(), preserve_index=False)
        header = {name: getattr(partition, name) for name in ("num_shards", "num_slices", "strategy", "seed")}
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"fairsisa": json.dumps(header).encode()}
        )
        partial = self.path(PARTITION + ".partial")
        pq.write_table(table, partial)
        partial.replace(self.path(PARTITION))
        config = {"store": str(store.resolve()), "source": source, "settings": plain(settings)}
        self.write(CONFIG, yaml.safe_dump(config, sort_keys=False))

    def publish(self, ensemble: Ensemble) -> None:
        """Switch to the given checkpoints and predictions, at once."""
        values = {"checkpoints": ensemble.checkpoints, "baselines": ensemble.baselines}
        self.write(ENSEMBLE, json.dumps({**values, "predictions": ensemble.predictions}, indent=1))

    def write(self, name: str, text: str) -> Path:
        """Replace a file of the run by `text`, durably; return its path."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing.

        Raises:
            RunError: at once, when another command holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path(".lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"Another command is at work on {self.directory}: wait for it, or choose another run=."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self._require(CONFIG).read_text())
        return config

    def _require(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            raise RunError(
                f"{self.directory} has no {name}: train it first, `fairsisa train run={self.directory} ...`."
            )
        return path
