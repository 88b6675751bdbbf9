"""One Lightning training that is quiet, deterministic and leaves nothing on disk."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.loggers.logger import Logger

from fairsisa.data.encoding import Inputs
from fairsisa.models.network import Standardizer

Tell = Callable[[int, Mapping[str, float]], None]
"""What takes the metrics of one step: the step, and each metric by its name."""
PRECISIONS: Mapping[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}
HARMLESS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*`srun` command is available.*",
    ".*module.* in eval mode at the start of training.*",  # a teacher is
)


class TellingLogger(Logger):
    """A Lightning logger that hands every metric on; the run's own loggers sit where they arrive."""

    def __init__(self, constituent: str, index: int, tell: Tell) -> None:
        super().__init__()
        self.constituent, self.index, self.tell = constituent, index, tell

    @property
    def name(self) -> str:
        """What is training."""
        return self.constituent

    @property
    def version(self) -> int:
        """The slice that is training, or 0."""
        return self.index

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are the run's, not the training's: they are logged once, by the run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand on the metrics of one step."""
        self.tell(step or 0, {name: value for name, value in metrics.items() if name != "epoch"})


def fit_quietly(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    accelerator: str,
    seed: int,
    logger: Logger | None = None,
    callbacks: Sequence[pl.Callback] = (),
    autocast: str = "fp32",
) -> None:
    """Run one epoch of `data` through `module` on "cpu" or "cuda"; every generator starts from `seed`.

    `autocast` "bf16" multiplies matrices in bf16 where a module has left that to Lightning.

    Raises:
        KeyboardInterrupt: when the process was told to stop.
    """
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        pl.seed_everything(seed % 2**32, verbose=False)
        try:
            _trainer(accelerator, logger, callbacks, autocast).fit(module, datamodule=data)
        except SystemExit as error:  # what Lightning makes of SIGINT and of SIGTERM, the latter with exit status 0
            raise KeyboardInterrupt from error


def standardizer_state(network: torch.nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Fit the Standardizer with which a network over features begins; return its buffers by their names."""
    first = next(iter(network.children()))
    if not isinstance(first, Standardizer) or inputs.features is None:
        raise TypeError("Expected a network over features to begin with a Standardizer.")
    first.fit(torch.from_numpy(inputs.features))
    return {f"0.{name}": value.clone() for name, value in first.named_buffers()}


def _trainer(accelerator: str, logger: Logger | None, callbacks: Sequence[pl.Callback], autocast: str) -> pl.Trainer:
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator="gpu" if accelerator == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[autocast],
        plugins=[LightningEnvironment()],  # in a SLURM job, Lightning would requeue it in a signal handler of its own
        default_root_dir=os.devnull,  # ... and go on from any hpc_ckpt_1.ckpt that lies in the working directory
        max_epochs=1,
        logger=False if logger is None else logger,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        deterministic=True,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
