"""The corpora a user can name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fairsisa.data.columns import require_known
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.data.own import load_own
from fairsisa.data.own_columns import UNSET
from fairsisa.data.rated_texts import REGARD, TOXICITY, load_regard, load_toxicity
from fairsisa.data.synthetic_samples import load_synthetic_tabular, load_synthetic_text
from fairsisa.data.tabular import load_tabular
from fairsisa.data.tabular_specs import (
    ADULT,
    BANK_MARKETING,
    COMPAS,
    CREDIT_CARD_DEFAULT,
    DUTCH_CENSUS,
    GERMAN_CREDIT,
    LAW_SCHOOL,
    TableSpec,
)
from fairsisa.errors import DataError
from fairsisa.tables import Examples

OWN = "own"
PLACES = frozenset({"root", "cache"})
NO_OPTIONS = PLACES | {"columns", "name"}
SCALARS: Mapping[type, tuple[type, ...]] = MappingProxyType({bool: (bool,), int: (int,), float: (int, float)})


@dataclass(frozen=True)
class CorpusInfo:
    """One corpus: what it is, under which terms, how it is loaded.

    `kind` is text, tabular or either; `num_examples` is None where the user decides.
    """

    name: str
    kind: str
    summary: str
    licence: str
    num_examples: int | None
    citation: str
    load: Callable[..., Examples]

    @property
    def options(self) -> dict[str, type]:
        """The options its loader takes, each with its annotated type."""
        parameters = inspect.signature(self.load, eval_str=True).parameters.values()
        return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in NO_OPTIONS}


def load_corpus(config: Mapping[str, Any], *, root: Path | None = None, cache: Path) -> Examples:
    """Load the corpus that `config` describes.

    `config` has `name`, one of `CORPORA`; `options`, passed to the corpus's loader, those that are null left at their
    defaults; and, for the user's own file alone, `path` and `columns` (see `load_own`). Raw files are sought under
    `root` if given, else in `cache`, else downloaded into it.

    Raises:
        DataError: when a name, key or option is unknown (naming the nearest) or the data are not as they must be.
        ChecksumError: when a raw file is not the recorded one.
    """
    require_known("data", "key", config, ("name", "options", "path", "columns"))
    require_known("data.name", "corpus", [str(config.get("name"))], CORPORA)
    info = CORPORA[str(config["name"])]
    given = _options(info, _mapping(config, "options"))
    if info.name == OWN:
        return info.load(_own_path(config), columns=_mapping(config, "columns"), **given)
    for key in ("path", "columns"):
        if config.get(key) is not None:
            raise DataError(f"data.{key}: only the corpus {OWN!r} takes it, not {info.name!r}. Set data={OWN}_table.")
    places = {"root": root, "cache": cache}
    taken = PLACES & inspect.signature(info.load).parameters.keys()
    return info.load(**{place: places[place] for place in taken}, **given)


def list_corpora() -> list[dict[str, str]]:
    """Return a row per corpus with name, kind, examples, licence and summary, as text for a table."""
    return [
        {
            "name": info.name,
            "kind": info.kind,
            "examples": "any" if info.num_examples is None else f"{info.num_examples:,}",
            "licence": info.licence,
            "summary": info.summary,
        }
        for info in CORPORA.values()
    ]


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"data.{key}: expected a mapping, got {value!r}.")
    return {} if value is None else value


def _options(info: CorpusInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    require_known(f"data.options of {info.name}", "option", options, info.options)
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        kind = info.options[name]
        fits = isinstance(value, SCALARS.get(kind, (object,))) and (kind is bool or not isinstance(value, bool))
        if not fits:
            raise DataError(f"data.options.{name} of {info.name}: expected {kind.__name__}, got {value!r}.")
    return given


def _own_path(config: Mapping[str, Any]) -> Path:
    path = config.get("path")
    if path in UNSET:
        raise DataError("data.path: expected the path of your CSV, JSONL or Parquet file. Set data.path.")
    return Path(str(path)).expanduser()


def _table(spec: TableSpec, summary: str, licence: str, citation: str) -> CorpusInfo:
    load = functools.partial(load_tabular, spec)
    return CorpusInfo(spec.name, "tabular", summary, licence, spec.num_examples, citation, load)


_UCI = "CC BY 4.0"
_NOT_STATED = "not stated"
_SURVEY = "cleaned by Le Quy et al., WIREs DMKD 2022"

_ALL = (
    CorpusInfo(
        "hatexplain",
        "text",
        "Posts judged by three annotators: toxic or normal, with the communities they mention (contains hateful text)",
        "MIT",
        19_229,
        "Mathew et al., HateXplain, AAAI 2021, arXiv:2012.10289",
        load_hatexplain,
    ),
    _table(ADULT, "US census 1994: income above 50K", _UCI, "Becker & Kohavi, Adult, UCI, 1996"),
    _table(
        COMPAS,
        "Broward County defendants: recidivism within two years",
        _NOT_STATED,
        "Angwin, Larson, Mattu, Kirchner, Machine Bias, ProPublica, 2016",
    ),
    _table(GERMAN_CREDIT, "Loan applicants: good credit", _UCI, "Hofmann, Statlog (German Credit Data), UCI, 1994"),
    _table(
        BANK_MARKETING,
        "Portuguese telemarketing: deposit subscribed",
        _UCI,
        f"Moro, Cortez, Rita, Decision Support Systems 62, 2014; {_SURVEY}",
    ),
    _table(
        LAW_SCHOOL,
        "US law students: bar exam passed",
        _NOT_STATED,
        f"Wightman, LSAC National Longitudinal Bar Passage Study, 1998; {_SURVEY}",
    ),
    _table(
        DUTCH_CENSUS,
        "Dutch census 2001: high-level occupation",
        _NOT_STATED,
        f"Van der Laan, The 2001 census in the Netherlands, 2000; {_SURVEY}",
    ),
    _table(
        CREDIT_CARD_DEFAULT,
        "Taiwanese credit cards: default next month",
        _UCI,
        "Yeh & Lien, Expert Systems with Applications 36, 2009",
    ),
    CorpusInfo(
        TOXICITY,
        "text",
        "Texts that people rated for toxicity, to train a rater on (contains hateful text)",
        "MIT; Implicit Hate: not stated",
        45_497,
        "Davidson et al., ICWSM 2017; Hartvigsen et al., ToxiGen, ACL 2022; ElSherief et al., EMNLP 2021",
        load_toxicity,
    ),
    CorpusInfo(
        REGARD,
        "text",
        "Sentences rated for the regard they show a person, to train a rater on",
        _NOT_STATED,
        302,
        "Sheng, Chang, Natarajan, Peng, EMNLP 2019, arXiv:1909.01326",
        load_regard,
    ),
    CorpusInfo(OWN, "either", "Your own CSV, JSONL or Parquet file", "yours", None, "you", load_own),
    CorpusInfo(
        "synthetic_text",
        "text",
        "Made-up reviews whose law is known exactly; needs no download",
        "Apache-2.0",
        None,
        "fairsisa",
        load_synthetic_text,
    ),
    CorpusInfo(
        "synthetic_tabular",
        "tabular",
        "Made-up features whose law is known exactly; needs no download",
        "Apache-2.0",
        None,
        "fairsisa",
        load_synthetic_tabular,
    ),
)

CORPORA: Mapping[str, CorpusInfo] = MappingProxyType({info.name: info for info in _ALL})
