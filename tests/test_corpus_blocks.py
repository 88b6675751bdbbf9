from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.data.corpus_blocks import (
    NO_TARGET,
    Blocks,
    Document,
    Masking,
    encode_blocks,
    mask_block,
    pack_blocks,
    plan_batches,
    read_documents,
)
from fairsisa.errors import DataError

END, MASK, WORDS = 0, 3, 50
rows = st.lists(st.lists(st.integers(4, WORDS - 1), min_size=1, max_size=20), min_size=1, max_size=12)
lengths = st.integers(2, 15)
seeds = st.integers(0, 2**62)


def pack(rows: list[list[int]], length: int) -> Blocks:
    return pack_blocks([f"d{number}" for number in range(len(rows))], rows, length=length, end_id=END)


def random_blocks(num_documents: int = 60, length: int = 64) -> Blocks:
    generator = np.random.default_rng(5)
    return pack([generator.integers(4, WORDS, size=100).tolist() for _ in range(num_documents)], length)


def masking_of(seed: int = 1, share: float = 0.15) -> Masking:
    return Masking(mask_id=MASK, vocab_size=WORDS, special_ids=frozenset({END, 1, 2, MASK}), seed=seed, share=share)


@given(rows, lengths)
def test_blocks_hold_the_documents_tokens_exactly(rows, length):
    blocks = pack(rows, length)
    read = [token for block in range(len(blocks)) for token in blocks.block_tokens(block).tolist()]
    assert read == [token for row in rows for token in [*row, END]]
    sizes = [len(blocks.block_tokens(block)) for block in range(len(blocks))]
    assert sizes == blocks.lengths.tolist()
    assert set(sizes[:-1]) <= {length}
    assert 1 <= sizes[-1] <= length


@given(rows, lengths)
def test_a_block_names_the_documents_it_was_cut_from(rows, length):
    blocks = pack(rows, length)
    owners = [f"d{number}" for number, row in enumerate(rows) for _ in range(len(row) + 1)]
    for block in range(len(blocks)):
        own = owners[block * length : (block + 1) * length]
        assert blocks.block_documents(block) == tuple(dict.fromkeys(own))


@given(rows, lengths, st.integers(1, 5), st.integers(0, 30), seeds)
def test_batches_are_whole_epochs_in_an_order_of_the_seed(rows, length, size, num_steps, seed):
    blocks = pack(rows, length)
    plan = plan_batches(blocks, num_steps=num_steps, batch_size=size, seed=seed)
    again = plan_batches(blocks, num_steps=num_steps + 3, batch_size=size, seed=seed)
    assert [(epoch, batch.tolist()) for epoch, batch in plan] == [
        (epoch, batch.tolist()) for epoch, batch in again[:num_steps]
    ]
    assert len(plan) == num_steps
    for epoch in range(plan[-1][0] if plan else 0):
        shown = [row for number, batch in plan if number == epoch for row in batch.tolist()]
        assert sorted(shown) == list(range(len(blocks)))


@given(rows, lengths, seeds, st.integers(0, 9))
def test_masking_hides_only_what_it_asks_for(rows, length, seed, epoch):
    blocks, masking = pack(rows, length), masking_of(seed)
    for block in range(len(blocks)):
        truth = blocks.block_tokens(block)
        read, targets = mask_block(blocks, block, masking, epoch=epoch)
        asked = targets != NO_TARGET
        np.testing.assert_array_equal(read[~asked], truth[~asked])
        np.testing.assert_array_equal(targets[asked], truth[asked])
        assert END not in targets[asked]
        ordinary = int((truth != END).sum())
        assert asked.sum() == (max(1, round(0.15 * ordinary)) if ordinary else 0)


@given(seeds, st.integers(0, 9), st.integers(0, 20))
def test_masking_is_a_pure_function_of_seed_block_and_epoch(seed, epoch, block):
    blocks = random_blocks()
    first = mask_block(blocks, block, masking_of(seed), epoch=epoch)
    mask_block(blocks, block + 1, masking_of(seed), epoch=epoch)
    np.testing.assert_array_equal(first, mask_block(blocks, block, masking_of(seed), epoch=epoch))
    np.testing.assert_array_equal(first, mask_block(blocks, np.int64(block), masking_of(seed), epoch=np.int64(epoch)))


def test_another_seed_block_or_epoch_masks_elsewhere():
    blocks = pack([[5] * 1279], 128)
    base = mask_block(blocks, 0, masking_of(1), epoch=0)[1].tolist()
    others = [(1, masking_of(1), 0), (0, masking_of(2), 0), (0, masking_of(1), 1)]
    for block, masking, epoch in others:
        assert mask_block(blocks, block, masking, epoch=epoch)[1].tolist() != base


