"""The directory of a pretraining: its settings, its tokenizer, its checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fairsisa.errors import ModelError, RunError
from fairsisa.models.base import read_tokenizer
from fairsisa.models.training_state import TrainingState, read_training_state
from fairsisa.runs.directory import ENVIRONMENT, intact
from fairsisa.settings import PretrainingSettings, TrainerSettings, plain, settings_from
from fairsisa.store.durable import PARTIAL, explained, make_folder, publish, write_durably

PRETRAINING, CHECKPOINTS, TOKENIZER, STATE = "pretraining.yaml", "checkpoints", "tokenizer", "training.safetensors"
TEACHER = "teacher.safetensors"
PARTS = ("settings", "trainer", "digests")
STEP = re.compile(r"step-(\d{6,})")


class Pretrained:
    """A handle on the directory of a pretraining.

    Raises:
        RunError: from what reads, when there is no pretraining, or its settings are damaged.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser()

    @property
    def exists(self) -> bool:
        """Whether a pretraining was begun here."""
        return self.path(PRETRAINING).is_file()

    @property
    def settings(self) -> PretrainingSettings:
        """What was asked for when it began."""
        return settings_from(PretrainingSettings, self._record()["settings"], "")

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The folders of the checkpoints that are there, by step, ascending."""
        found = ((STEP.fullmatch(path.name), path) for path in self.path(CHECKPOINTS).glob("step-*"))
        return dict(sorted((int(match[1]), path) for match, path in found if match is not None))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that was chosen or trained, or None when that is still to come."""
        return read_tokenizer(self.path(TOKENIZER)) if self.path(TOKENIZER).is_dir() else None

    @property
    def state(self) -> TrainingState | None:
        """Where training stands, its newest checkpoint being there too; None when it has to begin.

        Raises:
            ModelError: when that checkpoint was taken away.
        """
        if not self.path(STATE).is_file():
            return None
        state = read_training_state(self.path(STATE))
        if state.step not in self.checkpoints:
            raise ModelError(
                f"{self.path(CHECKPOINTS)} lacks the checkpoint of step {state.step}, from which training goes on: put "
                f"it back, or delete {self.path(STATE)} to begin anew."
            )
        return state

    def path(self, *parts: str) -> Path:
        """Return a path inside the directory."""
        return self.directory.joinpath(*parts)

    def begin(
        self,
        settings: PretrainingSettings,
        trainer: TrainerSettings,
        *,
        digests: Mapping[str, str],
        environment: Mapping[str, Any],
    ) -> None:
        """Write down what is asked for, or make sure that it is what was asked for before.

        `digests` are those of all that is read, by the setting that names it: the corpus, a teacher.

        Raises:
            RunError: when the directory holds another pretraining; the message names the first difference.
        """
        asked = {"settings": plain(settings), "trainer": plain(trainer), "digests": dict(digests)}
        if self.exists:
            self._require_same(asked)
            return
        make_folder(self.directory)
        self.write(ENVIRONMENT, json.dumps(environment, indent=1))
        self.write(PRETRAINING, yaml.safe_dump(asked, sort_keys=False))

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """Save the tokenizer, whole or not at all."""
        partial = self.path("." + TOKENIZER + PARTIAL)
        with explained(f"save a tokenizer to {partial}"):
            shutil.rmtree(partial, ignore_errors=True)
            tokenizer.save_pretrained(partial)
            publish(partial, self.path(TOKENIZER))

    def write(self, name: str, text: str) -> None:
        """Replace a file of the directory, durably."""
        with explained(f"write {self.path(name)}"):
            write_durably(self.path(name), text.encode())

    def _require_same(self, asked: Mapping[str, Any]) -> None:
        before = self._record() | {"settings": plain(self.settings)}
        for part in ("settings", "trainer"):
            for name, value in asked[part].items():
                if before[part].get(name) != value:
                    shown = name if part == "settings" else f"{part}.{name}"
                    raise RunError(
                        f"{self.directory} holds a pretraining with {shown}={before[part].get(name)}, but {value} was "
                        "asked for: choose another run=, or ask for the same."
                    )
        for name, digest in asked["digests"].items():
            if before["digests"].get(name) != digest:
                raise RunError(f"The {name} of {self.directory} has changed since it began: choose another run=.")

    def _record(self) -> dict[str, Any]:
        path = self.path(PRETRAINING)
        if not path.is_file():
            raise RunError(f"{self.directory} holds no pretraining: run `fairsisa pretrain run={self.directory} ...`.")
        with intact(path):
            record = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
            return {name: record[name] for name in PARTS}
