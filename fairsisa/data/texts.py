"""Text corpora that language models are trained and measured on, by name or by path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fairsisa.data.corpus_blocks import Document, read_documents
from fairsisa.data.sources import SourceFile, github_url, locate
from fairsisa.errors import DataError

ENDINGS = (".txt", ".txt.gz")
HEADING = re.compile(r"(?:^|(?<=\n \n))(?= = (?!= )(?:(?! = ).)+ = \n \n)")
"""Where an article of WikiText begins: its title stands between single equals signs and blank lines."""
NUM_HELD_OUT = 200
_EXAMPLES, _TOY_RNN = "77f55b912142e11fcfdf5b530231fb9c52f181e8", "e4c7ff8bba4ff7989e69a3a816ebe4b14813b41e"


@dataclass(frozen=True)
class Text:
    """A corpus of documents: `digest` is the SHA-256 of their ids and texts, in order."""

    name: str
    documents: tuple[Document, ...]

    @property
    def digest(self) -> str:
        """What the corpus holds, in 64 hex digits."""
        total = hashlib.sha256()
        for document in self.documents:
            total.update(f"{document.document_id}\0{len(document.text)}\0{document.text}".encode())
        return total.hexdigest()


@dataclass(frozen=True)
class _Named:
    """A file under a name: one document a title if `titled`; of its documents, those from `first` up to `last`."""

    file: SourceFile
    titled: bool = False
    keep_last: bool = True
    first: int | None = None
    last: int | None = None


def _wikitext(name: str, digest: str) -> _Named:
    url = github_url("pytorch/examples", _EXAMPLES, f"word_language_model/data/wikitext-2/{name}.txt")
    return _Named(SourceFile(f"wikitext2/{name}.txt.gz", url, f"sha256:{digest}"), titled=True)


_STORIES = SourceFile(
    "tinystories_sample/tinystories_sample.txt.gz",
    github_url("gusjengis/toy-RNN", _TOY_RNN, "data/tinystories_sample.txt"),
    "sha256:5352b299dcb1a32898b2d779b145b5a05f3e1265953fd21c264c9f9f9c9ae33d",
)
TEXTS: Mapping[str, _Named] = MappingProxyType(
    {
        "wikitext2_validation": _wikitext("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        "wikitext2_test": _wikitext("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
        # The file was cut after 2 MiB: its last story is not whole.
        "tinystories": _Named(_STORIES, keep_last=False),
        "tinystories_train": _Named(_STORIES, keep_last=False, last=-NUM_HELD_OUT),
        "tinystories_held_out": _Named(_STORIES, keep_last=False, first=-NUM_HELD_OUT),
    }
)
"""The texts known by name: WikiText-2 (Merity et al. 2016) and the first stories of TinyStories (Eldan and Li 2023),
whole, or without and with the last 200 alone."""


def find_text(name: str, *, root: Path | None = None, cache: Path) -> Text:
    """Return a corpus: one of `TEXTS`, or the path of a .txt or .txt.gz file of the user's own.

    A named one is sought under `root` if given, else in `cache`, else downloaded into it, and verified. A file of the
    user's own is UTF-8, its documents separated by "<|endoftext|>"; without any, it is one document. A document's id
    is the corpus's name (of a file: its name without ending), "-", and its number in the file; the articles of
    WikiText count from 0.

    Raises:
        DataError: when the name is unknown, or the file is missing, cannot be downloaded or holds no document.
        ChecksumError: when a named file holds something else.
    """
    if name in TEXTS:
        return _named_text(name, TEXTS[name], root, cache)
    path = Path(name).expanduser()
    if not name.endswith(ENDINGS):
        raise DataError(
            f"Expected a text to be {_listed(TEXTS)}, or a path ending in {_listed(ENDINGS)}, got {name!r}."
        )
    if not path.is_file():
        raise DataError(f"Expected a text file at {path}; there is none. Known by name: {_listed(TEXTS)}.")
    stem = path.name.removesuffix(".gz").removesuffix(".txt")
    return Text(stem, read_documents(path, name=stem))


def _named_text(name: str, named: _Named, root: Path | None, cache: Path) -> Text:
    path = locate(named.file, root=root, cache=cache)
    documents = read_documents(
        path, name=name.partition("_")[0] if not named.titled else name, keep_last=named.keep_last
    )
    if named.titled:
        documents = _articles(name, documents[0].text)
    return Text(name, documents[named.first : named.last])


def _articles(name: str, text: str) -> tuple[Document, ...]:
    """Return the articles of WikiText, each beginning with its title."""
    pieces = (piece.strip() for piece in HEADING.split(f" {text}\n"))
    return tuple(Document(f"{name}-{number}", piece) for number, piece in enumerate(filter(None, pieces)))


def _listed(names: Iterable[str]) -> str:
    return " or ".join([", ".join([*names][:-1]), [*names][-1]])
