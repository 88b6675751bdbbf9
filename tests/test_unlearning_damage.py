from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairsisa.errors import RunError
from faults import Attempt, Zygote, zygote
from scenes import ALONE, TABULAR, Case, Scene, asking, begin, end_of, first_of, prepared, problems_of

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def actors() -> Iterator[Zygote]:
    with zygote(FAIRSISA_KEYS="keys") as made:
        yield made


@pytest.fixture(scope="module")
def case(actors, tmp_path_factory) -> Case:
    scene = begin(tmp_path_factory.mktemp("damage"), actors, [*TABULAR, ALONE])
    return prepared(scene, first_of(scene, 0, 2))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@dataclass(frozen=True)
class Later:
    """A run that has forgotten once, with a request to come, and how that ends undisturbed."""

    case: Case
    words: tuple[str, ...]
    gone: tuple[str, ...]
    end: dict[str, Any]

    @property
    def scene(self) -> Scene:
        return self.case.scene

    def file(self, name: str) -> Path:
        """Return the file of a name: of the constituent that the request leaves alone, where there are several."""
        run, (certificate,) = self.scene.run, self.scene.run.path("certificates").glob("*.json")
        served, (claim,) = run.ensemble, (self.scene.root / "store" / "claims").glob("*.json")
        known = {"certificate": certificate, "claim": claim, "key": self.scene.root / "keys" / f"{self.key}.key"}
        known |= {name: run.table(name) for name in ("examples", "partition")}
        artefacts = {
            "checkpoint": served.checkpoints["shard-0"][-1],
            "prediction": served.predictions["test"]["shard-0"],
        }
        kind, _, part = name.partition(" ")
        if kind in artefacts:
            digest = artefacts[kind]
            suffix = {"payload": ".safetensors", "manifest": ".json"}[part]
            return self.scene.root / "store" / "objects" / digest[:2] / f"{digest}{suffix}"
        return known.get(name, run.path(name))

    @property
    def key(self) -> str:
        return self.scene.ledger.ledger_id


@pytest.fixture(scope="module")
def forgotten(case, tmp_path_factory) -> Later:
    case.scene.restore()
    assert case.scene.act(case.words).code == 0
    copy = tmp_path_factory.mktemp("later") / "copy"
    shutil.copytree(case.scene.root, copy)
    scene = Scene(case.scene.root, copy, case.scene.actors)
    ids = first_of(scene, 1, 1)
    words = asking(ids, "unlearning.evaluate=false")
    assert scene.act(words).code == 0
    return Later(Case(scene, case.gone, words, case.end, ()), words, (*case.gone, *ids), end_of(scene))


def is_clean(attempt: Attempt) -> bool:
    return attempt.code in (0, 1, 2) and "Traceback" not in attempt.said


MENDED = [
    (torn, "checkpoint payload"),
    (flipped, "checkpoint payload"),
    (torn, "prediction payload"),
    (flipped, "checkpoint manifest"),
    (torn, "prediction manifest"),
    (flipped, "claim"),
    (flipped, "metrics.json"),
    (torn, "training.csv"),
]
REFUSED = [
    (torn, "ensemble.json"),
    (torn, "config.yaml"),
    (flipped, "config.yaml"),
    (flipped, "ensemble.json"),
    (torn, "environment.json"),
    (torn, "examples"),
    (flipped, "ledger.sqlite"),
    (torn, "key"),
]


def named(later: Later, damage: Callable[[Path], None], name: str) -> Path:
    """Damage a file; require that the doctor names it, whatever the width of its table."""
    later.scene.restore()
    path = later.file(name)
    damage(path)
    told = later.scene.act(["doctor", "run=run"])
    assert told.code == 1, told.said
    assert is_clean(told), told.said
    said = "".join(told.said.split())
    assert path.stem in said or name == "metrics.json", told.said
    return path


@SLOW
@pytest.mark.parametrize(("damage", "name"), MENDED)
def test_what_training_made_training_mends(damage, name, forgotten):
    named(forgotten, damage, name)
    mended = forgotten.scene.act([*TABULAR, ALONE])
    assert mended.code == 0, mended.said
    again = forgotten.scene.act(forgotten.words)
    assert again.code == 0, again.said
    now = end_of(forgotten.scene)
    assert [part for part in forgotten.end if now[part] != forgotten.end[part]] == []
    assert problems_of(forgotten.scene, forgotten.gone) == []
    assert forgotten.scene.act(["doctor", "run=run"]).code == 0


@SLOW
@pytest.mark.parametrize(("damage", "name"), REFUSED)
def test_what_cannot_be_mended_is_a_clear_error(damage, name, forgotten):
    scene = forgotten.scene
    path = named(forgotten, damage, name)
    whole = (scene.copy / path.relative_to(scene.root)).read_bytes()
    refused = scene.act(forgotten.words)
    assert refused.code in (1, 2), refused.said
    assert is_clean(refused), refused.said
    path.write_bytes(whole)
    again = scene.act(forgotten.words)
    assert again.code == 0, again.said
    now = end_of(scene)
    assert [part for part in forgotten.end if now[part] != forgotten.end[part]] == []


@SLOW
@pytest.mark.parametrize("damage", [torn, flipped])
def test_a_damaged_certificate_is_named(damage, forgotten):
    path = named(forgotten, damage, "certificate")
    refused = forgotten.scene.act(["verify", "run=run", f"certificate={path}"])
    assert refused.code == 1
    assert is_clean(refused), refused.said


@SLOW
@pytest.mark.parametrize("name", ["examples", "partition"])
def test_no_bit_of_a_table_may_flip_unseen(name, forgotten):
    forgotten.scene.restore()
    run, path = forgotten.scene.run, forgotten.file(name)
    whole, random = path.read_bytes(), np.random.Generator(np.random.PCG64(0))
    for _ in range(100):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(data))
        with pytest.raises(RunError, match=path.name):
            getattr(run, name)
    path.write_bytes(whole)
    assert getattr(run, name).example_ids
