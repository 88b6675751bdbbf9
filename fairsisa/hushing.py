"""Libraries that complain, when they are imported, of what fairsisa does not use of them."""

from __future__ import annotations

import logging

LOUD = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""The loggers behind "Failed to load ..." for kernels of other processors, which transformers' imports bring up."""


def hush_imports() -> None:
    """Let these libraries speak of errors only; call it before transformers is imported."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
