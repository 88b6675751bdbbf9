from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import ConfigError
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    plain,
    plain_steps,
    read_steps,
    settings_from,
)
from fairsisa.settings.compression import NAME, OUTDATED, TAKEN, file_name
from fairsisa.settings.steps import CALIBRATED, PRESETS, PRUNING, QUANTISING, TAKES, TORCHAO, Step

FLAGS = st.booleans()
SHARES = st.floats(0, 1, exclude_max=True)
PATTERNS = st.tuples(st.integers(1, 16), st.integers(0, 16)).map(lambda pair: f"{pair[0]}:{sum(pair)}")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "pool": st.sampled_from(["layer", "model"]),
    "seed": st.integers(0, 2**31),
    "num_layers": st.integers(1, 40),
    "keep": st.sampled_from(["alternate", "first"]),
    "bits": st.integers(2, 32),
    "group_size": st.integers(1, 512),
    "symmetric": FLAGS,
    "scheme": st.sampled_from(TORCHAO),
    "include_head": FLAGS,
}
NEEDED = {"drop_layers": {"num_layers": 2}}
SAMPLES: dict[str, Any] = {
    "sparsity": 0.3,
    "pattern": "2:4",
    "pool": "model",
    "seed": 3,
    "num_layers": 2,
    "keep": "first",
    "bits": 4,
    "group_size": 8,
    "symmetric": False,
    "scheme": "int8_dynamic",
    "include_head": True,
}
SETTINGS = tuple(each.name for each in fields(Step) if each.name != "method")


@st.composite
def step_values(draw: st.DrawFn, methods: tuple[str, ...] = tuple(TAKES)) -> dict[str, Any]:
    """Draw what a user may write of one step."""
    method = draw(st.sampled_from(methods))
    chosen = {"bits": st.sampled_from([4, 8])} if method == "bitsandbytes" else {}
    optional = {name: (VALUES | chosen)[name] for name in TAKES[method] if name in VALUES and name != "num_layers"}
    values = draw(st.fixed_dictionaries({}, optional=optional))
    if method == "drop_layers":
        values["num_layers"] = draw(VALUES["num_layers"])
    which = draw(st.sampled_from(["sparsity", "pattern", "neither"]))
    if which in TAKES[method]:
        values[which] = draw(SHARES if which == "sparsity" else PATTERNS)
    return {"method": method, **values}


@st.composite
def chains(draw: st.DrawFn) -> list[dict[str, Any] | str]:
    """Draw a chain of steps: what can only come last comes last."""
    early = tuple(method for method in TAKES if method not in QUANTISING[1:])
    steps: list[Any] = draw(st.lists(step_values(early), max_size=3))
    last = draw(st.one_of(step_values(), st.sampled_from(sorted(PRESETS))))
    return [*steps, last]


@given(step_values())
def test_a_step_keeps_what_it_is_told_and_fills_in_what_else_it_reads(values):
    (step,) = read_steps([values])
    assert {name: getattr(step, name) for name in values} == values
    unread = set(SETTINGS) - set(TAKES[step.method])
    assert [getattr(step, name) for name in sorted(unread)] == [None] * len(unread)
    optional = {"group_size"} | ({"pattern"} if step.pattern is None else {"sparsity"})
    assert not [name for name in TAKES[step.method] if getattr(step, name) is None and name not in optional]


@given(chains())
def test_plain_steps_are_json_and_read_back_as_the_same_steps(values):
    steps = read_steps(values)
    assert read_steps(json.loads(json.dumps(plain_steps(steps)))) == steps
    assert plain_steps(read_steps(plain_steps(steps))) == plain_steps(steps)


@pytest.mark.parametrize("method", TAKES)
@pytest.mark.parametrize("name", SETTINGS)
def test_each_method_takes_its_own_settings_and_refuses_the_others(method, name):
    values = NEEDED.get(method, {}) | {name: SAMPLES[name]}
    if name in TAKES[method]:
        assert getattr(Step(method, **values), name) == SAMPLES[name]
    else:
        with pytest.raises(ConfigError, match=rf"{method} does not read {name}=.*; it reads {TAKES[method][0]}"):
            Step(method, **values)


