"""The verb `add`: new examples as one more slice of every shard, without moving the old."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fairsisa.data.corpora import load_corpus
from fairsisa.errors import DataError, RequestError
from fairsisa.execution import Report
from fairsisa.lineage import example_digests
from fairsisa.report.content import RunReport
from fairsisa.runs.assembly import assemble
from fairsisa.runs.completing import completed
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.evaluating import can_be_measured, evaluate_run
from fairsisa.runs.keeping import retain
from fairsisa.runs.making import Workplace, settle, train_missing
from fairsisa.settings import ExecutionSettings
from fairsisa.sisa.ledger import Ledger
from fairsisa.tables import TRAIN, Examples


def add_examples(
    run: Run,
    new: Examples,
    *,
    keys: Path,
    execution: ExecutionSettings,
    on_event: Report,
    evaluate: bool = True,
) -> RunReport | None:
    """Train on new examples too: as one more slice of every shard, continuing from what is served.

    No example moves, and no checkpoint but the new slice's is trained, save for baselines, which begin anew. Rows of
    the calibration and test splits join theirs. Stopped in the middle, the same call goes on.

    Raises:
        DataError: when columns or classes are not those of the run, or an id is there already with other contents.
        RequestError: when an example was forgotten before: it may not come back.
    """
    with run.locked():
        run.require_trained()
        run.mend()
        new = _unknown(run.examples, new)
        _refuse_forgotten(run, new, keys)
        examples, partition = joined(run.examples, new) if len(new) else run.examples, run.partition
        if (new.frame["split"] == TRAIN).any():
            partition = partition.with_slice(examples)
        place = Workplace(run, run.settings, execution, on_event)
        baselines = [name.removeprefix("baseline-") for name in run.ensemble.baselines]
        assembly = assemble(run.settings, examples, partition, run.store.location, baselines=baselines)
        run.store.claim(run.directory, assembly.names | run.ensemble.names)
        results = train_missing(assembly, place)
        tables = (examples, partition) if len(new) else (None, None)
        run.publish(completed(assembly, place, examples), *tables)
        settle(place, assembly, results)
        run.prune()
        retain(run)
    return evaluate_run(run, execution=execution, on_event=on_event) if evaluate and can_be_measured(run) else None


def load_more(run: Run, data: Mapping[str, Any], *, root: Path | None, cache: Path) -> Examples:
    """Load new examples as the run's corpus was loaded, save for what `data` sets, such as another `path`."""
    given = {key: value for key, value in data.items() if value is not None}
    return load_corpus({**run.settings.data, **given}, root=root, cache=cache)


def joined(old: Examples, new: Examples) -> Examples:
    """Return both tables as one.

    Raises:
        DataError: when columns or classes differ.
    """
    if set(old.frame.columns) != set(new.frame.columns):
        odd = sorted(set(old.frame.columns) ^ set(new.frame.columns))
        raise DataError(f"Expected new examples with the columns of {old.name!r}; {', '.join(odd[:5])} differ.")
    if old.classes != new.classes:
        raise DataError(f"Expected the classes {list(old.classes)}, got {list(new.classes)}: set columns.classes.")
    frame = pd.concat([old.frame, new.frame[old.frame.columns]], ignore_index=True)
    return Examples(old.name, frame, old.classes)


def _unknown(old: Examples, new: Examples) -> Examples:
    """Return the new examples less those the run holds already, which an interrupted attempt has added."""
    there, come = example_digests(old), example_digests(new)
    other = [example for example, digest in come.items() if there.get(example, digest) != digest]
    if other:
        raise DataError(
            f"{len(other)} new examples have ids that the run holds with other contents; the first is {other[0]!r}: "
            "give new examples new ids."
        )
    return new.keep(~new.frame["example_id"].isin(there.keys()).to_numpy())


def _refuse_forgotten(run: Run, new: Examples, keys: Path) -> None:
    if not run.path(LEDGER).is_file():
        return
    ledger = Ledger.open(run.path(LEDGER), keys)
    subjects = set(new.frame["subject_id"])
    back = ledger.forgotten(new.example_ids) | ledger.subject_requests(subjects)
    if back:
        raise RequestError(
            f"{len(back)} of the new examples or their subjects were forgotten before, the first is {min(back)!r}: "
            "take them out. Who comes back by consent needs new ids."
        )
