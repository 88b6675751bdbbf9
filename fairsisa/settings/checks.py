"""Checks of single settings; each error names the setting, what came and the nearest valid value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

from fairsisa.errors import ConfigError

THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
"""Hosts that plain http may address."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the closest known names, and what is known when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."


def refuse_unknown(where: str, values: object, known: Iterable[str]) -> None:
    """Raise ConfigError unless `values` is a mapping, and for its first key that is not known."""
    names = set(known)
    if not isinstance(values, Mapping):
        raise ConfigError(f"Expected {where or 'the settings'} to be a mapping, got {values!r}.")
    for key in values:
        if key not in names:
            prefix = f"{where}." if where else ""
            raise ConfigError(f"Unknown setting {prefix}{key}.{nearest(str(key), names)}")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    options = tuple(choices)
    if value not in options:
        raise ConfigError(f"Expected {name} to be one of {', '.join(options)}, got {value!r}.{nearest(value, options)}")


def in_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> None:
    """Raise ConfigError unless low <= value <= high and value > above; the message names the nearest valid value."""
    if not math.isfinite(value):
        raise ConfigError(f"Expected {name} to be a finite number, got {value}.")
    if above is not None and value <= above:
        raise ConfigError(f"Expected {name} to be greater than {above}, got {value}.")
    if low is not None and value < low:
        raise ConfigError(f"Expected {name} to be at least {low}, got {value}; the nearest valid value is {low}.")
    if high is not None and value > high:
        raise ConfigError(f"Expected {name} to be at most {high}, got {value}; the nearest valid value is {high}.")
