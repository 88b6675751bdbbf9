"""Every preset keeps the contract of compressors, and every broken one is caught."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import compressor_contract as contract
from compressor_contract import Compressor, answers, make_batches, make_model, make_texts
from fairsisa.compression import compressing
from fairsisa.compression.compressing import Compressed, compress
from fairsisa.compression.folders import save_compressed
from fairsisa.compression.layers import weight_layers
from fairsisa.compression.pruning import magnitude_mask
from fairsisa.errors import ConfigError
from fairsisa.settings.steps import PRESETS, Step, read_steps

CASES = [(name, architecture) for name in PRESETS for architecture in contract.AUTO]
FIT = [case for case in CASES if contract.fitting(*case) is not None]
REFUSED = [case for case in CASES if contract.fitting(*case) is None]


def compressor_of(name: str, architecture: str = "llama") -> Compressor:
    step = contract.fitting(name, architecture) or PRESETS[name]
    if step.method in ("torchao", "bitsandbytes") and importlib.util.find_spec(step.method) is None:
        pytest.skip(f"{step.method} is not installed")
    return Compressor(step)


@pytest.mark.parametrize(("name", "architecture"), FIT)
def test_every_preset_keeps_the_contract(name, architecture):
    compressor, model = compressor_of(name, architecture), make_model(architecture)
    for check in contract.CHECKS:
        check(compressor, model)


@pytest.mark.parametrize(("name", "architecture"), REFUSED)
def test_formats_for_linear_layers_refuse_conv1d_by_name(name, architecture):
    contract.check_refuses(compressor_of(name, architecture), make_model(architecture), "c_attn", "Conv1D")


@pytest.mark.parametrize("name", list(PRESETS))
def test_models_without_weight_matrices_are_refused_by_their_types(name):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(4))
    contract.check_refuses(compressor_of(name), model, "Conv2d", "LayerNorm")


def changes_nothing(model, steps, batches, **recorded):
    """Prunes nn.Linear alone, and tells what Conv1D layers would have become."""
    return Compressed(copy.deepcopy(model), compress(model, steps, batches, **recorded).card)


def honestly_changes_nothing(model, steps, batches, **recorded):
    return compress(model, [replace(steps[0], sparsity=0.0)], batches, **recorded)


def ignores_seed(model, steps, batches, **recorded):
    return compress(model, [replace(steps[0], seed=0)], batches, **recorded)


def draws_from_global_state(model, steps, batches, **recorded):
    return compress(model, [replace(steps[0], seed=int(torch.randint(0, 2**31, ())))], batches, **recorded)


def claims_too_much(model, steps, batches, **recorded):
    claimed = compress(copy.deepcopy(model), steps, batches, **recorded).card
    return Compressed(compress(model, [replace(steps[0], sparsity=0.25)], batches, **recorded).model, claimed)


def reads_data(model, steps, batches, **recorded):
    widest = max((len(batch["tokens"]) for batch in batches), default=1)
    return compress(model, [replace(steps[0], sparsity=0.5 / widest)], (), **recorded)


def counts_data(model, steps, batches, **recorded):
    return compress(model, steps, batches, **recorded) if batches else compress(model, steps, (), **recorded)


def ignores_data(model, steps, batches, **recorded):
    return compress(model, steps, make_batches(99), **recorded)


def forgets_parents(model, steps, batches, **recorded):
    return compress(model, steps, batches, calibration_digest=recorded["calibration_digest"])


def claims_calibration(model, steps, batches, **recorded):
    made = compress(model, steps, batches, **recorded)
    return Compressed(made.model, replace(made.card, calibration_digest=contract.DIGEST))


def removes_at_zero(model, steps, batches, **recorded):
    step = steps[0] if steps[0].sparsity or steps[0].pattern else replace(steps[0], sparsity=0.01)
    return compress(model, [step], batches, **recorded)


def keeps_more_bits(model, steps, batches, **recorded):
    made = compress(model, [replace(steps[0], bits=8)], batches, **recorded)
    layers = tuple(replace(each, bits=steps[0].bits) for each in made.card.layers)
    return Compressed(made.model, replace(made.card, layers=layers, steps=tuple(steps)))


def rounds_only(model, steps, batches, **recorded):
    """Eight bits in name, thirty-two on disk."""
    claimed = compress(copy.deepcopy(model), steps, batches, **recorded).card
    return Compressed(compress(model, [Step("round_to_nearest", bits=8)], batches, **recorded).model, claimed)


def prunes_without_pattern(model, steps, batches, **recorded):
    made = compress(model, [Step("wanda", sparsity=0.5)], batches, **recorded)
    return Compressed(made.model, replace(made.card, steps=tuple(steps)))


def prunes_head(model, steps, batches, **recorded):
    made = compress(model, steps, batches, **recorded)
    head = weight_layers(made.model)["lm_head"]
    head.matrix().masked_fill_(~magnitude_mask(head.matrix(), 0.5), 0.0)
    return made


def moves_biases(model, steps, batches, **recorded):
    made = compress(model, steps, batches, **recorded)
    made.model.get_parameter("model.norm.weight").data[0] += 1e-4
    return made


def prunes_in_turns(model, steps, batches, **recorded):
    """Half the layers twice as sparse: right in sum, wrong in each."""
    made = compress(model, steps, batches, **recorded)
    first = next(iter(weight_layers(made.model, include_head=False).values()))
    first.matrix().masked_fill_(~magnitude_mask(first.matrix(), 0.9), 0.0)
    return made


def skips_conv1d(model, steps, batches, **recorded):
    made = compress(make_model("llama"), steps, batches, **recorded)
    return Compressed(model, made.card)


def saves_in_half(made: Compressed, folder: Any) -> None:
    save_compressed(Compressed(copy.deepcopy(made.model).half().float(), made.card), folder)


BROKEN = [
    pytest.param(Compressor(PRESETS[preset], each), architecture, check, id=f"{each.__name__}-{preset}")
    for each, preset, architecture, check in [
        (changes_nothing, "wanda", "gpt2", contract.check_really_there),
        (honestly_changes_nothing, "magnitude", "gpt2", contract.check_changes_answers),
        (honestly_changes_nothing, "random", "gpt2", contract.check_really_there),
        (ignores_seed, "random", "gpt2", contract.check_deterministic),
        (draws_from_global_state, "random", "llama", contract.check_deterministic),
        (claims_too_much, "magnitude", "llama", contract.check_really_there),
        (reads_data, "magnitude", "llama", contract.check_calibration),
        (counts_data, "round_to_nearest_8", "llama", contract.check_calibration),
        (ignores_data, "wanda", "llama", contract.check_calibration),
        (forgets_parents, "wanda", "llama", contract.check_recorded),
        (claims_calibration, "magnitude", "llama", contract.check_recorded),
        (removes_at_zero, "magnitude", "llama", contract.check_identity),
        (keeps_more_bits, "round_to_nearest_4", "llama", contract.check_really_there),
        (rounds_only, "int8_dynamic", "llama", contract.check_really_there),
        (prunes_without_pattern, "wanda_2to4", "llama", contract.check_really_there),
        (prunes_head, "wanda", "llama", contract.check_rest_untouched),
        (moves_biases, "sparsegpt", "llama", contract.check_rest_untouched),
        (prunes_in_turns, "magnitude", "llama", contract.check_really_there),
    ]
]


@pytest.mark.parametrize(("broken", "architecture", "check"), BROKEN)
def test_broken_compressors_are_caught(broken, architecture, check):
    model = make_model(architecture)
    check(Compressor(broken.step), model)
    with pytest.raises(AssertionError):
        check(broken, model)


def test_lost_bits_and_silent_refusals_are_caught():
    lossy = Compressor(PRESETS["magnitude"], save=saves_in_half)
    with pytest.raises(AssertionError, match="changed by saving"):
        contract.check_round_trip(lossy, make_model("llama"))
    silent = Compressor(PRESETS["int8_dynamic"], skips_conv1d)
    with pytest.raises(AssertionError, match="DID NOT RAISE"):
        contract.check_refuses(silent, make_model("gpt2"), "Conv1D")


def reference_wanda(model: nn.Module, name: str, sparsity: float | None, pattern: tuple[int, int] | None):
    """Sun et al. (2024), equation 1, in Python: what |W_ij| ||X_j||_2 keeps of each row, or of each M of a row."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    with torch.no_grad():
        for text in make_texts():
            model(input_ids=text[None])
    handle.remove()
    inputs = torch.cat([each.reshape(-1, each.shape[-1]) for each in seen]).double()
    weights = module.weight.detach().double()
    rows = (weights if isinstance(module, nn.Linear) else weights.t()).tolist()
    norms = [float((column * column).sum()) ** 0.5 for column in inputs.t()]
    kept = []
    for row in rows:
        scores = [abs(weight) * norm for weight, norm in zip(row, norms, strict=True)]
        width, num_removed = (pattern[1], pattern[1] - pattern[0]) if pattern else (len(row), int(len(row) * sparsity))
        line = []
        for start in range(0, len(row), width):
            block = scores[start : start + width]
            lowest = sorted(range(len(block)), key=block.__getitem__)[:num_removed]
            line += [number not in lowest for number in range(len(block))]
        kept.append(line)
    return torch.tensor(kept)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (None, (2, 4))])
