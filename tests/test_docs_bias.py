from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fairsisa.bias.benchmark import Benchmark
from fairsisa.bias.catalogue import benchmarks
from fairsisa.bias.judging import CHAT_JUDGE
from fairsisa.bias.measuring import SHARE_SCORED
from fairsisa.cli.catalogue import VERBS
from fairsisa.cli.composing import compose

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "bias.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/\w+\.py)(?:::(test_\w+))?`")
NAMED_FILE = re.compile(r"\b(?:docs|conf|tests|fairsisa)/[\w/]+\.(?:md|yaml|py)\b")
COMPOSED = ("bias", "compare", "train")


def quoted(text: str) -> set[str]:
    """Return what stands in backticks, code blocks left out."""
    return {words(each) for each in re.findall(r"`([^`]+)`", FENCE.sub("", text))}


def sections() -> list[tuple[str, str]]:
    """Return each heading with what stands below it, up to the next one."""
    found = [*HEADING.finditer(PAGE)]
    ends = [*(each.start() for each in found[1:]), len(PAGE)]
    return [(each[2], PAGE[each.end() : end]) for each, end in zip(found, ends, strict=True)]


def section_of(name: str) -> str:
    own = [text for heading, text in sections() if name in quoted(heading)]
    assert len(own) == 1, f"{name} has {len(own)} headings"
    return own[0]


def words(text: str) -> str:
    return " ".join(text.split())


def commands() -> list[list[str]]:
    lines = [line for block in FENCE.findall(PAGE) for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


ALL = [pytest.param(each, id=name) for name, each in benchmarks().items()]


@pytest.mark.parametrize("benchmark", ALL)
def test_a_benchmark_is_told_whole(benchmark: Benchmark) -> None:
    text = section_of(benchmark.name)
    told = quoted(text)
    assert {readout.name for readout in benchmark.readouts} <= told
    assert {metric.name for metric in benchmark.metrics} <= told
    assert set(benchmark.breakdown) <= told
    for word in ("Source", "Criticism", "Licence"):
        assert word in text, f"{benchmark.name} has no {word.lower()}"


@pytest.mark.parametrize("benchmark", ALL)
def test_what_no_paper_says_is_said_to_be_ours(benchmark: Benchmark) -> None:
    ours = "know of none in what we read"
    assert benchmark.criticism.strip()
    assert "none found" not in benchmark.criticism.lower()
    if ours in benchmark.criticism:
        assert ours in words(section_of(benchmark.name))


def test_what_restricts_the_use_of_data_is_told() -> None:
    for benchmark in benchmarks().values():
        for licence in re.findall(r"CC BY(?:-\w+)* \d\.\d|AFL-3\.0", benchmark.licence):
            assert licence in words(section_of(benchmark.name))
        if "-NC-" in benchmark.licence:
            assert "not for commercial use" in words(section_of(benchmark.name))


def test_no_heading_tells_of_a_benchmark_that_is_not_there() -> None:
    start, stop = PAGE.index("## Benchmarks of bias"), PAGE.index("## Statistics")
    headings = [each[2] for each in HEADING.finditer(PAGE[start:stop]) if each[1] == "###"]
    assert set().union(*map(quoted, headings)) - {"lm_eval/<task>"} == set(benchmarks())


def test_readouts_are_explained() -> None:
    explained = quoted(dict(sections())["Readouts"])
    assert {readout.name for each in benchmarks().values() for readout in each.readouts} <= explained
    assert SHARE_SCORED.name in quoted(PAGE)


def test_named_tests_and_files_are_there() -> None:
    named = NAMED_TEST.findall(words(PAGE))
    assert len(named) > 20
    for path, name in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{path} has no {name}"
    for path in NAMED_FILE.findall(PAGE):
        assert (ROOT / path).is_file(), f"{path} is not there"


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_compose(command: list[str]) -> None:
    program, verb, *overrides = command
    assert program == "fairsisa"
    if overrides == ["list"]:
        assert f"{verb} list" in VERBS
        return
    assert verb in COMPOSED
    config = compose(verb, overrides)
    if verb == "train":
        return
    named = config["benchmarks"] if isinstance(config["benchmarks"], list) else [config["benchmarks"]]
    for each in named:
        name, _, readout = each.partition(":")
        assert not readout or readout in {one.name for one in benchmarks()[name].readouts}


def test_every_rater_has_the_command_that_trains_it() -> None:
    trained = [command for command in commands() if command[1] == "train"]
    raters = {readout.rater for each in benchmarks().values() for readout in each.readouts} - {None, CHAT_JUDGE}
    assert raters
    for name in raters:
        assert ["fairsisa", "train", f"experiment={name}_rater", f"run=runs/{name}_rater"] in trained
