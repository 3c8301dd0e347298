"""Score images drawn from held-out sources: distance to real ones, diversity, closeness to the source, copying."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..amp import autocast
from ..data.datalists import assert_disjoint_patients
from ..data.transforms import load_square
from ..errors import UserError
from ..evaluation.copy_detection import CopyReference
from ..evaluation.copy_features import CopyFeatureNetwork, CopyFeatures
from ..evaluation.image_features import FeatureExtractor, ImageFeatures, build_extractor
from ..evaluation.image_quality import ImageQuality, split_halves
from ..evaluation.nearest_patients import SPACES
from ..metrics import MS_SSIM_MIN_SIZE, ms_ssim, token_cosine
from ..networks.dino import DinoEncoder

PICTURE_SIZE = 32  # px, as privacy.yaml has it
FIGURES = ("fd", "kid", "precision", "recall", "density", "coverage")

Features = NDArray[np.float32]


class GeneratorScoresError(UserError, ValueError):
    """Images that cannot be scored."""


class GeneratorScores:
    """What is measured of one image per held-out source, all by networks that are the same for every generator.

    FD and its like compare each half of the real images with the images made from the other half's sources, both ways,
    and take the mean; no patient is in both halves. That of real images is one half against the other: the floor.

    Args:
        train_items: dicts with "image" and "patient_id": what the generators were trained on.
        val_items: the same of other patients: the sources.
        real_cls_tokens: of the judge, for "train" and "val", [number of items, D], as a `LatentStore` keeps them; so no
            real image is encoded again.
        judge: encoder of FD-DINO, of cosines and of the search for copies; not necessarily the one that conditions.
        inception_path: weights for FD-Inception; None leaves it out.
        cache_dir: of Inception's features of real images.
        image_size: px of all images.
        batch_size: images at a time.
        seed: of the halves.
        amp: whether the judge's tokens of real images were made in bfloat16; those of fakes are made alike.
        device: of the networks.

    Raises:
        GeneratorScoresError: images too small for MS-SSIM.
    """

    def __init__(
        self,
        train_items: Sequence[Mapping[str, Any]],
        val_items: Sequence[Mapping[str, Any]],
        real_cls_tokens: Mapping[str, Tensor],
        judge: DinoEncoder,
        inception_path: str | None,
        cache_dir: str | Path,
        image_size: int,
        batch_size: int,
        seed: int,
        amp: bool,
        device: torch.device,
    ) -> None:
        if image_size < MS_SSIM_MIN_SIZE:
            raise GeneratorScoresError(
                f"image_size: found {image_size}; expected at least {MS_SSIM_MIN_SIZE}, which MS-SSIM needs"
            )
        assert_disjoint_patients(training=train_items, held_out=val_items)
        self.train_items, self.val_items = list(train_items), list(val_items)
        self.real_cls_tokens = {split: real_cls_tokens[split].float() for split in ("train", "val")}
        self.amp, self.device = amp, device
        self.network = CopyFeatureNetwork(judge, PICTURE_SIZE)
        self.image_size, self.batch_size = image_size, batch_size
        self.quality = ImageQuality(seed=seed, progress=False)
        self.halves = split_halves([item["patient_id"] for item in val_items], seed)
        copy = FeatureExtractor("copy", self.network)
        self.features = {"copy": ImageFeatures(copy, None, image_size, batch_size, device)}
        if inception_path:
            inception = build_extractor("inception", inception_path)
            self.features["inception"] = ImageFeatures(inception, cache_dir, image_size, batch_size, device)

    def real(self) -> dict[str, Any]:
        """The floor: real images against real images of other patients; each one's "source" is another real image."""
        others = self._sources.roll(len(self._sources) // 2, dims=0)
        alike = self._ms_ssim(self._sources, others)
        embeddings = self._real_copy.embeddings
        return {
            "num_images": len(self._sources),
            **self._distances("dino", embeddings.numpy()),
            **(self._distances("inception", self._real_inception) if "inception" in self.features else {}),
            "ms_ssim_between_variations": alike,
            "ms_ssim_to_source": alike,
            "cosine_to_source": float(token_cosine(embeddings, embeddings.roll(len(embeddings) // 2, 0)).mean()),
        }

    def score(self, images: Tensor, variations: Tensor | None = None) -> dict[str, Any]:
        """Score images made from the held-out sources.

        Args:
            images: one per source in the order of val_items, [N, 1, H, W] in [0, 1].
            variations: several of some sources, [M, V, 1, H, W]; None leaves diversity out.

        Returns:
            For "dino" and, with its weights, "inception": `<features>_fd` and the like, `<features>_fd_over_floor`.
            `ms_ssim_between_variations` (lower is more diverse), `ms_ssim_to_source`, `cosine_to_source`. Of the
            privacy check: shares `own_source_nearest_<space>` (nearer to its source than to any training image),
            `copies_source`, `flagged` (near-copies of a training image), probabilities `nearer_than_held_out_<space>`,
            `num_copies`, `verdict`, and `num_leaked_sources`, pictures of the training set, which are left out of it.

        Raises:
            GeneratorScoresError: another number of images than of sources.
        """
        if len(images) != len(self.val_items):
            raise GeneratorScoresError(f"found {len(images)} images; expected one per source, {len(self.val_items)}")
        copy = self.network.unpack(self._encode("copy", images))
        found: dict[str, Any] = {"num_images": len(images), **self._distances("dino", copy.embeddings.numpy())}
        if "inception" in self.features:
            found |= self._distances("inception", self._encode("inception", images))
        if variations is not None:
            pairs = combinations(range(variations.shape[1]), 2)
            alike = [self._ms_ssim(variations[:, a], variations[:, b]) for a, b in pairs]
            found["ms_ssim_between_variations"] = statistics.fmean(alike)
        found["ms_ssim_to_source"] = self._ms_ssim(images, self._sources)
        found["cosine_to_source"] = float(token_cosine(copy.embeddings, self._real_copy.embeddings).mean())
        return {**found, **self._copying(copy)}

    # ---- real images -----------------------------------------------------------------------------------------------

    @cached_property
    def _sources(self) -> Tensor:
        return torch.stack([load_square(item["image"], self.image_size) for item in self.val_items])

    @cached_property
    def _real_copy(self) -> CopyFeatures:
        return CopyFeatures(self.real_cls_tokens["val"], self.network.pictures(self._sources))

    @cached_property
    def _real_inception(self) -> Features:
        found = self.features["inception"].of_files([str(item["image"]) for item in self.val_items])
        if found.problems:
            path, reason = found.problems[0]
            raise GeneratorScoresError(f"{path}: {reason}; expected all images of the store to be readable still")
        return found.features

    @cached_property
    def _reference(self) -> CopyReference:
        bar = tqdm(self.train_items, desc="training images", unit="image", dynamic_ncols=True)
        pictures = torch.cat([self.network.pictures(load_square(item["image"], self.image_size)[None]) for item in bar])
        train = CopyFeatures(self.real_cls_tokens["train"], pictures)
        return CopyReference().fit(train, self._real_copy, [item["patient_id"] for item in self.train_items])

    # ---- figures -----------------------------------------------------------------------------------------------------

    def _encode(self, name: str, images: Tensor) -> Features:
        with autocast(self.device, self.amp and name == "copy"):
            return self.features[name].of_batches(images.split(self.batch_size))

    def _distances(self, name: str, fake: Features) -> dict[str, float]:
        """Of both halves; `fake` [N, D] may be the real ones, for the floor."""
        real = self._real_copy.embeddings.numpy() if name == "dino" else self._real_inception
        ways = (self.halves, self.halves[::-1])
        both = [self.quality.metrics(real[a], fake[b]) for a, b in ways]
        found = {f"{name}_{key}": statistics.fmean(one[key] for one in both) for key in FIGURES}
        floor = self.quality.metrics(real[self.halves[0]], real[self.halves[1]])["fd"]
        return {**found, f"{name}_fd_over_floor": found[f"{name}_fd"] / floor}

    def _ms_ssim(self, images: Tensor, references: Tensor) -> float:
        """Mean over images."""
        pairs = zip(images.split(self.batch_size), references.split(self.batch_size), strict=True)
        return float(torch.cat([ms_ssim(image, reference) for image, reference in pairs]).mean())

    def _copying(self, copy: CopyFeatures) -> dict[str, Any]:
        """Without sources that are training pictures too, under another patient: that theirs are copies is no news."""
        leaked = {row for row, _ in self._reference.leaks}
        rows = [row for row in range(len(copy)) if row not in leaked]
        check = self._reference.check(copy[rows], [(len(self.train_items) + row,) for row in rows])
        found: dict[str, Any] = {"num_leaked_sources": len(leaked)}
        for space in SPACES:
            found[f"own_source_nearest_{space}"] = float(check.spaces[space].nearest_is_own_source.mean())
            found[f"nearer_than_held_out_{space}"] = check.comparison[space]["distance"][0]
        found["copies_source"] = float(check.copies_source.mean())
        found["flagged"] = float(check.is_flagged.mean())
        return {**found, "num_copies": int(check.is_copy.sum()), "verdict": check.verdict.level}