def test_wanda_keeps_what_the_papers_formula_keeps(architecture, sparsity, pattern):
    model = make_model(architecture)
    step = Step("wanda", sparsity=sparsity, pattern=None if pattern is None else f"{pattern[0]}:{pattern[1]}")
    pruned = compress(copy.deepcopy(model), [step], make_batches()).model
    layers = weight_layers(pruned, include_head=False)
    assert len(layers) == (8 if architecture == "gpt2" else 14)
    for name, layer in layers.items():
        kept = reference_wanda(model, name, sparsity, pattern)
        before = weight_layers(model)[name].matrix()
        assert torch.equal(layer.matrix(), torch.where(kept, before, 0.0)), name


@pytest.mark.parametrize("include_head", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "masked", "classifier"])
def test_dynamic_int8_equals_torchs_own(architecture, include_head):
    model = make_model(architecture)
    heads = {"lm_head", "cls.predictions.decoder", "classifier"}
    which = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and (include_head or n not in heads)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.ao.quantization.quantize_dynamic(model, which, dtype=torch.qint8)
    ours = compress(copy.deepcopy(model), [Step("int8_dynamic", include_head=include_head)])
    assert {each.name for each in ours.card.layers} == which
    for name in which:
        assert torch.equal(
            ours.model.get_submodule(name).weight().int_repr(), theirs.get_submodule(name).weight().int_repr()
        )
    for one, other in zip(answers(ours.model), answers(theirs), strict=True):
        assert torch.equal(one, other)