def test_shares_are_those_of_bert():
    blocks, masking = random_blocks(), masking_of()
    made = [mask_block(blocks, block, masking, epoch=epoch) for epoch in range(20) for block in range(len(blocks))]
    truth = np.concatenate([blocks.tokens] * 20)
    read, targets = (np.concatenate(parts) for parts in zip(*made, strict=True))
    asked = targets != NO_TARGET
    assert asked.sum() / (truth != END).sum() == pytest.approx(0.15, abs=0.005)
    shares = [(read[asked] == MASK).mean(), (read[asked] == truth[asked]).mean()]
    # A random word is the true one or the mask once in WORDS draws each.
    assert shares == pytest.approx([0.8 + 0.1 / WORDS, 0.1 + 0.1 / WORDS], abs=0.01)
    replaced = read[asked & (read != truth) & (read != MASK)]
    assert set(replaced.tolist()) == set(range(WORDS)) - {MASK}


def test_a_block_of_special_tokens_asks_for_nothing():
    blocks = pack([[1, 2, 1, 2]], 5)
    read, targets = mask_block(blocks, 0, masking_of(), epoch=0)
    assert read.tolist() == [1, 2, 1, 2, END]
    assert set(targets.tolist()) == {NO_TARGET}


def test_documents_are_encoded_without_special_tokens():
    def tokenizer(text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in one] for one in text]}

    blocks = encode_blocks([Document("a", "xy"), Document("b", "z")], tokenizer, length=4, end_id=END)
    assert blocks.tokens.tolist() == [120, 121, END, 122, END]
    assert [blocks.block_documents(block) for block in range(2)] == [("a", "b"), ("b",)]


@pytest.mark.parametrize("name", ["some.txt", "some.txt.gz"])
def test_a_file_is_split_into_documents_that_keep_their_number(tmp_path, name):
    content = "One.\n<|endoftext|>\n \n<|endoftext|>\nTwo,\nthree é".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_documents(path, name="t") == (Document("t-0", "One."), Document("t-2", "Two,\nthree é"))
    assert read_documents(path, name="t", keep_last=False) == (Document("t-0", "One."),)
    path.write_bytes(gzip.compress(content[:-1]) if name.endswith("gz") else content[:-1])  # cut inside the letter
    assert read_documents(path, name="t", keep_last=False) == (Document("t-0", "One."),)
    with pytest.raises(DataError, match=r"UTF-8.*keep_last=False"):
        read_documents(path, name="t")


def test_files_that_hold_no_documents_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"words " * 50)[:-9])
    with pytest.raises(DataError, match="found none"):
        read_documents(tmp_path / "empty.txt", name="t")
    with pytest.raises(DataError, match="Cannot read documents"):
        read_documents(tmp_path / "torn.gz", name="t")
    with pytest.raises(DataError, match="Cannot read documents"):
        read_documents(tmp_path / "absent.txt", name="t")
    with pytest.raises(ValueError, match="separator of at least one"):
        read_documents(tmp_path / "empty.txt", name="t", separator="")


def test_documents_that_cannot_be_packed_are_refused():
    with pytest.raises(DataError, match="at least one document"):
        pack([], 4)
    with pytest.raises(DataError, match="number 1 becomes no token"):
        pack([[5], []], 4)
    with pytest.raises(DataError, match="number 0 holds the end-of-text token 0"):
        pack([[5, END, 6]], 4)
    with pytest.raises(DataError, match="1 repeated ids"):
        pack_blocks(["a", "a"], [[5], [6]], length=4, end_id=END)
    with pytest.raises(ValueError, match="one row of tokens for each of 1 documents, got 2"):
        pack_blocks(["a"], [[5], [6]], length=4, end_id=END)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pack([[5]], 1)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="share of tokens to mask"):
        masking_of(share=0.0)
    with pytest.raises(ValueError, match="mask_id below"):
        Masking(mask_id=9, vocab_size=9, special_ids=frozenset(), seed=0)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        plan_batches(pack([[5]], 4), num_steps=1, batch_size=0, seed=0)


@pytest.mark.real_data
def test_the_stories_are_read_whole(data_root: Path):
    path = data_root / "tinystories_sample" / "tinystories_sample.txt.gz"
    documents = read_documents(path, name="stories", keep_last=False)
    assert len(documents) == 2316
    assert all("<|endoftext|>" not in document.text for document in documents)
