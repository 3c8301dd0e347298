"""Mixed precision in one place: bfloat16 autocast where the hardware has it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 arithmetic is native on this device (emulated bfloat16 is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager:
    """bfloat16 autocast on `device` if wanted and native there, else plain float32.

    bfloat16 has float32's exponent range, so no gradient scaler is needed.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and has_bfloat16(device))