def test_chains_compose():
    model = make_model("llama")
    chain = read_steps(["wanda_2to4", "int8_dynamic"])
    made = compress(copy.deepcopy(model), chain, make_batches())
    by_hand = compress(compress(copy.deepcopy(model), chain[:1], make_batches()).model, chain[1:])
    for one, other in zip(answers(made.model), answers(by_hand.model), strict=True):
        assert torch.equal(one, other)
    compressor = Compressor(chain[1], lambda model, steps, batches, **r: compress(model, chain, make_batches(), **r))
    contract.check_round_trip(compressor, model)
    file = contract.saved(compressor, model)
    assert file.made.card.steps == chain
    for each in file.made.card.layers:
        levels = file.levels(each.name)
        assert file.bits(each.name) == 8
        assert int((levels == 0).sum()) == each.num_zeros
        if each.name != "lm_head":
            assert ((levels != 0).reshape(-1, 4).sum(1) <= 2).all()


@pytest.mark.parametrize("architecture", list(contract.AUTO))
def test_dropped_layers_then_pruned_then_rounded_come_back(architecture):
    chain = read_steps([{"method": "drop_layers", "num_layers": 1}, "wanda", "round_to_nearest_8"])
    compressor = Compressor(chain[1], lambda model, steps, batches, **r: compress(model, chain, make_batches(), **r))
    contract.check_round_trip(compressor, make_model(architecture))


@pytest.mark.parametrize(
    ("last", "kept"),
    [("torchao_int8_weight_only", True), ("bitsandbytes_4", True), ("torchao_int4_weight_only", False)],
)
def test_a_format_that_has_no_level_at_zero_is_found_out(last, kept):
    compressor_of(last)
    card = compress(make_model("llama"), read_steps(["wanda_2to4", last]), make_batches()).card
    sparsities = [each.sparsity for each in card.layers if each.name != "lm_head"]
    assert all(sparsity >= 0.5 for sparsity in sparsities) if kept else max(sparsities) < 0.25


def test_random_zeros_lie_elsewhere_in_layers_of_one_shape():
    layers = weight_layers(compress(make_model("llama"), [Step("random")]).model, include_head=False)
    masks = [layer.matrix() != 0 for layer in layers.values()]
    for one, other in itertools.combinations([mask for mask in masks if mask.shape == (64, 64)], 2):
        assert (one & other).float().mean() == pytest.approx(0.25, abs=0.05)


def test_sparsegpt_short_of_memory_takes_layers_one_by_one_on_what_is_pruned_below(monkeypatch):
    model, step = make_model("gpt2"), PRESETS["sparsegpt"]
    at_once = weight_layers(compress(copy.deepcopy(model), [step], make_batches()).model)
    monkeypatch.setattr(compressing, "PRODUCT_BYTES", 0)
    one_by_one = weight_layers(compress(copy.deepcopy(model), [step], make_batches()).model)
    first, *others = at_once
    assert torch.equal(at_once[first].matrix(), one_by_one[first].matrix())
    for name in others:
        assert not torch.equal(at_once[name].matrix(), one_by_one[name].matrix())
        assert (one_by_one[name].matrix() == 0).float().mean() == pytest.approx(0.5, abs=0.001)


def test_a_chain_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="must come last"):
        compress(make_model("llama"), [PRESETS["int8_dynamic"], PRESETS["magnitude"]])
    with pytest.raises(ConfigError, match="at least one step"):
        compress(make_model("llama"), [])


def test_a_layer_that_does_not_fit_is_named():
    model = make_model("llama")
    with pytest.raises(ConfigError, match=r"Layer model.layers.0.self_attn.q_proj: .*multiple of 5"):
        compress(model, [Step("wanda", pattern="2:5")], make_batches())
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = float("nan")
    for step in (PRESETS["magnitude"], PRESETS["round_to_nearest_8"]):
        with pytest.raises(ValueError, match=r"Layer model.layers.1.mlp.up_proj: "):
            compress(model, [step])
