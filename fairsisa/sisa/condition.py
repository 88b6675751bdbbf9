"""Conditions in words, such as "age >= 60 and sex == 'Female'", that pick rows of an examples table."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.errors import RequestError
from fairsisa.settings import nearest
from fairsisa.tables import FEATURE, SENSITIVE, SPLITS, Examples

MOST_LETTERS = 1_000_000
QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`\n]+)`""")
EQUALITIES = (ast.Eq, ast.NotEq)
ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
GRAMMAR = (
    "write comparisons of a column with a value, joined by and, or, not, such as \"age >= 60 and sex == 'Female'\""
)


@dataclass(frozen=True)
class _Answer:
    """SQL's three values for every row: true, false, or (neither) unknown."""

    true: np.ndarray
    false: np.ndarray

    def __and__(self, other: _Answer) -> _Answer:
        return _Answer(self.true & other.true, self.false | other.false)

    def __or__(self, other: _Answer) -> _Answer:
        return _Answer(self.true | other.true, self.false & other.false)

    def __invert__(self) -> _Answer:
        return _Answer(self.false, self.true)


@dataclass(frozen=True)
class _Column:
    """A column as conditions see it; `kind` is "number" or "text", `known` is false where the value is missing.

    `choices` are the only texts it may be compared with; None where any text may occur.
    """

    name: str
    kind: str
    values: np.ndarray
    known: np.ndarray
    choices: tuple[str, ...] | None = None


def select_examples(examples: Examples, condition: str) -> np.ndarray:
    """Return which rows meet a condition, as booleans of shape (num_examples,).

    A condition compares a column with a value: `==`, `!=`, `in [..]`, `not in [..]`, `is None`, `is not None`; for
    numbers also `<`, `<=`, `>`, `>=`, in chains such as `18 <= age < 30`. `and`, `or`, `not` and parentheses join
    them. A column is named in full, or by what follows `sensitive:` or `feature:` where that is one column; a name
    that is no word stands in backquotes: `hours-per-week`. `label` is compared with names of classes or their index.

    A missing value makes a comparison neither true nor false, as in SQL: such a row is picked by neither
    `age >= 60` nor `not age >= 60`, but by `age is None`. Nothing in the condition is ever run as code.

    Raises:
        RequestError: when the condition is no such condition, names no column or several, or compares text with a
            number.
    """
    text, quoted = _take_quoted(condition)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unknown escape such as "\d" is a slip of the pen
            tree = ast.parse(text, mode="eval").body
        answer = _answer(_Reading(examples, quoted), tree)
    except SyntaxError as error:
        raise RequestError(
            f"The condition cannot be read: {error.msg}, near character {error.offset or 1}; {GRAMMAR}."
        ) from error
    except (RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"The condition is too deep, or holds a letter or number that cannot be read; {GRAMMAR}."
        ) from error
    return answer.true


@dataclass(frozen=True)
class _Reading:
    """What the names in a condition refer to: a table, and the columns behind stand-ins for backquoted names."""

    examples: Examples
    quoted: Mapping[str, str]

    def column(self, identifier: str) -> _Column:
        """Return the column a name refers to; RequestError when it is none, several, or of another kind."""
        name = self._full_name(self.quoted.get(identifier, identifier))
        series = self.examples.frame[name]
        known = series.notna().to_numpy(dtype=bool)
        if name == "label":
            classes = self.examples.classes
            return _Column(name, "text", np.asarray(classes, dtype=object)[self.examples.labels], known, classes)
        if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype):
            return _Column(name, "number", series.fillna(0).to_numpy(), known)
        values = series.astype(object).to_numpy(dtype=object)
        if not all(isinstance(value, str) for value in values[known]):
            raise RequestError(f"Expected text or numbers in column {name!r}, found neither: it takes no condition.")
        return _Column(name, "text", values, known, SPLITS if name == "split" else None)

    def _full_name(self, name: str) -> str:
        columns = [str(column) for column in self.examples.frame.columns]
        if name in columns:
            return name
        found = [prefix + name for prefix in (SENSITIVE, FEATURE) if prefix + name in columns]
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(f"{name!r} may be {' or '.join(map(repr, found))}; write one in full, in backquotes.")
        short = [column.removeprefix(SENSITIVE).removeprefix(FEATURE) for column in columns]
        raise RequestError(f"{self.examples.name} has no column {name!r}.{nearest(name, {*columns, *short})}")


def _take_quoted(condition: str) -> tuple[str, dict[str, str]]:
    """Put a word in the place of each name in backquotes, but not inside text; return what each word stands for."""
    if len(condition) > MOST_LETTERS:
        raise RequestError(f"Expected a condition of at most {MOST_LETTERS:,} letters, got {len(condition):,}.")
    stem = "column_"
    while stem in condition:
        stem += "_"
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[1]
        names[f"{stem}{len(names)}"] = match[2]
        return f" {stem}{len(names) - 1} "

    return QUOTED.sub(stand_in, condition).strip(), names


