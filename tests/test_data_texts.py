from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import replace

import pytest

from fairsisa.data import texts
from fairsisa.data.corpus_blocks import read_documents
from fairsisa.data.sources import SourceFile
from fairsisa.data.texts import TEXTS, Text, find_text
from fairsisa.errors import ChecksumError, DataError

OX = " \n = Ox = \n \n An ox . \n = 1 a and <unk> C = \n \n = = Horns = = \n \n two \n \n = A = B = \n"
WIKI = OX + " \n = Emu = \n \n Bird .\n"


def test_articles_begin_at_titles_alone(tmp_path, monkeypatch):
    content = WIKI.encode()
    file = SourceFile("wiki.txt.gz", "https://example.org/wiki.txt", f"sha256:{hashlib.sha256(content).hexdigest()}")
    monkeypatch.setattr(texts, "TEXTS", {"wiki": replace(TEXTS["wikitext2_test"], file=file)})
    (tmp_path / "wiki.txt.gz").write_bytes(gzip.compress(content))
    found = find_text("wiki", root=tmp_path, cache=tmp_path / "cache")
    assert [document.document_id for document in found.documents] == ["wiki-0", "wiki-1"]
    assert found.documents[0].text.startswith("= Ox = \n \n An ox . \n = 1 a and")
    assert found.documents[0].text.endswith("= A = B =")
    assert found.documents[1].text == "= Emu = \n \n Bird ."
    (tmp_path / "wiki.txt.gz").write_bytes(gzip.compress(content + b"more"))
    with pytest.raises(ChecksumError, match="Replace it by https"):
        find_text("wiki", root=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_a_file_of_ones_own_is_read_by_its_path(ending, tmp_path):
    path = tmp_path / f"mine{ending}"
    content = b"one\r\n<|endoftext|>\n<|endoftext|> two"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    found = find_text(str(path), cache=tmp_path)
    assert found.name == "mine"
    assert [(d.document_id, d.text) for d in found.documents] == [("mine-0", "one"), ("mine-2", "two")]


def test_the_digest_follows_what_is_read():
    documents = read_documents_of("a<|endoftext|>b")
    same, other = read_documents_of("a<|endoftext|>b"), read_documents_of("ab")
    assert Text("x", documents).digest == Text("y", same).digest != Text("x", other).digest
    assert Text("x", documents).digest != Text("x", documents[::-1]).digest


def read_documents_of(text: str) -> tuple[texts.Document, ...]:
    return tuple(texts.Document(f"d-{row}", piece) for row, piece in enumerate(text.split("<|endoftext|>")))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"to be wikitext2_validation, .* or tinystories_held_out, or a path ending in"):
        find_text("wikitext", cache=tmp_path)
    with pytest.raises(DataError, match=r"Expected a text file at .*gone\.txt; there is none"):
        find_text(str(tmp_path / "gone.txt"), cache=tmp_path)
    with pytest.raises(DataError, match=r"Expected .*valid\.txt\.gz; no such file"):
        find_text("wikitext2_validation", root=tmp_path, cache=tmp_path)


@pytest.mark.real_data
def test_wikitext_has_the_published_numbers(data_root, tmp_path):
    # Merity et al. 2016, table 1: 60 articles each; 217,646 and 245,569 tokens, one a line's end.
    for name, num_tokens, num_lines in (("validation", 217_646, 3_760), ("test", 245_569, 4_358)):
        found = find_text(f"wikitext2_{name}", root=data_root, cache=tmp_path)
        assert len(found.documents) == 60
        assert all(re.match(r"= (?!= ).*[^=] = \n", document.text) for document in found.documents)
        assert sum(len(document.text.split()) for document in found.documents) == num_tokens - num_lines


@pytest.mark.real_data
def test_stories_are_whole_and_their_parts_are_apart(data_root, tmp_path):
    whole, train, held_out = (
        find_text(name, root=data_root, cache=tmp_path).documents
        for name in ("tinystories", "tinystories_train", "tinystories_held_out")
    )
    assert train + held_out == whole
    assert (len(whole), len(held_out)) == (2316, 200)
    path = data_root / "tinystories_sample" / "tinystories_sample.txt.gz"
    assert whole == read_documents(path, name="tinystories")[:-1]
