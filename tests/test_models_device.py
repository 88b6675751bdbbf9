from __future__ import annotations

import pytest
import torch

import fairsisa
from fairsisa.errors import ConfigError
from fairsisa.models import device
from fairsisa.models.device import (
    dtype_of,
    multiplies_bf16,
    numeric_environment,
    resolve_accelerator,
    resolve_precision,
)


@pytest.fixture
def gpu(monkeypatch):
    def there(*, is_there: bool, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")

    return there


@pytest.fixture
def processor(monkeypatch):
    def can(*, amx: bool, avx512_bf16: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    return can


@pytest.mark.parametrize("is_there", [True, False])
def test_auto_takes_the_gpu_that_is_there(gpu, is_there):
    gpu(is_there=is_there)
    assert resolve_accelerator("auto") == ("cuda" if is_there else "cpu")
    assert resolve_accelerator("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_refused(gpu):
    gpu(is_there=False)
    with pytest.raises(ConfigError, match=r"torch sees no GPU: use trainer\.accelerator=cpu or auto"):
        resolve_accelerator("cuda")
    gpu(is_there=True)
    assert resolve_accelerator("cuda") == "cuda"


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "native"), [(True, True, True), (True, False, True), (False, True, True), (False,) * 3]
)
def test_bf16_is_native_where_the_processor_has_units_for_it(processor, amx, avx512_bf16, native):
    processor(amx=amx, avx512_bf16=avx512_bf16)
    assert multiplies_bf16("cpu") is native
    assert resolve_precision("auto", "cpu") == ("bf16" if native else "fp32")


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_is_asked_itself(gpu, processor, bf16):
    processor(amx=not bf16, avx512_bf16=not bf16)
    gpu(is_there=True, bf16=bf16)
    assert resolve_precision("auto", "cuda") == ("bf16" if bf16 else "fp32")


@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
def test_a_precision_that_was_asked_for_is_kept(processor, wanted):
    for there in (True, False):
        processor(amx=there, avx512_bf16=there)
        assert resolve_precision(wanted, "cpu") == wanted


def test_a_precision_is_a_dtype():
    assert (dtype_of("bf16"), dtype_of("fp32")) == (torch.bfloat16, torch.float32)


def test_the_environment_says_what_bits_depend_on(gpu, processor):
    gpu(is_there=True)
    processor(amx=True, avx512_bf16=False)
    known = numeric_environment("cpu", "bf16", 2)
    assert known["torch"] == torch.__version__
    assert known["fairsisa"] == fairsisa.__version__
    assert (known["accelerator"], known["precision"], known["threads"]) == ("cpu", "bf16", 2)
    assert known["device"].endswith(" AVX512 AMX")
    assert numeric_environment("cuda", "bf16", 2) == {**known, "accelerator": "cuda", "device": "GPU 0"}


def test_another_instruction_set_is_another_environment(processor):
    processor(amx=True, avx512_bf16=True)
    first = numeric_environment("cpu", "fp32", 1)
    processor(amx=False, avx512_bf16=True)
    assert numeric_environment("cpu", "fp32", 1)["device"] != first["device"]


def test_this_machine_can_be_described():
    assert {type(value) for value in numeric_environment("cpu", "fp32", 1).values()} == {str, int}
    assert device.multiplies_bf16("cpu") in (True, False)
