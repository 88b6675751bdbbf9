from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import ConfigError
from fairsisa.settings import (
    AGGREGATIONS,
    GROUPS,
    EvaluationSettings,
    ModelSettings,
    PathSettings,
    TrainerSettings,
    in_range,
    nearest,
    one_of,
    plain,
    refuse_unknown,
    run_settings,
    settings_from,
)

FIELDS = [(group, field.name) for group, kind in GROUPS.items() for field in dataclasses.fields(kind)]
WRONG = {
    "int": ("three", 1.5, True, [1], {"a": 1}),
    "float": ("fast", True, [1], {"a": 1}),
    "str": (3, 0.5, True, ["a"], {"a": 1}),
    "bool": (1, "true", 0.0),
    "tuple": ("abc", 3, [True], [["x"]]),
    "Mapping": (3, "abc", [1]),
}
BAD_VALUES = [
    ("scoring", "max_tokens", 0, "nearest valid value is 1"),
    ("scoring", "precision", "fp61", "fp32, bf16, fast"),
    ("scoring", "num_continuations", 0, "nearest valid value is 1"),
    ("scoring", "temperature", -0.5, "nearest valid value is 0"),
    ("scoring", "top_p", 0.0, "greater than 0"),
    ("scoring", "max_new_tokens", 0, "nearest valid value is 1"),
    ("scoring", "cache_bits", 3, "2, 4, 8, 16 or null"),
    ("scoring", "accelerator", "gpu", "auto, cpu, cuda"),
    ("scoring", "threads", 0, "nearest valid value is 1"),
    ("scoring", "seed", -1, "nearest valid value is 0"),
    ("judge", "url", "ftp://judge.example", "https"),
    ("judge", "temperature", -0.1, "nearest valid value is 0"),
    ("judge", "max_tokens", 0, "nearest valid value is 1"),
    ("judge", "num_retries", -1, "nearest valid value is 0"),
    ("judge", "timeout", 0.0, "greater than 0"),
    ("judge", "wait", -1.0, "nearest valid value is 0"),
    ("model", "kind", "forest", "mlp"),
    ("model", "trains", "ful", "full"),
    ("model", "max_length", 1, "nearest valid value is 2"),
    ("model", "frozen_layers", -1, "nearest valid value is 0"),
    ("model", "lora_rank", 0, "nearest valid value is 1"),
    ("model", "lora_alpha", 0, "nearest valid value is 1"),
    ("model", "dropout", 0.95, "nearest valid value is 0.9"),
    ("model", "dropout", -0.1, "nearest valid value is 0.0"),
    ("model", "hidden", [0], "nearest valid value is 1"),
    ("partition", "num_shards", 0, "nearest valid value is 1"),
    ("partition", "num_slices", 0, "nearest valid value is 1"),
    ("partition", "strategy", "stratify", "Did you mean 'stratified'"),
    ("trainer", "max_epochs", 0, "greater than 0"),
    ("trainer", "max_epochs", math.inf, "finite"),
    ("trainer", "max_epochs", math.nan, "finite"),
    ("trainer", "budget", "per_shard", "Did you mean 'per_slice'"),
    ("trainer", "batch_size", 0, "nearest valid value is 1"),
    ("trainer", "learning_rate", 0.0, "greater than 0"),
    ("trainer", "weight_decay", -1e-9, "nearest valid value is 0"),
    ("trainer", "warmup", 1.5, "nearest valid value is 1"),
    ("trainer", "warmup", -0.5, "nearest valid value is 0"),
    ("trainer", "schedule", "slices", "Did you mean 'slice'"),
    ("trainer", "optimizer_state", "carry", "Did you mean 'carried'"),
    ("trainer", "gradient_clip", 0.0, "greater than 0"),
    ("trainer", "precision", "fp16", "Did you mean 'bf16'|Did you mean 'fp32'"),
    ("trainer", "accelerator", "gpu", "Did you mean 'cpu'"),
    ("trainer", "threads", 0, "nearest valid value is 1"),
    ("trainer", "log_every_n_steps", 0, "nearest valid value is 1"),
    ("evaluation", "aggregation", "majority", "Did you mean 'majority_vote'"),
    ("evaluation", "baselines", ["hole"], "Did you mean 'whole'"),
    ("evaluation", "num_replicates", 99, "nearest valid value is 100"),
    ("evaluation", "num_replicates", 100_001, "nearest valid value is 100000"),
    ("evaluation", "level", 1.0, "nearest valid value is 0.999"),
    ("evaluation", "level", 0.4, "nearest valid value is 0.5"),
    ("execution", "kind", "slurm", r"one of local, submitit, ray, got 'slurm'"),
    ("execution", "num_workers", 0, "nearest valid value is 1"),
    ("execution", "max_retries", -1, "nearest valid value is 0"),
    ("execution", "memory_gb", 0.0, "greater than 0.0"),
    ("execution", "cluster", "pbs", r"one of auto, slurm, local, debug, got 'pbs'"),
    ("execution", "timeout_minutes", 0, "nearest valid value is 1"),
    ("study", "patterns", ["random"], "one of uniform, group, label"),
    ("study", "patterns", ["label", "label"], "each pattern once"),
    ("study", "patterns", ["group"], r"set study.sensitive_feature=\.\.\. too"),
    ("study", "steps", [3, 1], "ascending"),
    ("study", "steps", [0, 1], "whole numbers from 1"),
    ("study", "repeats", 0, "nearest valid value is 1"),
    ("simulate", "requests_per_day", 0.0, "greater than 0"),
    ("simulate", "max_delay_days", math.inf, "finite"),
    ("simulate", "max_bytes", 0, "nearest valid value is 1"),
    ("simulate", "bytes_per_checkpoint", 0, "nearest valid value is 1"),
    ("simulate", "examples_per_second", -1.0, "greater than 0"),
    ("simulate", "num_examples", 20_000_000, "nearest valid value is 10000000"),
    ("simulate", "max_epochs", 0.0, "greater than 0"),
    ("simulate", "shards", [0], "nearest valid value is 1"),
    ("simulate", "slices", [0], "nearest valid value is 1"),
    ("simulate", "windows", [-1], "nearest valid value is 1"),
    ("simulate", "distribution", "unifrm", "Did you mean 'uniform'"),
    ("simulate", "group_share", 0.0, "greater than 0"),
    ("simulate", "group_weight", 1.0, "at most 0.99"),
    ("simulate", "risks", "gauss", "one of run, pareto, beta"),
    ("simulate", "pareto_index", 0.0, "greater than 0"),
    ("simulate", "beta_shape", [1.0], "to hold two numbers"),
    ("simulate", "beta_shape", [0.0, 1.0], "greater than 0"),
    ("simulate", "strategy", "stratified", "one of uniform, risk_aware"),
    ("simulate", "num_trials", 9, "nearest valid value is 10"),
    ("simulate", "seed", -1, "nearest valid value is 0"),
    ("store", "retention", "lst", "Did you mean 'last'"),
    ("store", "retention", "optimal", r"set store\.max_bytes=\.\.\. too"),
    ("store", "keep_last", 0, "nearest valid value is 1"),
    ("store", "max_bytes", 0, "nearest valid value is 1"),
    ("request", "unknown", "skipp", "Did you mean 'skip'"),
    ("unlearning", "verify", "repley", "Did you mean 'replay'"),
    ("calibration", "split", "test", "one of calibration, train"),
    ("calibration", "num_examples", 0, "nearest valid value is 1"),
    ("calibration", "seed", -1, "nearest valid value is 0"),
    ("calibration", "block_length", 1, "nearest valid value is 2"),
]