def test_pruning_quantising_and_calibrated_methods_are_those_there_are():
    assert {*PRUNING, *QUANTISING} == set(TAKES)
    assert {method for method in TAKES if "pattern" in TAKES[method]} == set(CALIBRATED)


@pytest.mark.parametrize(
    ("method", "heard"),
    [
        ("magnitude", {"sparsity": 0.5, "pool": "layer", "include_head": False}),
        ("wanda", {"sparsity": 0.5, "pattern": None, "include_head": False}),
        ("sparsegpt", {"sparsity": 0.5, "pattern": None, "include_head": False}),
        ("random", {"sparsity": 0.5, "seed": 0, "include_head": False}),
        ("round_to_nearest", {"bits": 8, "group_size": None, "symmetric": True, "include_head": True}),
        ("int8_dynamic", {"include_head": True}),
        ("torchao", {"scheme": "int8_weight_only", "group_size": None, "include_head": True}),
        ("bitsandbytes", {"bits": 8, "include_head": True}),
    ],
)
def test_what_a_step_does_unasked(method, heard):
    assert {name: getattr(Step(method), name) for name in TAKES[method]} == heard


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "wanda", "sparsity": 1.0}, r"sparsity below 1, the share removed, got 1\.0"),
        ({"method": "wanda", "sparsity": -0.1}, r"sparsity to be at least 0\.0, got -0\.1; the nearest valid"),
        ({"method": "wanda", "sparsity": float("nan")}, "sparsity to be a finite number"),
        ({"method": "wanda", "sparsity": 0.5, "pattern": "2:4"}, r"sparsity or compression\.pattern, got both"),
        ({"method": "wanda", "pattern": "5:4"}, "pattern such as 2:4, N of M kept, got '5:4'"),
        ({"method": "wanda", "pattern": "0:4"}, "pattern such as 2:4"),
        ({"method": "wanda", "pattern": "2-4"}, "pattern such as 2:4"),
        ({"method": "wanda", "pattern": "2:4:8"}, "pattern such as 2:4"),
        ({"method": "magnitude", "pool": "row"}, "pool to be one of layer, model, got 'row'"),
        ({"method": "drop_layers"}, r"Set compression\.num_layers, how many layers to keep"),
        ({"method": "drop_layers", "num_layers": 0}, "num_layers to be at least 1"),
        ({"method": "drop_layers", "num_layers": 2, "keep": "last"}, "keep to be one of alternate, first"),
        ({"method": "round_to_nearest", "bits": 1}, "bits to be at least 2"),
        ({"method": "round_to_nearest", "bits": 33}, "bits to be at most 32"),
        ({"method": "round_to_nearest", "group_size": 0}, "group_size to be at least 1"),
        ({"method": "bitsandbytes", "bits": 5}, "bits to be 4 or 8 with bitsandbytes, got 5"),
        (
            {"method": "torchao", "scheme": "int8"},
            "scheme to be one of .* Did you mean 'int8_dynamic'",
        ),
        ({"method": "wanda", "sparsity": "half"}, r"Expected compression\.sparsity to be a number, got 'half'"),
        ({"method": "wanda", "sparsity": True}, "sparsity to be a number, got True"),
        ({"method": "wanda", "pattern": 2.4}, r"pattern to be text, got 2\.4"),
        ({"method": "wanda", "include_head": "no"}, "include_head to be true or false, got 'no'"),
        ({"method": "random", "seed": 1.5}, r"seed to be a whole number, got 1\.5"),
        ({"method": "drop_layers", "num_layers": [1]}, r"num_layers to be a whole number, got \[1\]"),
        ({"method": "wanda", "sparsiti": 0.5}, "Unknown setting compression.sparsiti. Did you mean 'sparsity'"),
        ({"sparsity": 0.5}, "Unknown step of compression 'None'"),
        ("wonda", "Unknown step of compression 'wonda'. Did you mean 'wanda'"),
        ("wanda_2to5", "Unknown step of compression 'wanda_2to5'. Did you mean 'wanda_2to4'"),
        (3, "Expected compression to be a mapping, got 3"),
        (None, "Expected compression to be a mapping, got None"),
    ],
)
def test_what_no_step_can_be(values, said):
    with pytest.raises(ConfigError, match=said):
        read_steps([values])


