"""Source images of a generation run: who they are, and their DINO tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.dataset import RadiographDataset
from ..data.typical_images import TypicalImages
from ..distributed import gathered, is_rank_zero, share
from ..files import file_stamp
from ..fingerprint import network_sha256
from ..networks.conditioning import TokenSelection, named_tokens
from ..networks.dino import DinoEncoder
from ..networks.weights import save_atomically
from ..progress import ProgressBar
from .folder_job import warn_of_unlike

TABLE_NAME = "sources.pt"


@dataclass(frozen=True)
class SourceTable:
    """Rows of sources."""

    paths: list[str]  # of the images
    patient_ids: list[str]  # of their patients
    labels: list[str]  # "" where unknown
    tokens: Tensor  # [M, N, D] as the encoder gives them
    unlikeness: Sequence[float] = ()  # of the training images, above 1; empty where it is not known

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, rows: Sequence[int]) -> SourceTable:
        """Some of the rows."""
        columns = self.paths, self.patient_ids, self.labels
        paths, patients, labels = ([column[row] for row in rows] for column in columns)
        unlikeness = [self.unlikeness[row] for row in rows] if self.unlikeness else ()
        return SourceTable(paths, patients, labels, self.tokens[list(rows)], unlikeness)

    def digest(self) -> str:
        """SHA-256 over paths, patients, labels and tokens: which sources, in which order, and what was seen of them."""
        digest = hashlib.sha256(json.dumps([self.paths, self.patient_ids, self.labels]).encode())
        digest.update(self.tokens.contiguous().numpy().tobytes())
        return digest.hexdigest()


@torch.inference_mode()
def encode_sources(
    dataset: RadiographDataset,
    encoder: DinoEncoder,
    selection: TokenSelection,
    patch_grid: int,
    batch_size: int,
    device: torch.device | str,
    cache_dir: str | None = None,
    typical: TypicalImages | None = None,
) -> SourceTable:
    """Encode source images, or take their tokens from the last time where nothing changed since.

    The processes of a torchrun job share the batches.

    Args:
        dataset: of the sources; its items have "image" and "patient_id", optionally "label".
        encoder: frozen, on `device`.
        selection: which tokens condition the denoiser.
        patch_grid: k of the grid that the denoiser's training had in its store, from which the selection is pooled.
        batch_size: images at a time.
        device: of the encoder.
        cache_dir: folder of `sources.pt`, so that a resumed run does not encode again; None keeps nothing.
        typical: what the training images were like; of sources that are unlike them it warns.
    """
    items = dataset.data
    files = [(item["image"], *file_stamp(item["image"])) for item in items]
    settings = [network_sha256(encoder), encoder.image_size, selection.use_registers, selection.patch_grid, patch_grid]
    settings += [] if typical is None else [network_sha256(typical)]
    key = hashlib.sha256(json.dumps([files, settings]).encode()).hexdigest()
    path = None if cache_dir is None else Path(cache_dir) / TABLE_NAME
    saved = torch.load(path, map_location="cpu", weights_only=True) if path is not None and path.is_file() else {}
    if saved.get("key") == key and "unlikeness" in saved:
        tokens, unlikeness = saved["tokens"], saved["unlikeness"].tolist()
    else:
        images = [{"image": item["image"]} for item in items]  # other columns may be missing, and would not collate
        numbers = list(range(len(images)))
        batches = share([numbers[start : start + batch_size] for start in numbers[::batch_size]])
        loader = DataLoader(RadiographDataset(images, dataset.transform), batch_sampler=batches)
        mine = []
        for batch in ProgressBar(loader, desc="encoding sources", unit="batch"):
            encoded = selection.select(named_tokens(encoder, batch["image"].to(device), patch_grid)).cpu()
            unlike = [] if typical is None else [round(typical(image), 2) for image in batch["image"]]
            mine.append((encoded, unlike))
        found = gathered(mine)
        tokens = torch.cat([encoded for encoded, _ in found])
        unlikeness = [value for _, unlike in found for value in unlike]
        if path is not None and is_rank_zero():
            save_atomically({"key": key, "tokens": tokens, "unlikeness": torch.tensor(unlikeness).double()}, path)
    paths, patients, labels = ([item.get(name, "") for item in items] for name in ("image", "patient_id", "label"))
    if unlikeness:
        warn_of_unlike(dict(zip(paths, unlikeness, strict=True)))
    return SourceTable(paths, patients, labels, tokens, unlikeness)