def hint_of(group: str, name: str) -> tuple[str, bool]:
    hint = typing.get_type_hints(GROUPS[group])[name]
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    kind = next(option for option in options if option is not type(None))
    return (typing.get_origin(kind) or kind).__name__, type(None) in options


def config(**changes: Any) -> dict[str, Any]:
    return {"seed": 0, "data": {"name": "synthetic_text"}, **changes}


def plain_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain_types(item) for key, item in value.items()}
    return [plain_types(item) for item in value] if isinstance(value, list) else (type(value), value)


@pytest.mark.parametrize("group", GROUPS)
def test_every_default_survives_json_and_yaml(group):
    defaults = GROUPS[group]()
    for copy in (json.loads(json.dumps(plain(defaults))), yaml.safe_load(yaml.safe_dump(plain(defaults)))):
        again = settings_from(GROUPS[group], copy, group)
        assert again == defaults
        assert plain_types(plain(again)) == plain_types(plain(defaults))


def test_a_whole_run_survives_json_and_yaml():
    first = run_settings(
        config(
            seed=7,
            model={
                "architecture": "bert",
                "shape": {"hidden_size": 8, "nested": {"a": [1, None]}},
                "lora_targets": ["q"],
            },
            partition={"num_slices": 2},
            trainer={"budget": "listed", "slice_epochs": [1, 2.5], "gradient_clip": None},
        )
    )
    assert run_settings(json.loads(json.dumps(plain(first)))) == first
    assert run_settings(yaml.safe_load(yaml.safe_dump(plain(first)))) == first


