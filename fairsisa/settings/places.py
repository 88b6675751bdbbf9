"""Where things run and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of


@dataclass(frozen=True)
class ExecutionSettings:
    """Where tasks run, a task being the chain of one constituent, and how many run at once.

    `kind` is "local" (processes on this machine), "submitit" (jobs of SLURM, or with `cluster` "local" or "debug"
    processes that stand for them; "auto" is SLURM where it is found) or "ray" (a Ray cluster at `address`:
    "auto" or host:port; None starts one on this machine). `num_workers` None means a process per core or one per
    GPU; on SLURM and on a Ray cluster, as many as there is room for. With submitit and Ray, a task whose machine
    died begins again up to `max_retries` times, and reserves `memory_gb` GiB where that is set; `timeout_minutes`,
    `partition` and `account` are what SLURM asks of a job.
    """

    kind: str = "local"
    num_workers: int | None = None
    max_retries: int = 3
    memory_gb: float | None = None
    cluster: str = "auto"
    timeout_minutes: int = 240
    partition: str | None = None
    account: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        one_of("execution.kind", self.kind, ("local", "submitit", "ray"))
        one_of("execution.cluster", self.cluster, ("auto", "slurm", "local", "debug"))
        in_range("execution.max_retries", self.max_retries, low=0)
        in_range("execution.timeout_minutes", self.timeout_minutes, low=1)
        if self.num_workers is not None:
            in_range("execution.num_workers", self.num_workers, low=1)
        if self.memory_gb is not None:
            in_range("execution.memory_gb", self.memory_gb, above=0.0)


@dataclass(frozen=True)
class PathSettings:
    """Where things are kept; `data` None means the folder that FAIRSISA_DATA names, else downloads.

    `store` is a folder, or a URL that fsspec can open. `keys` holds the secret keys of ledgers, apart from the runs;
    None means the folder that FAIRSISA_KEYS names, else ~/.config/fairsisa/keys.
    """

    root: str = "runs"
    store: str = "runs/store"
    cache: str = "~/.cache/fairsisa"
    data: str | None = None
    keys: str | None = None


@dataclass(frozen=True)
class StorageSettings:
    """Which checkpoints a run keeps on disk, beside the last of each constituent, which it needs to serve.

    `retention` is "all"; "last" (the `keep_last` last slices of each shard); or "optimal" (the subset whose expected
    retraining cost is lowest). `max_bytes` bounds the ensemble's checkpoints; None means no bound.
    """

    max_bytes: int | None = None
    retention: str = "all"
    keep_last: int = 1

    def __post_init__(self) -> None:
        one_of("store.retention", self.retention, ("all", "last", "optimal"))
        in_range("store.keep_last", self.keep_last, low=1)
        if self.max_bytes is not None:
            in_range("store.max_bytes", self.max_bytes, low=1)
        if self.retention == "optimal" and self.max_bytes is None:
            raise ConfigError("store.retention=optimal chooses under a budget: set store.max_bytes=... too.")
