from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.quantizers import AutoQuantizationConfig

from fairsisa.compression.foreign import Packing, load_foreign, unpack_awq, unpack_gptq
from fairsisa.compression.layers import weight_layers
from fairsisa.errors import ModelError
from test_compression_torchao import SHAPE, answers, gpt2

WORD = 2**32
# AutoAWQ packs these outputs of every eight into a word, from the lowest four bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Levels:
    """A quantised matrix before packing: levels (outputs, inputs), zeros and scales (groups, outputs), groups."""

    levels: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    groups: list[int]

    def dense(self) -> torch.Tensor:
        weights = torch.empty(self.levels.shape)
        for out in range(len(weights)):
            for column, group in enumerate(self.groups):
                steps = int(self.levels[out, column]) - int(self.zeros[group, out])
                weights[out, column] = float(self.scales[group, out]) * steps
        return weights


def drawn(shape: tuple[int, int], bits: int, groups: list[int], seed: int, lowest_zero: int = 1) -> Levels:
    draw = torch.Generator().manual_seed(seed)
    grid = (max(groups) + 1, shape[0])
    return Levels(
        torch.randint(0, 2**bits, shape, generator=draw),
        torch.randint(lowest_zero, 2**bits, grid, generator=draw),
        (torch.rand(grid, generator=draw) * 0.02 + 0.001).half(),
        groups,
    )


