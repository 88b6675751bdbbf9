"""How many examples each slice of a shard is shown: the epoch budget of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fairsisa.settings import TrainerSettings


def slice_epochs(trainer: TrainerSettings, num_slices: int, num_added: int = 0) -> tuple[float, ...]:
    """Return e_1..e_R, the epochs of each stage over all the examples it has by then.

    `num_added` slices that came later get the epochs of the last planned one, so that no other stage changes.

    "compute_matched" is e_i = 2e'/(R+1) (Bourtoule et al. 2021, section V-B): with equal slices the work of the
    chain, sum of e_i * i/R, is e' epochs of the whole shard.
    """
    if trainer.budget == "listed":
        return trainer.slice_epochs + trainer.slice_epochs[-1:] * num_added
    if trainer.budget == "per_slice":
        return (trainer.max_epochs,) * (num_slices + num_added)
    return (2 * trainer.max_epochs / (num_slices + 1),) * (num_slices + num_added)


def presentations(epochs: Sequence[float], slice_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many examples each stage trains on, repeats counted.

    Stage i sees the examples of slices 1..i for e_i epochs, the last of which may be a part of one. Rounding is
    carried from stage to stage, so that the total is within half an example of the sum of e_i * n_i. An empty
    slice gets none. A stage's number depends on the slices up to it and on nothing after.
    """
    sizes = list(accumulate(slice_sizes))
    wanted = [e * n if own else 0.0 for e, n, own in zip(epochs, sizes, slice_sizes, strict=True)]
    ends = [round(total) for total in accumulate(wanted)]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def learning_rate_window(trainer: TrainerSettings, num_slices: int, index: int) -> tuple[float, float]:
    """Return the learning-rate factors at the start and the end of stage `index` (from 0), after warm-up.

    "chain" runs one straight line from 1 to 0 over the work of the whole chain as planned for equal slices; it
    depends on (R, index) alone, so a deletion in one slice changes no other slice's schedule. A stage that was added
    after the planned R repeats the last planned one's.
    """
    index = min(index, num_slices - 1)
    if trainer.schedule == "constant":
        return (1.0, 1.0)
    if trainer.schedule == "slice":
        return (1.0, 0.0)
    epochs = slice_epochs(trainer, num_slices)
    done = [0.0, *accumulate(e * (i + 1) for i, e in enumerate(epochs))]
    return (1.0 - done[index] / done[-1], 1.0 - done[index + 1] / done[-1])