def _answer(reading: _Reading, node: ast.expr) -> _Answer:
    match node:
        case ast.BoolOp(op=op, values=values):
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            return reduce(join, (_answer(reading, value) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_answer(reading, operand)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = zip([left, *rights], ops, rights, strict=False)
            return reduce(operator.and_, (_comparison(reading, *each) for each in sides))
    raise RequestError(f"Expected a comparison, got {_words(node)}; {GRAMMAR}.")


def _comparison(reading: _Reading, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Answer:
    if isinstance(left, ast.Name) == isinstance(right, ast.Name):
        raise RequestError(f"Expected a column on one side, got {_words(left)} and {_words(right)}; {GRAMMAR}.")
    if isinstance(right, ast.Name):
        if type(op) not in MIRRORED:
            raise RequestError(f"Expected the column before 'in' or 'is', got {_words(left)} there; turn it round.")
        return _comparison(reading, right, MIRRORED[type(op)](), left)
    column = reading.column(left.id) if isinstance(left, ast.Name) else None
    if column is None:
        raise RequestError(f"Expected a column, got {_words(left)}; {GRAMMAR}.")
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise RequestError(f"Expected 'is None' or 'is not None', got 'is' with {_words(right)}; write == instead.")
        return _Answer(~column.known, column.known) if isinstance(op, ast.Is) else _Answer(column.known, ~column.known)
    if isinstance(op, ast.In | ast.NotIn):
        found = _is_among(column, right)
        return found if isinstance(op, ast.In) else ~found
    return _compared(column, type(op), _constant(column, right))


def _is_among(column: _Column, node: ast.expr) -> _Answer:
    if not isinstance(node, ast.List | ast.Tuple):
        raise RequestError(f"Expected a list after 'in', got {_words(node)}; write [..].")
    wanted = [_constant(column, item) for item in node.elts]
    found = np.isin(column.values, wanted) if column.kind == "number" else _texts_among(column.values, wanted)
    return _Answer(found & column.known, ~found & column.known)


def _texts_among(values: np.ndarray, wanted: list[Any]) -> np.ndarray:
    members = frozenset(wanted)
    return np.fromiter((value in members for value in values), dtype=bool, count=len(values))


def _compared(column: _Column, op: type[ast.cmpop], value: Any) -> _Answer:
    if column.kind == "text" and op not in EQUALITIES:
        raise RequestError(f"Expected ==, != or in for column {column.name!r}: it holds text, which has no order here.")
    found = np.asarray(ORDERS[op](column.values, value), dtype=bool)
    return _Answer(found & column.known, ~found & column.known)


def _constant(column: _Column, node: ast.expr) -> Any:
    """Return the value that a column is compared with, in the column's own kind."""
    value = _literal(node)
    if column.name == "label" and isinstance(value, int):
        return _class_name(column, value)
    if column.kind == "text" and isinstance(value, str):
        return _known_text(column, value)
    if column.kind == "number" and isinstance(value, int | float):
        return _in_dtype(column, value)
    if isinstance(node, ast.Constant) and node.value is None:
        raise RequestError(f"Missing values equal nothing; write 'is None' after the name of {column.name!r}.")
    cure = "write the value in quotes" if column.kind == "text" else "write the value as a number, without quotes"
    raise RequestError(f"Column {column.name!r} holds {column.kind}, got {_words(node)}; {cure}.")


def _literal(node: ast.expr) -> str | int | float | None:
    """Return the text or number a node writes down; None for all else, truth values among it."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return None if isinstance(value, bool) else -value
        case ast.Constant(value=str() | int() | float() as value):
            return None if isinstance(value, bool) else value
    return None


def _in_dtype(column: _Column, value: float) -> Any:
    """Return a number as the column would hold it: 0.1 equals the float32 that 0.1 was stored as."""
    if not np.issubdtype(column.values.dtype, np.floating):
        return value
    try:
        with np.errstate(over="ignore"):
            return column.values.dtype.type(value)
    except OverflowError as error:
        raise RequestError(f"A number compared with column {column.name!r} is too large for any float.") from error


def _class_name(column: _Column, index: int) -> str:
    classes = column.choices or ()
    if not 0 <= index < len(classes):
        raise RequestError(f"Expected a class index from 0 to {len(classes) - 1} for 'label', got {index}.")
    return classes[index]


def _known_text(column: _Column, value: str) -> str:
    if column.choices is not None and value not in column.choices:
        raise RequestError(f"Column {column.name!r} never holds {value!r}.{nearest(value, column.choices)}")
    return value


def _words(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=value):
            return {str: "text", int: "a number", float: "a number"}.get(type(value), type(value).__name__)
        case ast.Name():
            return "a column"
        case ast.List() | ast.Tuple():
            return "a list"
    return f"something else ({type(node).__name__})"