def words(numbers: list[int], bits: int, *, less_one: bool = False) -> list[int]:
    """Numbers one after the other in one long integer, lowest first, cut into signed 32-bit words."""
    stream = sum(number << (bits * place) for place, number in enumerate(numbers))
    cut = [(stream >> (32 * place)) % WORD for place in range(len(numbers) * bits // 32)]
    if less_one:  # As GPTQModel does: one less in every field of a word, borrowing across them.
        cut = [(word - sum(1 << place for place in range(0, 32, bits))) % WORD for word in cut]
    return [word - WORD if word >= WORD // 2 else word for word in cut]


def gptq(made: Levels, bits: int, form: str) -> dict[str, torch.Tensor]:
    less_one = form == "gptq"
    zeros = made.zeros.tolist()
    if less_one and bits == 3:
        zeros, less_one = [[zero - 1 for zero in row] for row in zeros], False
    return {
        "qweight": torch.tensor([words(row, bits) for row in made.levels.tolist()]).int().t().contiguous(),
        "qzeros": torch.tensor([words(row, bits, less_one=less_one) for row in zeros]).int(),
        "scales": made.scales,
        "g_idx": torch.tensor(made.groups).int(),
    }


def awq(made: Levels) -> dict[str, torch.Tensor]:
    def packed(rows: list[list[int]]) -> torch.Tensor:
        reordered = [[row[start + place] for start in range(0, len(row), 8) for place in AWQ_ORDER] for row in rows]
        return torch.tensor([words(row, 4) for row in reordered]).int()

    return {"qweight": packed(made.levels.t().tolist()), "qzeros": packed(made.zeros.tolist()), "scales": made.scales}


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["gptq", "gptq_v2"]),
    st.lists(st.integers(0, 3), min_size=64, max_size=64),
    st.integers(0, 1000),
)
def test_gptq_is_unpacked_whatever_the_order_of_activations(bits, form, groups, seed):
    made = drawn((32, 64), bits, groups, seed)
    found = unpack_gptq(gptq(made, bits, form), 64, Packing("gptq", form, 16))
    torch.testing.assert_close(found, made.dense(), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_zero_points_of_zero_survive_the_borrowing(bits, form):
    made = drawn((32, 32), bits, [0] * 32, 0, lowest_zero=0)
    made.zeros[0, :7] = 0
    found = unpack_gptq(gptq(made, bits, form), 32, Packing("gptq", form, -1))
    torch.testing.assert_close(found, made.dense(), rtol=0, atol=0)


@pytest.mark.parametrize(("group_size", "num_groups"), [(16, 4), (-1, 1)])
def test_without_g_idx_inputs_are_grouped_in_their_order(group_size, num_groups):
    made = drawn((32, 64), 4, [column * num_groups // 64 for column in range(64)], 1)
    parts = gptq(made, 4, "gptq")
    del parts["g_idx"]
    torch.testing.assert_close(unpack_gptq(parts, 64, Packing("gptq", "gptq", group_size)), made.dense())


def test_a_symmetric_layer_of_gptq_is_what_every_reader_of_it_says():
    # 4 bits, symmetric: stored zero points are 0x77777777, that is 7 + 1 = 8.
    parts = {
        "qweight": torch.full((1, 8), 0x10, dtype=torch.int32),
        "qzeros": torch.full((1, 1), 0x77777777, dtype=torch.int32),
        "scales": torch.full((1, 8), 0.5),
    }
    found = unpack_gptq(parts, 8, Packing("gptq", "gptq", -1))
    assert torch.equal(found, torch.tensor([[-4.0, -3.5, -4, -4, -4, -4, -4, -4]]).expand(8, 8))


@given(st.sampled_from([8, 32, -1]), st.integers(0, 1000))
def test_awq_is_unpacked_in_its_order_of_outputs(group_size, seed):
    size = 32 if group_size == -1 else group_size
    made = drawn((24, 32), 4, [column // size for column in range(32)], seed, lowest_zero=0)
    found = unpack_awq(awq(made), 32, Packing("awq", "gemm", group_size))
    torch.testing.assert_close(found, made.dense(), rtol=0, atol=0)


def test_a_word_of_awq_by_hand():
    parts = {
        "qweight": torch.tensor([[0x75316420]], dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8),
    }
    assert unpack_awq(parts, 1, Packing("awq", "gemm", -1)).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_shapes_and_groups_that_do_not_fit_are_refused():
    made = drawn((32, 64), 4, [column // 16 for column in range(64)], 0)
    parts = gptq(made, 4, "gptq")
    with pytest.raises(ValueError, match=r"expected 48 inputs of 2, 3, 4 or 8 bits, got a qweight of \(8, 32\)"):
        unpack_gptq(parts, 48, Packing("gptq", "gptq", 16))
    with pytest.raises(ValueError, match=r"expected inputs in 4 groups, got 0 to 7"):
        unpack_gptq(parts | {"g_idx": parts["g_idx"] * 2 + 1 - 1 * (parts["g_idx"] == 0).int()}, 64, V1)
    with pytest.raises(ValueError, match=r"zero points \(4, 32\), got \(32, 64\) with \(4, 24\)"):
        unpack_gptq(parts | {"qzeros": parts["qzeros"][:, :3]}, 64, V1)
    with pytest.raises(ValueError, match=r"expected inputs in 4 groups, got 0 to 7"):
        unpack_awq(awq(made), 64, Packing("awq", "gemm", 8))


V1 = Packing("gptq", "gptq", 16)
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False},
    "act_order": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "sym": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
    "awq_old": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM", "zero_point": True},
}


def packed_folder(model: Any, folder: Path, config: dict[str, Any]) -> Any:
    """Write `model` as the other tool would, and return it with the weights its packed layers stand for."""
    bits, form = config["bits"], config.get("checkpoint_format", "gptq")
    model.set_attn_implementation("eager")  # As the package loads models.
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    for seed, (name, layer) in enumerate(weight_layers(model, include_head=False).items()):
        shape = layer.matrix().shape
        size = shape[1] if config["group_size"] == -1 else config["group_size"]
        groups = [column // size for column in range(shape[1])]
        if config.get("desc_act"):
            groups = [groups[place] for place in torch.randperm(len(groups)).tolist()]
        made = drawn((shape[0], shape[1]), bits, groups, seed)
        layer.write(made.dense())
        parts = awq(made) if config["quant_method"] == "awq" else gptq(made, bits, form)
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"quantization_config": config}))
    return model


def llama(*, tied: bool = False) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).eval()


def classifier() -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3)).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "make", [llama, lambda: llama(tied=True), gpt2, classifier], ids=["llama", "tied", "gpt2", "bert"]
)
def test_a_checkpoint_answers_as_the_model_its_weights_stand_for(make, config, tmp_path):
    expected = packed_folder(make(), tmp_path, config)
    found: Any = load_foreign(tmp_path)
    assert type(found) is type(expected)
    assert torch.equal(answers(found), answers(expected))
    assert all(parameter.dtype == torch.float32 for parameter in found.parameters())
    assert not found.training
    for name, layer in weight_layers(expected).items():
        assert torch.equal(weight_layers(found)[name].matrix(), layer.matrix())
    tied = found.get_output_embeddings()
    if tied is not None:
        same = expected.get_output_embeddings().weight is expected.get_input_embeddings().weight
        assert (tied.weight is found.get_input_embeddings().weight) == same


