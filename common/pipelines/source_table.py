"""Source images of a generation run: who they are, and their DINO tokens."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.dataset import RadiographDataset
from ..fingerprint import network_sha256
from ..networks.conditioning import TokenSelection, named_tokens
from ..networks.dino import DinoEncoder
from ..networks.weights import save_atomically

_logger = logging.getLogger(__name__)

TABLE_NAME = "sources.pt"


class SourceTable:
    """Rows of sources.

    Args:
        paths: of the images.
        patient_ids: of their patients.
        labels: "" where unknown.
        tokens: [M, N, D] as the encoder gives them.
    """

    def __init__(self, paths: Sequence[str], patient_ids: Sequence[str], labels: Sequence[str], tokens: Tensor) -> None:
        if not len(paths) == len(patient_ids) == len(labels) == len(tokens):
            raise ValueError("source table: expected as many paths, patients, labels and tokens")
        self.paths = list(paths)
        self.patient_ids = list(patient_ids)
        self.labels = list(labels)
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, rows: Sequence[int]) -> SourceTable:
        """Some of the rows."""
        chosen = list(rows)
        paths, patient_ids, labels = (
            [column[row] for row in chosen] for column in (self.paths, self.patient_ids, self.labels)
        )
        return SourceTable(paths, patient_ids, labels, self.tokens[chosen])

    def digest(self) -> str:
        """SHA-256 over paths, patients, labels and tokens: which sources, in which order, and what was seen of them."""
        digest = hashlib.sha256(json.dumps([self.paths, self.patient_ids, self.labels]).encode())
        digest.update(self.tokens.contiguous().numpy().tobytes())
        return digest.hexdigest()


def encode_sources(
    dataset: RadiographDataset,
    encoder: DinoEncoder,
    selection: TokenSelection,
    patch_grid: int,
    batch_size: int,
    device: torch.device,
    cache_dir: str | None = None,
) -> SourceTable:
    """Encode source images, or take their tokens from the last time where nothing changed since.

    Args:
        dataset: of the sources; its items have "image" and "patient_id", optionally "label".
        encoder: frozen DINO encoder on `device`.
        selection: which tokens condition the denoiser.
        patch_grid: k of the grid that the denoiser's training had in its store, from which the selection is pooled.
        batch_size: images at a time.
        device: of the encoder.
        cache_dir: folder of `sources.pt`, so that a resumed run does not encode again; None keeps nothing.
    """
    found = dataset.data
    key = _fingerprint(found, encoder, selection, patch_grid)
    path = None if cache_dir is None else Path(cache_dir) / TABLE_NAME
    tokens = _remembered(path, key)
    if tokens is None:
        tokens = _encode(found, dataset.transform, encoder, selection, patch_grid, batch_size, device)
        if path is not None:
            save_atomically({"key": key, "tokens": tokens}, path)
    labels = [item.get("label", "") for item in found]
    return SourceTable([item["image"] for item in found], [item["patient_id"] for item in found], labels, tokens)


@torch.inference_mode()
def _encode(
    items: Sequence[dict[str, Any]],
    transform: Callable[[dict], dict],
    encoder: DinoEncoder,
    selection: TokenSelection,
    patch_grid: int,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    images = [{"image": item["image"]} for item in items]  # other columns may be missing in some, and would not collate
    loader = DataLoader(RadiographDataset(images, transform), batch_size=batch_size)
    parts = []
    for batch in tqdm(loader, desc="encoding sources", unit="batch", dynamic_ncols=True):
        parts.append(selection.select(named_tokens(encoder, batch["image"].to(device), patch_grid)).cpu())
    return torch.cat(parts)


def _fingerprint(
    items: Sequence[dict[str, Any]], encoder: DinoEncoder, selection: TokenSelection, patch_grid: int
) -> str:
    files = [(item["image"], os.stat(item["image"]).st_size, os.stat(item["image"]).st_mtime_ns) for item in items]
    settings = [network_sha256(encoder), encoder.image_size, selection.use_registers, selection.patch_grid, patch_grid]
    return hashlib.sha256(json.dumps([files, settings]).encode()).hexdigest()


def _remembered(path: Path | None, key: str) -> Tensor | None:
    if path is None or not path.is_file():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["key"] != key:
        _logger.info("%s was made from other sources or another encoder: encoding again", path)
        return None
    return saved["tokens"]
