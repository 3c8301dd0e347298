"""Frozen DINO encoders (DINO v1 ViT, DINOv2 with or without registers, DINOv3) from Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_image, check_multiple
from ..errors import WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")


@dataclass(frozen=True)
class DinoTokens:
    """Tokens after the encoder's last norm: cls [B, D], registers [B, R, D] (R may be 0), patches [B, N, D].

    Patch tokens are row by row: N = (h // patch) * (w // patch), where h, w come from `DinoEncoder.resized_size`.
    """

    cls_token: Tensor
    register_tokens: Tensor
    patch_tokens: Tensor


class DinoEncoder(nn.Module):
    """Frozen Hugging Face vision transformer that takes radiographs as they are here: [B, 1, H, W] in [0, 1].

    It does its own resize (bicubic, antialiased), grey to RGB and ImageNet normalisation. Parameters are float32 and
    frozen, whatever precision the file has; the module stays in evaluation mode.

    Args:
        source: local folder with config.json and weights, or a hub id ("facebook/dinov2-small").
        image_size: pixels, a multiple of the patch size. An int is the shorter side (the other keeps the aspect,
            rounded to a multiple of the patch); a pair is the exact (H, W).

    Raises:
        WeightsError: source looks like a path and is no folder, or nothing of that name can be had from the hub.
        SettingsError: the image size is not a multiple of the patch size.
        ValueError: the config's model_type is not a known one.
        RuntimeError: the checkpoint lacks weights (transformers itself would leave them random).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str | Path, image_size: int | tuple[int, int] = 224) -> None:
        super().__init__()
        self.model = _load(str(source))
        config = self.model.config
        self.patch_size = int(config.patch_size)
        self.hidden_size = int(config.hidden_size)
        self.num_register_tokens = int(getattr(config, "num_register_tokens", 0))
        self.image_size = image_size
        check_multiple(image_size, self.patch_size)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> DinoEncoder:
        """Stay in evaluation mode whatever is asked: a parent's `.train()` must not switch dropout on."""
        return super().train(False)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size (H, W) in pixels at which the encoder sees an image of this size."""
        if not isinstance(self.image_size, int):
            return self.image_size[0], self.image_size[1]
        scale = self.image_size / min(height, width) / self.patch_size
        return max(1, round(height * scale)) * self.patch_size, max(1, round(width * scale)) * self.patch_size

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize and normalise: [B, 1, H, W] in [0, 1] -> [B, 3, h, w] with ImageNet's mean 0 and sd 1."""
        check_image(image)
        size = self.resized_size(image.shape[2], image.shape[3])
        image = image.float()  # antialiased interpolation has no half precision on CPU
        if size != tuple(image.shape[2:]):
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (image.clamp(0, 1) - self.mean) / self.std

    @torch.no_grad()
    def forward(self, image: Tensor) -> DinoTokens:
        """Encode [B, 1, H, W] in [0, 1] to named tokens, without gradients; ValueError for other shapes."""
        options = {"interpolate_pos_encoding": True} if self.model.config.model_type == "vit" else {}
        tokens = self.model(pixel_values=self.preprocess(image), **options).last_hidden_state
        first_patch = 1 + self.num_register_tokens
        return DinoTokens(tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:])


def _load(source: str) -> Any:
    """PreTrainedModel by its config's model_type, complete (no weight left random) and in float32."""
    from transformers import AutoConfig, AutoModel  # slow to import: only who builds an encoder pays
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of a tenth of a second
    local = Path(source).is_dir()
    if not local and (source.startswith(("/", ".", "~")) or source.count("/") != 1):
        raise WeightsError(
            f"DINO encoder: no folder {source}. Expected a Hugging Face folder (config.json, model.safetensors) "
            "or a hub id such as facebook/dinov2-small; download the weights first or correct the path."
        )
    config = _pretrained(AutoConfig, source)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"DINO encoder {source}: found model_type {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}. "
            "Use another checkpoint."
        )
    # DINO v1 checkpoints have no pooler; the other classes know no such argument.
    options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    model, info = _pretrained(AutoModel, source, config=config, output_loading_info=True, **options)
    broken = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if broken:
        raise RuntimeError(
            f"DINO encoder {source}: {len(broken)} weights are missing or misshapen, first {broken[:3]}. "
            f"Expected a complete {config.model_type} checkpoint; download it again."
        )
    return model.float()  # transformers 5 keeps the file's precision, and fp16 layers fail on float32 input


def _pretrained(kind: Any, source: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, local_files_only=Path(source).is_dir(), **options)
    except Exception as error:  # of the network, of a cache, of a damaged file
        raise WeightsError(
            f"DINO encoder {source}: found no readable weights of this name, neither in a folder nor on the hub "
            f"({' '.join(str(error).split())[:160]}); go online, or give a folder with config.json, model.safetensors"
        ) from error
