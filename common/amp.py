"""How networks compute, in one place: bfloat16 autocast where the hardware has it, and what makes inference faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from monai.networks.blocks import CrossAttentionBlock, SABlock
from torch import nn


def has_bfloat16(device: torch.device | str) -> bool:
    """Say whether bfloat16 arithmetic is native on this device (emulated bfloat16 is slower than float32)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device | str, enabled: bool) -> AbstractContextManager:
    """bfloat16 autocast on `device` if wanted and native there, else plain float32.

    bfloat16 has float32's exponent range, so no gradient scaler is needed.
    """
    if not (enabled and has_bfloat16(device)):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@contextmanager
def fused_attention(network: nn.Module, device: torch.device | str, amp: bool) -> Iterator[None]:
    """Have MONAI's U-Nets compute attention fused where that is faster: not in bfloat16 on a CPU.

    The output is the same to float tolerance. Afterwards the network is as it was.
    """
    blocks = [module for module in network.modules() if isinstance(module, (CrossAttentionBlock, SABlock))]
    before = [block.use_flash_attention for block in blocks]
    is_faster = torch.device(device).type != "cpu" or not (amp and has_bfloat16(device))
    try:
        for block in blocks:
            block.use_flash_attention |= is_faster
        yield
    finally:
        for block, was_fused in zip(blocks, before, strict=True):
            block.use_flash_attention = was_fused


@contextmanager
def quick_inference(network: nn.Module, device: torch.device | str, amp: bool) -> Iterator[None]:
    """Have MONAI's U-Nets compute channels last and with fused attention; docs/performance.md says what that gains.

    The output is the same to float tolerance. Afterwards the network is as it was: what a training saves does not
    change.
    """
    with torch.inference_mode(False):  # else its parameters could not be trained afterwards
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with fused_attention(network, device, amp):
            yield
    finally:
        with torch.inference_mode(False):
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
