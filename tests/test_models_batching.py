from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.data.encoding import Inputs
from fairsisa.models import batching
from fairsisa.models.batching import SliceData, collate, run_batched

ragged = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=7), min_size=1, max_size=12)


def texts(rows: list[list[int]]) -> Inputs:
    names = tuple(f"e{row}" for row in range(len(rows)))
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    return Inputs(names, names, np.arange(len(rows)) % 3, tokens, np.cumsum([0, *map(len, rows)]))


def table(rows: int) -> Inputs:
    names = tuple(f"e{row}" for row in range(rows))
    return Inputs(names, names, np.arange(rows), features=np.arange(2 * rows, dtype=np.float32).reshape(rows, 2))


@given(ragged, st.data(), st.integers(0, 200))
def test_a_batch_holds_its_rows_padded_on_the_right(rows, data, pad_id):
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=6))
    batch = collate(texts(rows), np.array(chosen), pad_id)
    width = max(len(rows[row]) for row in chosen)
    for line, row in zip(batch["tokens"].tolist(), chosen, strict=True):
        assert line == rows[row] + [pad_id] * (width - len(rows[row]))
    assert batch["labels"].tolist() == [row % 3 for row in chosen]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    if len({len(rows[row]) for row in chosen}) == 1:
        assert "mask" not in batch
    else:
        assert batch["mask"].tolist() == [[1] * len(rows[row]) + [0] * (width - len(rows[row])) for row in chosen]


def test_features_are_taken_as_they_are():
    batch = collate(table(4), np.array([3, 0]), pad_id=9)
    assert set(batch) == {"features", "labels"}
    assert batch["features"].tolist() == [[6.0, 7.0], [0.0, 1.0]]
    assert (batch["features"].dtype, batch["labels"].tolist()) == (torch.float32, [3, 0])


@pytest.mark.parametrize("inputs", [texts([[1, 2], [3], [4, 5, 6]]), table(3)], ids=["texts", "table"])
def test_a_batch_holds_what_a_teacher_said_of_its_rows(inputs):
    said = np.array([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]], dtype=np.float32)
    plain, batch = (collate(each, np.array([2, 0]), pad_id=0) for each in (inputs, inputs.with_targets(said)))
    assert torch.equal(batch.pop("teacher"), torch.from_numpy(said[[2, 0]]))
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[key], plain[key]) for key in plain)


@given(ragged, st.integers(1, 4))
def test_a_slice_gives_its_batches_in_the_order_planned(rows, bundle):
    inputs = texts(rows)
    planned = [np.array([row, (row + 1) % len(rows)]) for row in range(len(rows))]
    loader = SliceData(inputs, planned, pad_id=0, bundle=bundle).train_dataloader()
    bundles = list(loader)
    assert [len(each) for each in bundles[:-1]] == [bundle] * (len(bundles) - 1)
    flat = [batch for each in bundles for batch in each]
    assert len(flat) == len(planned)
    for batch, chosen in zip(flat, planned, strict=True):
        expected = collate(inputs, chosen, 0)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_a_slice_is_read_in_this_process_and_never_shuffled():
    loader = SliceData(table(3), [np.array([0])], pad_id=0, bundle=1).train_dataloader()
    assert (loader.num_workers, loader.batch_size) == (0, None)
    assert isinstance(loader.sampler, torch.utils.data.SequentialSampler)


@given(ragged)
def test_every_row_gets_its_own_answer_in_its_own_place(rows):
    def sums(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        assert "mask" not in batch
        tokens = batch["tokens"].double()
        return torch.stack([tokens.sum(dim=1), torch.full((len(tokens),), tokens.shape[1])], dim=1)

    out = run_batched(sums, texts(rows), width=2, device="cpu")
    assert out.dtype == np.float32
    assert out.tolist() == [[float(sum(row)), float(len(row))] for row in rows]


def test_rows_come_in_batches_of_bounded_size(monkeypatch):
    monkeypatch.setattr(batching, "INFERENCE_ROWS", 3)
    monkeypatch.setattr(batching, "INFERENCE_TOKENS", 4)
    seen: list[int] = []

    def first(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch["labels"]))
        return batch["features"][:, :1] if "features" in batch else batch["tokens"][:, :1]

    assert run_batched(first, table(7), width=1, device="cpu")[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert seen == [3, 3, 1]
    seen.clear()
    run_batched(first, texts([[1, 2], [3, 4], [5, 6], [7], [8] * 9]), width=1, device="cpu")
    assert seen == [1, 2, 1, 1]


def test_no_row_gives_no_answer():
    out = run_batched(lambda batch: batch["features"], table(0), width=2, device="cpu")
    assert out.shape == (0, 2)


def test_nothing_is_kept_for_gradients():
    weight = torch.ones(2, requires_grad=True)

    def product(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        out = batch["features"] * weight
        assert not out.requires_grad
        return out

    run_batched(product, table(2), width=2, device="cpu")


def test_an_answer_of_another_width_is_refused():
    with pytest.raises(ValueError, match="could not be broadcast"):
        run_batched(lambda batch: batch["features"], table(2), width=3, device="cpu")
