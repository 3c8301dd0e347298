"""Features of radiographs by a frozen network, each image encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.transforms import center_square
from ..distributed import gathered, share
from ..errors import DatasetError, SettingsError, UserError, WeightsError, counted
from ..files import atomic_path
from ..fingerprint import file_sha256, network_sha256
from ..io import read_radiograph
from ..networks.dino import DinoEncoder
from ..networks.inception import EXPECTED_WEIGHTS, FidInception
from ..progress import ProgressBar

logger = logging.getLogger(__name__)

EXTRACTORS = ("inception", "dino", "rad_dino", "xrv")
PREPARATION = "read_radiograph, ResizeCenterCropd; 1"  # changes with what happens to a file before the network
READING_THREADS = 4
TOLERANCE = 1e-3  # how far outside [0, 1] a value may lie
XRV_WEIGHTS = "densenet121-res224-all"
XRV_SIZE = 224  # pixels

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network [B, 1, H, W] in [0, 1] -> [B, D] and what its features depend on."""

    name: str  # short, as in file names and tables
    network: nn.Module  # in evaluation mode
    settings: str = ""  # all that its weights do not show, such as the size it resizes to
    fingerprint: str = field(init=False)  # sha256 over name, settings and weights; computed

    def __post_init__(self) -> None:
        parts = "\0".join([self.name, self.settings, network_sha256(self.network)])
        object.__setattr__(self, "fingerprint", hashlib.sha256(parts.encode()).hexdigest())


@dataclass(frozen=True)
class FileFeatures:
    """Features of the files that could be read."""

    features: FloatArray  # float32 [N, D]
    indices: list[int]  # of the N files among those asked for, ascending
    problems: list[tuple[str, str]]  # (path, reason) of the others


