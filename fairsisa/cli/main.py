"""The entry point: find the verb, compose its settings, act, and turn errors into exit statuses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml

import fairsisa
from fairsisa.cli.catalogue import VERBS, Verb
from fairsisa.cli.composing import compose, config_folder, defaults_of, leaves, options
from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.sweeping import FLAGS, sweep
from fairsisa.errors import ConfigError, FairsisaError
from fairsisa.hushing import hush_imports
from fairsisa.settings import GROUPS, nearest, plain

STUDY = "deletions_"
TEXT = "corpus"
"""What an experiment of `pretrain` sets, and no other."""
HELP = frozenset({"-h", "--help", "help"})


def main() -> None:
    """Run the command line and leave with its exit status: 0 done, 1 failed, 2 asked wrongly."""
    hush_imports()
    sys.exit(run_command(sys.argv[1:]))


def run_command(words: Sequence[str]) -> int:
    """Run one command, such as ["train", "experiment=quickstart"]; return its exit status."""
    try:
        _run(list(words))
    except ConfigError as error:
        say(f"fairsisa: {error}", error=True)
        return 2
    except FairsisaError as error:
        say(f"fairsisa: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say("fairsisa: stopped; every finished slice is kept, run the same command to go on.", error=True)
        return 130
    return 0


def _run(words: list[str]) -> None:
    if not words or words[0] in HELP:
        _overview()
        return
    if words[0] == "--version":
        say(f"fairsisa {fairsisa.__version__}")
        return
    name, verb = _find(words)
    rest = words[len(name.split()) :]
    if HELP & set(rest):
        _help(verb)
    elif set(rest) & set(FLAGS):
        sweep(name, verb.root, rest, partial(_act, verb))
    else:
        _act(verb, compose(verb.root, rest), rest)


def _act(verb: Verb, config: dict[str, Any], overrides: Sequence[str]) -> None:
    module, _, function = verb.act.partition(".")
    verbs = importlib.import_module(f"fairsisa.cli.{module}")  # only now: it imports torch
    getattr(verbs, function)(config, overrides)


def _find(words: Sequence[str]) -> tuple[str, Verb]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, VERBS[name]
    asked = " ".join(word for word in words[:2] if "=" not in word)
    raise ConfigError(f"Unknown command {asked!r}.{nearest(asked, VERBS)}")


def _overview() -> None:
    say(f"{fairsisa.__doc__}\n")
    print_rows([{"command": f"fairsisa {name}", "what it does": verb.summary} for name, verb in VERBS.items()])
    say("\nSettings follow as key=value; `fairsisa <command> --help` lists them.")


def _help(verb: Verb) -> None:
    config = defaults_of(verb.root)
    say(f"{verb.summary}\n\n  {verb.example}\n")
    groups = {group: names for group, names in sorted(options().items()) if group in config}
    experiments = [name for name in options()["experiment"] if _root_of(name) == verb.root]
    if experiments:
        groups = {"experiment": experiments, **groups}
    say("Choose as a whole:")
    for group, names in groups.items():
        say(f"  {group}={' | '.join(names)}")
    say("\nSet one by one, shown with their defaults (??? is for you to give):")
    for key, value in leaves(config):
        say(f"  {key}={'null' if value is None else value}")
    for group in (name for name in groups if config.get(name, "") is None):
        say(f"\nAnd with {group}=...:")
        for key, value in leaves({group: plain(GROUPS[group]())}):
            say(f"  {key}={'null' if value is None else value}")
    say(f"\nSweep with -m and commas, e.g. {verb.example.split(' run=', maxsplit=1)[0]} -m seed=0,1,2")


def _root_of(experiment: str) -> str:
    """Return the root config that an experiment is for."""
    if experiment.startswith(STUDY):
        return "simulate"
    content = yaml.safe_load((config_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    return "pretrain" if TEXT in content else "train"
