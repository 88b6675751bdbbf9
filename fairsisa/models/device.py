"""On which device, in which number format and with how many threads a network runs."""

from __future__ import annotations

import platform

import torch

import fairsisa
from fairsisa.errors import ConfigError


def resolve_accelerator(wanted: str) -> str:
    """Return "cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises:
        ConfigError: when a GPU is asked for and none is there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=cuda, but torch sees no GPU: use trainer.accelerator=cpu or auto.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def resolve_precision(wanted: str, accelerator: str) -> str:
    """Return "bf16" or "fp32"; "auto" takes bf16 where the processor multiplies it natively."""
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16(accelerator) else "fp32"


def multiplies_bf16(accelerator: str) -> bool:
    """Return whether bf16 matrix products run on units of their own (a GPU, AMX or AVX512-BF16)."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_native_bf16())


def dtype_of(precision: str) -> torch.dtype:
    """Return the torch dtype of "bf16" or "fp32"."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def numeric_environment(accelerator: str, precision: str, threads: int) -> dict[str, str | int]:
    """Return what bit-for-bit results depend on beside settings and data; recorded with every artefact."""
    on_gpu = accelerator == "cuda"
    return {
        "torch": str(torch.__version__),
        "fairsisa": fairsisa.__version__,
        "accelerator": accelerator,
        "device": torch.cuda.get_device_name(0) if on_gpu else f"{platform.machine()} {_instruction_set()}",
        "precision": precision,
        "threads": threads,
    }


def _instruction_set() -> str:
    return " ".join([torch.backends.cpu.get_cpu_capability(), *_native_bf16()])


def _native_bf16() -> list[str]:
    found = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX512_BF16": torch.cpu._is_avx512_bf16_supported()}
    return [name for name, there in found.items() if there]