def test_no_step_is_an_error_and_so_is_an_unknown_method_given_directly():
    with pytest.raises(ConfigError, match="Expected at least one step of compression"):
        read_steps([])
    with pytest.raises(ConfigError, match=r"compression\.method to be one of .* Did you mean 'magnitude'"):
        Step("magnitud")


@pytest.mark.parametrize("last", QUANTISING[1:])
@pytest.mark.parametrize("after", ["magnitude", "round_to_nearest", "int8_dynamic"])
def test_what_packs_weights_comes_last(last, after):
    with pytest.raises(ConfigError, match=rf"{last}.* must come last: what follows, {after}.*, cannot read"):
        read_steps([{"method": last}, {"method": after}])
    assert len(read_steps(["magnitude", "round_to_nearest_4", {"method": last}])) == 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_step_of_its_name_and_reads_back(name):
    assert read_steps([name]) == read_steps([{"method": name}]) == (PRESETS[name],)
    assert read_steps(plain_steps([PRESETS[name]])) == (PRESETS[name],)
    assert name.startswith(PRESETS[name].method)


def test_a_preset_may_be_changed():
    def changed(name: str, **values: Any) -> Step:
        return read_steps([{"method": name, **values}])[0]

    assert changed("wanda_2to4", include_head=True) == replace(PRESETS["wanda_2to4"], include_head=True)
    assert changed("wanda_2to4", sparsity=0.3) == Step("wanda", sparsity=0.3)
    assert changed("wanda_2to4", sparsity=None) == PRESETS["wanda_2to4"]
    assert changed("wanda", pattern="4:8") == PRESETS["wanda_4to8"]
    assert changed("round_to_nearest_4", group_size=None) == Step("round_to_nearest", bits=4)
    with pytest.raises(ConfigError, match="int8_dynamic does not read bits=4"):
        changed("int8_dynamic", bits=4)


@given(PATTERNS)
def test_a_pattern_is_two_numbers(pattern):
    assert Step("wanda", pattern=pattern).num_kept_of == tuple(map(int, pattern.split(":")))
    assert Step("wanda").num_kept_of is None


def test_nothing_and_nothing_point_nothing_are_one_step():
    assert plain_steps([Step("wanda", sparsity=0)])[0]["sparsity"] == 0.0
    assert isinstance(Step("wanda", sparsity=0).sparsity, float)


@pytest.mark.parametrize(
    ("step", "label"),
    [
        (Step("wanda"), "wanda 50%"),
        (Step("wanda", pattern="2:4"), "wanda 2:4"),
        (Step("magnitude", sparsity=0.3, pool="model"), "magnitude 30% over the model"),
        (Step("drop_layers", num_layers=3), "drop_layers to 3"),
        (Step("round_to_nearest", bits=4, group_size=32), "round_to_nearest 4 bits in groups of 32"),
        (Step("int8_dynamic"), "int8_dynamic"),
        (Step("torchao", scheme="int4_weight_only"), "torchao int4_weight_only"),
        (Step("bitsandbytes", bits=4), "bitsandbytes 4 bits"),
    ],
)
def test_a_step_in_a_few_letters(step, label):
    assert step.label == label


@given(chains(), st.sampled_from(["ensemble", "student.mean_score", "a"]))
def test_every_chain_has_a_name_that_a_file_may_have(values, source):
    name = CompressionSettings(tuple(values), source=source).chosen_name
    assert NAME.fullmatch(name)
    assert not TAKEN.fullmatch(name)
    assert CompressionSettings(tuple(values), source=source, name="mine").chosen_name == "mine"


def test_names_tell_source_and_steps():
    assert CompressionSettings(("wanda_2to4", "int8_dynamic")).chosen_name == "ensemble.wanda-2-4.int8_dynamic"
    assert CompressionSettings(("wanda",), source="mini").chosen_name == "mini.wanda-50"
    assert DistillationSettings().chosen_name == "student.mean_score"
    assert DistillationSettings(num_layers=2, teacher="shard-0").chosen_name == "student.shard-0.2-layers"
    assert DistillationSettings(scope="shard").chosen_name == "student.shards"
    assert DistillationSettings(name="x").chosen_name == "x"