def test_absent_groups_and_keys_keep_the_defaults():
    made = run_settings({"data": {"name": "adult"}})
    assert (made.seed, made.model, made.trainer, made.evaluation) == (
        0,
        ModelSettings(),
        TrainerSettings(),
        EvaluationSettings(),
    )
    assert made.data == {"name": "adult"}


@pytest.mark.parametrize(("group", "name"), FIELDS)
def test_a_letter_left_out_is_answered_with_the_right_key(group, name):
    known = {field.name for field in dataclasses.fields(GROUPS[group])}
    for place in range(len(name)):
        wrong = name[:place] + name[place + 1 :]
        if wrong not in known and len(name) > 4:
            with pytest.raises(ConfigError, match=rf"^Unknown setting {group}\.{wrong}\. Did you mean '{name}'\?$"):
                settings_from(GROUPS[group], {wrong: 1}, group)


@pytest.mark.parametrize(("wrong", "right"), [("modell", "model"), ("sed", "seed"), ("partitions", "partition")])
def test_an_unknown_group_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=f"Unknown setting {wrong}. Did you mean '{right}'"):
        run_settings(config(**{wrong: {}}))


def test_a_key_close_to_none_is_answered_with_all():
    known = "account, address, .*, num_workers, partition, timeout_minutes"
    with pytest.raises(ConfigError, match=rf"Unknown setting execution\.xyz\. Known: {known}\."):
        settings_from(GROUPS["execution"], {"xyz": 1}, "execution")
    with pytest.raises(ConfigError, match=r"Unknown setting q\. Known: a, b\."):
        refuse_unknown("", {"q": 1}, ("b", "a"))


@pytest.mark.parametrize(("group", "name"), FIELDS)
def test_a_value_of_the_wrong_type_names_its_key(group, name):
    kind, optional = hint_of(group, name)
    for value in WRONG[kind]:
        with pytest.raises(ConfigError, match=rf"Expected {group}\.{name} to be "):
            settings_from(GROUPS[group], {name: value}, group)
    if optional:
        assert getattr(settings_from(GROUPS[group], {name: None}, group), name) is None
    else:
        with pytest.raises(ConfigError, match=rf"Expected {group}\.{name} to have a value, got null"):
            settings_from(GROUPS[group], {name: None}, group)


@pytest.mark.parametrize(("group", "name", "value", "cure"), BAD_VALUES)
def test_a_value_out_of_range_is_refused_with_a_cure(group, name, value, cure):
    with pytest.raises(ConfigError, match=cure) as caught:
        settings_from(GROUPS[group], {name: value}, group)
    assert f"{group}.{name}" in str(caught.value)
    assert str(value[0] if isinstance(value, list) else value) in str(caught.value)


def test_every_checked_field_has_a_bad_value():
    unchecked = {"base", "revision", "architecture", "shape", "freeze_embeddings", "lora_targets", "slice_epochs"}
    unchecked |= {"corpus", "account", "address", "partition", "keys", "group", "label", "out"}
    unchecked |= {"ids", "subjects", "file", "where", "reason", "degraded", "membership", "evaluate"}
    unchecked |= {"sensitive_feature", "sensitive_features", "headline_features", "root", "store", "cache", "data"}
    free = {("scoring", "chat_template"), ("judge", "model"), ("judge", "key_variable")}
    assert {(group, name) for group, name, _, _ in BAD_VALUES} == {
        (group, name) for group, name in FIELDS if name not in unchecked and (group, name) not in free
    }


@given(
    value=st.integers(-7, 11) | st.floats(allow_nan=True, allow_infinity=True),
    low=st.none() | st.integers(-5, 5),
    high=st.none() | st.integers(6, 9),
    above=st.none() | st.integers(-5, 5),
)
def test_a_range_accepts_exactly_what_is_inside_it(value, low, high, above):
    bounds = [low is None or value >= low, high is None or value <= high, above is None or value > above]
    if math.isfinite(value) and all(bounds):
        in_range("x", value, low=low, high=high, above=above)
        return
    with pytest.raises(ConfigError, match="Expected x to be"):
        in_range("x", value, low=low, high=high, above=above)


@given(st.integers(2, 50) | st.floats(2, 50))
def test_numbers_take_the_annotated_type(value):
    assert type(settings_from(TrainerSettings, {"max_epochs": value}, "trainer").max_epochs) is float
    if float(value).is_integer():
        made = settings_from(TrainerSettings, {"batch_size": value}, "trainer")
        assert (type(made.batch_size), made.batch_size) == (int, int(value))
        listed = {"budget": "listed", "slice_epochs": [value, 1]}
        assert settings_from(TrainerSettings, listed, "trainer").slice_epochs == (float(value), 1.0)


