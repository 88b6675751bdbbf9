"""What a run tells of its training, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fairsisa.sisa.training import SliceResult

TRAINING = ("shard", "slice", "examples", "epochs", "steps", "seconds", "examples_per_second", "status", "checkpoint")
CURVES = ("shard", "slice", "step", "epoch", "train_loss")


def training_tables(results: Sequence[SliceResult]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training table, a row a slice, and the curves, a row a logged step.

    `examples` counts the slice's own examples, `epochs` the passes over all the examples of the shard so far. Steps,
    seconds and curves are those of the training that made the checkpoint, in this run or an earlier one.
    """
    training, curves, seen = [], [], 0
    for result in results:
        seen = result.num_examples if result.slice == 0 else seen + result.num_examples
        epochs = result.num_presentations / seen if seen else 0.0
        speed = result.num_presentations / result.seconds if result.seconds else 0.0
        name, place = result.constituent, result.slice
        training.append(
            (
                name,
                place,
                result.num_examples,
                epochs,
                result.steps,
                result.seconds,
                speed,
                result.status,
                result.checkpoint,
            )
        )
        curves += [(name, place, step, epochs * step / result.steps, loss) for step, loss in result.curve]
    return pd.DataFrame(training, columns=list(TRAINING)), pd.DataFrame(curves, columns=list(CURVES))