@given(st.lists(st.text(max_size=90), min_size=1, max_size=4))
def test_any_words_make_a_file_name_or_none_at_all(parts):
    name = file_name("a", *parts)
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("made", [CompressionSettings, DistillationSettings])
@pytest.mark.parametrize(
    "name",
    ["", "a/b", "../a", ".a", "a b", "a" * 121, "ensemble", "majority_vote", "mean_score", "shard-17"],
)
def test_what_no_name_can_be(made, name):
    with pytest.raises(ConfigError, match="Expected name to be letters, digits"):
        made(name=name)
    assert made(name=f"a{'b' * 119}").chosen_name == f"a{'b' * 119}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"compression": ["wonda"]}, "Did you mean 'wanda'"),
        ({"compression": ["int8_dynamic", "wanda"]}, "must come last"),
        ({"compression": "wanda"}, r"Expected compression to be a list, got 'wanda'; write \[wanda\]"),
        ({"when_outdated": "rebild"}, "Did you mean 'rebuild'"),
        ({"sorce": "x"}, "Unknown setting sorce. Did you mean 'source'"),
    ],
)
def test_what_compression_cannot_be(values, said):
    with pytest.raises(ConfigError, match=said):
        settings_from(CompressionSettings, values, "")


def test_steps_are_asked_for_when_they_are_read():
    with pytest.raises(ConfigError, match="at least one step"):
        _ = CompressionSettings().steps


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": "test"}, "split to be one of calibration, train"),
        ({"num_examples": 0}, r"calibration\.num_examples to be at least 1"),
        ({"seed": -1}, r"calibration\.seed to be at least 0"),
        ({"block_length": 1}, r"calibration\.block_length to be at least 2"),
    ],
)
def test_what_calibration_cannot_be(values, said):
    with pytest.raises(ConfigError, match=said):
        CalibrationSettings(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scope": "shards"}, "Did you mean 'shard'"),
        ({"start": "techer"}, "Did you mean 'teacher'"),
        ({"keep": "last"}, "keep to be one of alternate, first"),
        ({"num_layers": 0}, "num_layers to be at least 1"),
        ({"when_outdated": "never"}, "when_outdated to be one of rebuild, stale, remove"),
        ({"teacher": "fair"}, "teacher=fair and postprocessor=<its name> together"),
        ({"postprocessor": "rule"}, "teacher=fair and postprocessor=<its name> together"),
        ({"scope": "shard", "teacher": "majority_vote"}, "each constituent teaches its own student"),
        ({"soft": -1.0}, r"soft to be at least 0\.0"),
        ({"attention": -0.5}, r"attention to be at least 0\.0"),
        ({"soft": 0.0}, "one of soft, hard, hidden, attention to be above 0, got 0 for each"),
        ({"temperature": 0.0}, r"temperature to be greater than 0\.0"),
        ({"temperature": float("inf")}, "temperature to be a finite number"),
    ],
)
def test_what_distillation_cannot_be(values, said):
    with pytest.raises(ConfigError, match=said):
        DistillationSettings(**values)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["a", "b.c", None]),
            "scope": st.sampled_from(["shard", "ensemble"]),
            "start": st.sampled_from(["base", "teacher"]),
            "num_layers": st.none() | st.integers(1, 12),
            "hard": st.floats(0, 9),
            "hidden": st.floats(0, 9),
            "temperature": st.floats(0.5, 9),
            "model": st.sampled_from([{}, {"shape": {"hidden_size": 16}}]),
            "trainer": st.sampled_from([{}, {"max_epochs": 2.0, "batch_size": 4}]),
            "when_outdated": st.sampled_from(OUTDATED),
        },
    )
)
def test_distillation_reads_back_from_plain_values(values):
    settings = settings_from(DistillationSettings, values, "")
    assert settings_from(DistillationSettings, json.loads(json.dumps(plain(settings))), "") == settings


@given(chains(), st.sampled_from(OUTDATED))
def test_compression_reads_back_from_plain_values(values, when):
    settings = settings_from(CompressionSettings, {"compression": values, "when_outdated": when}, "")
    again = settings_from(CompressionSettings, json.loads(json.dumps(plain(settings))), "")
    assert again == settings
    assert again.steps == settings.steps == read_steps(values)