def test_a_text_is_no_list():
    with pytest.raises(ConfigError, match=r"Expected evaluation.baselines to be a list, got 'whole'; write \[whole\]"):
        settings_from(EvaluationSettings, {"baselines": "whole"}, "evaluation")


def test_zero_is_a_value_and_null_is_none():
    made = settings_from(ModelSettings, {"dropout": 0}, "model")
    assert (made.dropout, type(made.dropout)) == (0.0, float)
    assert settings_from(ModelSettings, {"dropout": None}, "model").dropout is None


def test_settings_do_not_share_the_mapping_they_were_made_from():
    shape = {"hidden_size": 8, "deep": [1, {"er": (2,)}]}
    made = settings_from(ModelSettings, {"shape": shape}, "model")
    shape["hidden_size"] = 9
    shape["deep"].append(2)
    shape["deep"][1]["er"] = (3,)
    assert made.shape == {"hidden_size": 8, "deep": [1, {"er": [2]}]}


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="seed"):
        run_settings(config()).seed = 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "mlp"}, "Expected model.hidden to name at least one layer width"),
        ({"kind": "logistic", "hidden": [4]}, r"logistic regression has no hidden layer, got model.hidden=\[4\]"),
    ],
)
def test_hidden_layers_must_fit_the_kind(values, said):
    with pytest.raises(ConfigError, match=said):
        settings_from(ModelSettings, values, "model")


@pytest.mark.parametrize("values", [{"budget": "listed"}, {"slice_epochs": [1.0]}])
def test_listed_epochs_and_the_list_come_together(values):
    with pytest.raises(ConfigError, match=r"budget=listed and trainer\.slice_epochs"):
        settings_from(TrainerSettings, values, "trainer")


@given(st.integers(1, 6), st.integers(1, 6))
def test_listed_epochs_are_one_a_slice(num_slices, num_listed):
    asked = config(
        partition={"num_slices": num_slices}, trainer={"budget": "listed", "slice_epochs": [1.0] * num_listed}
    )
    if num_slices == num_listed:
        assert run_settings(asked).trainer.slice_epochs == (1.0,) * num_slices
        return
    with pytest.raises(ConfigError, match=f"hold {num_slices} numbers, one a slice, got {num_listed}"):
        run_settings(asked)


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.inf])
def test_a_listed_epoch_is_positive_and_finite(epochs):
    with pytest.raises(ConfigError, match=r"Expected trainer\.slice_epochs to be"):
        TrainerSettings(budget="listed", slice_epochs=(1.0, epochs))


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        (-1, "seed to be at least 0"),
        (2**63, f"nearest valid value is {2**63 - 1}"),
        ("a", "seed to be a whole number"),
        (None, "seed to have a value"),
    ],
)
def test_a_seed_is_a_whole_number_from_zero(seed, said):
    with pytest.raises(ConfigError, match=said):
        run_settings(config(seed=seed))


@pytest.mark.parametrize("group", ["model", "partition", "trainer", "evaluation"])
@pytest.mark.parametrize("value", [3, "abc", None, [1]])
def test_a_group_is_a_mapping(group, value):
    with pytest.raises(ConfigError, match=rf"Expected {group} to be a mapping, got "):
        run_settings(config(**{group: value}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": 3}, "Expected data to be a mapping, got 3"),
        ({"data": "adult"}, "Expected data to be a mapping, got 'adult'"),
        ({"data": None}, "Expected data to have a value, got null"),
        ({"seed": 0}, "Expected data to have a value, got null"),
        (None, "Expected the settings to be a mapping, got None"),
    ],
)
def test_data_is_a_mapping_and_must_be_given(values, said):
    with pytest.raises(ConfigError, match=said):
        run_settings(values)


@given(st.text(max_size=12), st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_answer_to_a_wrong_name_is_always_a_known_one(wrong, known):
    answer = nearest(wrong, known)
    assert any(repr(name) in answer for name in known) or all(name in answer for name in known)


def test_one_of_accepts_each_choice_and_no_other():
    for choice in AGGREGATIONS:
        one_of("x", choice, AGGREGATIONS)
    with pytest.raises(ConfigError, match=r"Expected x to be one of majority_vote, mean_score, .* got 'mean'"):
        one_of("x", "mean", AGGREGATIONS)


def test_paths_are_plain_texts():
    assert all(isinstance(value, str | None) for value in plain(PathSettings()).values())
    assert isinstance(plain(ModelSettings())["shape"], Mapping)