def test_a_loaded_model_is_saved_as_a_dense_one(tmp_path):
    packed_folder(llama(), tmp_path / "packed", CONFIGS["gptq"])
    found: Any = load_foreign(tmp_path / "packed")
    found.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    again = LlamaForCausalLM.from_pretrained(tmp_path / "dense", attn_implementation="eager").eval()
    assert torch.equal(answers(again), answers(found))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformers_reads_the_same_from_these_configs(config, tmp_path):
    packed_folder(llama(), tmp_path, config)
    read = AutoQuantizationConfig.from_dict(AutoConfig.from_pretrained(tmp_path).quantization_config)
    assert (read.quant_method.value, read.bits) == (config["quant_method"], config["bits"])


def test_an_old_folder_tells_its_packing_beside_the_config(tmp_path):
    expected = packed_folder(llama(), tmp_path, CONFIGS["gptq"])
    stored = json.loads((tmp_path / "config.json").read_text())
    settings = stored.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    del settings["quant_method"]
    with pytest.raises(ModelError, match=r"quantised by gptq or awq, got None"):
        load_foreign(tmp_path)
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert torch.equal(answers(load_foreign(tmp_path)), answers(expected))


def test_a_bias_of_zeros_the_architecture_lacks_is_left_out_and_another_is_refused(tmp_path):
    expected = packed_folder(llama(), tmp_path, CONFIGS["gptq"])
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    for value in (0.0, 0.5):
        state[f"{name}.bias"] = torch.full((64,), value)
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        if value:
            with pytest.raises(ModelError, match=rf"Layer {name} has a bias in the checkpoint"):
                load_foreign(tmp_path)
        else:
            assert torch.equal(answers(load_foreign(tmp_path)), answers(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "fp8"}, "quantised by gptq or awq, got 'fp8'"),
        ({"checkpoint_format": "marlin"}, "gptq weights packed as gptq or gptq_v2, got 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, "awq weights packed as gemm, got 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "Expected AWQ weights of 4 bits, got 8"),
        ({"bits": 5}, r"Only support quantization to \[2,3,4,8\] bits"),
    ],
)
def test_what_is_unsupported_is_named(change, message, tmp_path):
    packed_folder(llama(), tmp_path, CONFIGS["gptq"])
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=message):
        load_foreign(tmp_path)


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("model.layers.0.mlp.up_proj.scales", {}, r"Layer model\.layers\.0\.mlp\.up_proj .*: it lacks scales"),
        ("", {"model.other.qweight": torch.zeros(1)}, r"Layer model\.other of .* no nn\.Linear or Conv1D of this name"),
        ("model.norm.weight", {}, r"lacks 1 weights of a LlamaForCausalLM, model\.norm\.weight first"),
        ("model.layers.0.mlp.up_proj.g_idx", {}, ""),
    ],
)
def test_what_a_checkpoint_lacks_or_has_too_much_is_named(drop, add, message, tmp_path):
    packed_folder(llama(), tmp_path, CONFIGS["gptq"])
    state = load_file(tmp_path / "model.safetensors")
    state.pop(drop, None)
    save_file(state | add, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if not message:
        assert isinstance(load_foreign(tmp_path), nn.Module)
        return
    with pytest.raises(ModelError, match=message):
        load_foreign(tmp_path)


def test_folders_without_weights_or_architecture_are_refused(tmp_path):
    packed_folder(llama(), tmp_path, CONFIGS["gptq"])
    stored = json.loads((tmp_path / "config.json").read_text())
    plain = tmp_path / "plain"
    llama().save_pretrained(plain)
    (plain / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="Expected packed layers"):
        load_foreign(plain)
    (plain / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="loads no pickled weights"):
        load_foreign(plain)
    (tmp_path / "config.json").write_text(json.dumps(stored | {"architectures": ["AutoConfig"]}))
    with pytest.raises(ModelError, match=r"name an architecture of transformers, got \['AutoConfig'\]"):
        load_foreign(tmp_path)
    with pytest.raises(ModelError, match="No config can be read"):
        load_foreign(tmp_path / "nowhere")