@dataclass
class ImageFeatures:
    """Encode files or tensors with one extractor, every image brought to the same square size first.

    A file's features are kept in `<cache_dir>/<extractor>_<fingerprint>/`, under the sha256 of its bytes: a killed
    run goes on where it was, a changed file is encoded again, and a copy is not. Features of a batch may differ from
    those of its images alone by float rounding.
    """

    extractor: FeatureExtractor  # what encodes
    cache_dir: str | Path | None = None  # made when needed; None keeps nothing
    image_size: int = 256  # px; shorter side to this, then the central square (`center_square`)
    batch_size: int = 16  # images encoded at once
    device: torch.device | str = "cpu"  # where the network runs; it is moved there
    progress: bool = True  # show a progress bar

    def __post_init__(self) -> None:
        self.network = self.extractor.network.to(self.device).eval()
        own = f"{self.extractor.fingerprint} {self.image_size} {PREPARATION}"
        key = hashlib.sha256(own.encode()).hexdigest()[:16]
        self.folder = None if self.cache_dir is None else Path(self.cache_dir) / f"{self.extractor.name}_{key}"

    def of_files(self, paths: Sequence[str | Path]) -> FileFeatures:
        """Features of all files that can be read, in their order; the others are reported and logged.

        The processes of a torchrun job share the batches and all get all features, those of one process to the bit
        where no two batches hold copies of a file.

        Raises:
            DatasetError: no file can be read.
            WeightsError: the network gives features that are not [B, D] and finite.
        """
        mine: list[list[FloatArray | str]] = []
        starts = share(range(0, len(paths), self.batch_size))
        title = f"{self.extractor.name} features"
        with ThreadPoolExecutor(READING_THREADS) as pool:
            for start in ProgressBar(starts, desc=title, unit="batch", disable=not self.progress):
                loaded = list(pool.map(self._load, paths[start : start + self.batch_size]))
                new = {digest: found for digest, found in loaded if isinstance(found, Tensor)}
                encoded = dict(zip(new, self._encode_and_keep(new), strict=True))
                mine.append([encoded[digest] if isinstance(found, Tensor) else found for digest, found in loaded])
        rows = [row for batch in gathered(mine) for row in batch]
        features = {i: row for i, row in enumerate(rows) if not isinstance(row, str)}
        problems = [(str(path), row) for path, row in zip(paths, rows, strict=True) if isinstance(row, str)]
        for path, problem in problems:
            logger.warning("skipped: %s", problem if path in problem else f"{path}: {problem}")
        if not features:
            first = problems[0][1] if problems else "no file was given"
            raise DatasetError(
                f"found no readable radiograph among {counted(len(paths), 'file')} ({first}); expected some"
            )
        return FileFeatures(np.stack(list(features.values())), list(features), problems)

    def of_batches(self, batches: Iterable[Tensor]) -> FloatArray:
        """Features [N, D] of images in memory, one or more batches of [B, 1, H, W] in [0, 1]; nothing is kept on disk.

        Raises:
            DatasetError: a batch of another shape or range.
        """
        features = []
        title = f"{self.extractor.name} features"
        for batch in ProgressBar(batches, desc=title, unit="batch", disable=not self.progress):
            low, high = float(batch.min()), float(batch.max())
            is_shaped, is_ranged = batch.ndim == 4 and batch.shape[1] == 1, low >= -TOLERANCE and high <= 1 + TOLERANCE
            if not (is_shaped and is_ranged):  # NaN fails too
                raise DatasetError(
                    f"image features: found images {tuple(batch.shape)} from {low:.3f} to {high:.3f}; expected "
                    "[B, 1, H, W] in [0, 1]"
                )
            images = batch.detach().as_subclass(Tensor).float().clamp(0, 1)
            features.append(self._encode([center_square(image, self.image_size) for image in images]))
        return np.concatenate(features)

    def _load(self, path: str | Path) -> tuple[str, FloatArray | Tensor | str]:
        """A file's digest, and its features from disk, else its pixels, else why there are none."""
        try:
            digest = file_sha256(path)
            known = self._kept(digest)
            return digest, center_square(read_radiograph(path).pixels, self.image_size) if known is None else known
        except UserError as error:
            return "", str(error)
        except Exception as error:  # whatever a decoder does with a damaged file, the other files are done
            return "", f"{type(error).__name__}: {error}"

    def _kept(self, digest: str) -> FloatArray | None:
        if self.folder is None:
            return None
        try:
            return np.load(self.folder / f"{digest}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or damaged: encode it
            return None

    def _encode_and_keep(self, pixels: dict[str, Tensor]) -> Sequence[FloatArray]:
        features = list(self._encode(list(pixels.values()))) if pixels else []
        for digest, row in zip(pixels, features, strict=True):
            if self.folder is None:
                break
            with atomic_path(self.folder / f"{digest}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, row)
        return features

    @torch.inference_mode()
    def _encode(self, images: list[Tensor]) -> FloatArray:
        """Features [B, D] of square images."""
        features = self.network(torch.stack(images).to(self.device)).float().cpu().numpy()
        if features.ndim != 2 or not np.isfinite(features).all():
            raise WeightsError(
                f"extractor {self.extractor.name}: found features {features.shape}, finite: "
                f"{bool(np.isfinite(features).all())}; expected finite [B, D]. Check its weights."
            )
        return features


# ---- the extractors ------------------------------------------------------------------------------------------------


def build_extractor(
    name: str, inception_weights: str | Path | None = None, dino_source: str | Path | None = None
) -> FeatureExtractor:
    """The extractor of this name.

    Args:
        name: "inception" (FID's pool3, 2,048 values), "dino" (cls_token: 384 of a ViT-S), "rad_dino" (the same of an
            encoder of radiographs, 768) or "xrv" (TorchXRayVision densenet121-res224-all, 1,024).
        inception_weights: file for "inception".
        dino_source: Hugging Face folder or hub id for "dino" and "rad_dino".

    Raises:
        SettingsError: an unknown name, or the package of "xrv" is missing.
        WeightsError: the weights were not given, are not there, or are others.
    """
    if name == "inception":
        if inception_weights is None:
            raise WeightsError(f"extractor inception: found no inception_weights. {EXPECTED_WEIGHTS}")
        return FeatureExtractor(name, FidInception(inception_weights), "pool3, bilinear 299 without antialias")
    if name in ("dino", "rad_dino"):
        if dino_source is None:
            raise WeightsError(
                f"extractor {name}: no weights given; pass a Hugging Face folder, or an id such as "
                "facebook/dinov2-small, as dino_source"
            )
        try:
            encoder = DinoEncoder(dino_source)
        except (OSError, ValueError, RuntimeError) as error:  # its messages say what to do
            raise WeightsError(f"extractor {name}: {error}") from error
        return FeatureExtractor(name, ClsToken(encoder), f"cls_token, {encoder.model.config.model_type}, 224")
    if name == "xrv":
        return FeatureExtractor(name, _xrv_network(), XRV_WEIGHTS)
    raise SettingsError(f"found extractor {name!r}; expected one of {', '.join(EXTRACTORS)}")


class ClsToken(nn.Module):
    """A DINO encoder's cls_token: [B, 1, H, W] in [0, 1] -> [B, D]."""

    def __init__(self, encoder: DinoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch."""
        return self.encoder(image).cls_token


class XrvFeatures(nn.Module):
    """TorchXRayVision's pooled features: [B, 1, H, W] in [0, 1] -> [B, 1024]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch; the model wants 224×224 and values in [-1024, 1024]."""
        image = F.interpolate(image, size=(XRV_SIZE, XRV_SIZE), mode="bilinear", antialias=True, align_corners=False)
        return self.model.features2((image * 2 - 1) * 1024)


def _xrv_network() -> XrvFeatures:
    try:
        import torchxrayvision as xrv
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise SettingsError(
            f"extractor xrv: the package torchxrayvision cannot be imported ({error}); install it with a torchvision "
            "that fits your torch, or leave xrv out"
        ) from error
    name = xrv.models.model_urls[XRV_WEIGHTS]["weights_url"].rpartition("/")[2]
    path = Path(xrv.utils.get_cache_dir()) / name
    if not path.is_file():
        raise WeightsError(
            f"{path}: no weights there; get them once, online, with "
            f"""python -c "import torchxrayvision as xrv; xrv.models.DenseNet(weights='{XRV_WEIGHTS}')" """.rstrip()
        )
    return XrvFeatures(xrv.models.DenseNet(weights=XRV_WEIGHTS)).eval()
