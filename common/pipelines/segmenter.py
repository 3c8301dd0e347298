"""Radiographs to masks at their own rows × columns."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, CastToTyped, Compose, CopyItemsd, SqueezeDimd
from torch import Tensor, nn

from .. import __version__
from ..amp import autocast
from ..data.mask_transforms import GEOMETRY_KEY, CleanUpd, PadResized, ToOriginald, to_original
from ..data.transforms import LoadRadiographd
from ..data.typical_images import TypicalImages, load_typical
from ..errors import SettingsError
from ..io import Radiograph
from ..io.dicom_seg import write_dicom_seg
from ..io.mask_files import ToStoredOrderd
from ..io.mask_writer import write_segmentation
from ..io.segmentation_classes import ClassTable, class_table
from ..networks.weights import described, load_described
from .inputs import Image, OpenBundle, as_radiograph, pick_device
from .job_log import Row

_logger = logging.getLogger(__name__)

WINDOWS_AT_A_TIME = 4
DISPLAYED = "pred_displayed"  # the mask as it is seen; "pred" is in the order that MONAI reads the file in


# ---- what is done before, with and after the network -----------------------------------------------------------------


def segmenter_preprocessing(image_size: Sequence[int], turn: bool) -> Compose:
    """From "image", a path, to what the network sees, and how to get back; sizes as of `PadResized`."""
    return Compose([LoadRadiographd(["image"]), PadResized(["image"], image_size, turn=turn)])


def segmenter_postprocessing(
    classes: ClassTable, keep_largest: Sequence[str] = (), min_area_px: Mapping[str, int] | None = None
) -> Compose:
    """From logits "pred" [K, H', W'] to labels uint8 [H, W] as they are seen, and as MONAI Label's writer wants them.

    Connected components are removed as `CleanUpd` does.
    """
    return Compose(
        [
            Activationsd(["pred"], softmax=True),
            ToOriginald(["pred"]),
            AsDiscreted(["pred"], argmax=True),
            CastToTyped(["pred"], dtype=torch.uint8),
            CleanUpd(["pred"], classes, keep_largest, min_area_px or {}),
            SqueezeDimd(["pred"], dim=0),
            CopyItemsd(["pred"], names=[DISPLAYED]),
            ToStoredOrderd(["pred"]),  # for the writer of MONAI Label's monaibundle app
        ]
    )


class FlipInferer(Inferer):
    """Mean of the class probabilities of an image and of its mirror image, left to right, each by the inferer.

    Classes that name a side change places in the mirror, see `ClassTable.mirrored_labels`.
    """

    def __init__(self, inferer: Inferer, classes: ClassTable) -> None:
        super().__init__()
        self.inferer = inferer
        self.mirrored_labels = classes.mirrored_labels()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Infer, from images [B, 1, H, W] with a network that gives logits [B, K, H, W].

        Returns:
            Logarithms of the mean probabilities, float32 [B, K, H, W]: their softmax is the mean itself, so that what
            follows a network's logits can follow this.
        """
        both: Any = (self.inferer(image, network, *args, **kwargs) for image in (inputs, inputs.flip(-1)))
        straight, mirrored = (logits.as_subclass(torch.Tensor).float().log_softmax(dim=1) for logits in both)
        return torch.logaddexp(straight, mirrored[:, self.mirrored_labels].flip(-1)) - math.log(2)


def segmentation_inferer(
    sliding_window: bool, window_size: Sequence[int], overlap: float, flips: bool, classes: ClassTable
) -> Inferer:
    """How the network is run over an image: whole, or over windows that are blended with Gaussian weights.

    Windows are for images larger than those that the network was trained on, such as whole panoramics: of `window_size`
    px, (rows, columns), of which the next one covers the share `overlap`, in [0, 1), again. With `flips` the result is
    averaged with that of the mirror image, for twice the time.

    Raises:
        SettingsError: no window size of two numbers, or no such overlap.
    """
    inferer: Inferer = SimpleInferer()
    if sliding_window:
        if len(window_size) != 2 or min(window_size) < 1 or not 0 <= overlap < 1:
            raise SettingsError(
                f"sliding window: found window_size {list(window_size)}, overlap {overlap}; expected rows and columns "
                "in px, and a share of at least 0 and below 1."
            )
        inferer = SlidingWindowInferer(list(window_size), WINDOWS_AT_A_TIME, overlap, mode="gaussian")
    return FlipInferer(inferer, classes) if flips else inferer


# ---- the pipeline ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmentation:
    """What was found in a radiograph."""

    radiograph: Radiograph  # with its spacing, where known
    mask: Tensor  # labels uint8 [H, W], the radiograph's own rows × columns
    logits: Tensor  # float32 [K, H', W'] at the network's size
    geometry: Tensor  # leads from there to H × W
    classes: ClassTable  # the labels
    model: str  # name and version of what drew it

    @property
    def probabilities(self) -> Tensor:
        """Of each class, background first: float32 [K, H, W], before what was cleaned up."""
        return to_original(self.logits.softmax(0), self.geometry)

    @property
    def areas_px(self) -> dict[str, int]:
        """Pixels by class name, without the background."""
        counts = torch.bincount(self.mask.flatten().long(), minlength=self.classes.num_labels).tolist()
        return dict(zip(self.classes.names[1:], counts[1:], strict=True))

    @property
    def areas_mm2(self) -> dict[str, float] | None:
        """mm² by class name; None where the spacing is not known."""
        spacing = self.radiograph.spacing_mm
        return None if spacing is None else {name: px * math.prod(spacing) for name, px in self.areas_px.items()}

    def save(
        self,
        output_dir: str | os.PathLike[str],
        name: str | None = None,
        overlay: bool = True,
        nifti: bool = False,
        dicom_seg: bool = False,
    ) -> Row:
        """Write `<name>_mask.png` and what else is asked for, see `write_segmentation`; returns the row of areas.

        By default `name` is that of the radiograph's file; the folder is made if need be.

        Raises:
            DatasetError: the radiograph's file cannot be referred to; the other files are there.
        """
        stem = Path(output_dir) / (self.radiograph.path.name.replace(".", "_") if name is None else name)
        mask = self.mask.numpy()
        return write_segmentation(self.radiograph, mask, stem, self.classes, self.model, overlay, nifti, dicom_seg)

    def save_dicom_seg(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask as DICOM SEG that refers to the radiograph's file.

        Raises:
            DatasetError: that is no DICOM file, or highdicom is missing.
        """
        return write_dicom_seg(self.mask.numpy(), Path(path), self.classes, self.radiograph.path, self.model)


@dataclass(eq=False, repr=False)
class DentalSegmenter:
    """The segmenter, of radiographs in any form (see `as_radiograph`).

    `preprocessing`, whose first transform loads, `inferer` and `postprocessing` are as of the functions above; the
    network gives logits. The device "auto" is a GPU where there is one; with `amp` it is bfloat16 where the hardware
    has it. `model` is name and version, for DICOM SEG, `typical` what the training images were like.
    """

    network: nn.Module
    classes: ClassTable
    preprocessing: Callable[[dict], dict]
    inferer: Inferer
    postprocessing: Callable[[dict], dict]
    device: str | torch.device = "auto"
    amp: bool = False
    model: str = f"dental_radiograph_segmentation {__version__}"
    typical: TypicalImages | None = None

    def __post_init__(self) -> None:
        self.device = pick_device(self.device)
        self.network.to(self.device).eval()

    @classmethod
    def from_bundle(
        cls,
        bundle: str | os.PathLike[str],
        device: str | torch.device = "auto",
        sliding_window: bool = False,
        panoramic_size: Sequence[int] = (480, 960),
        overlap: float = 0.5,
        flips: bool = False,
        keep_largest: Sequence[str] = (),
        min_area_px: Mapping[str, int] | None = None,
        amp: bool = False,
    ) -> DentalSegmenter:
        """The shipped weights of a bundle, a folder or a zip; settings as in its inference.yaml.

        Raises:
            WeightsError: there are none, or they are damaged.
            SettingsError: settings that cannot be.
        """
        opened = OpenBundle(bundle)
        path = opened.models / "model.pt"
        classes, image_size = class_table(described(path, "class_table")), described(path, "image_size")
        return cls(
            load_described(path),
            classes,
            segmenter_preprocessing(panoramic_size if sliding_window else image_size, turn=True),
            segmentation_inferer(sliding_window, image_size, overlap, flips, classes),
            segmenter_postprocessing(classes, keep_largest, min_area_px),
            device,
            amp,
            typical=load_typical(path),
        )

    def segment(self, image: Image, spacing_mm: tuple[float, float] | None = None) -> Segmentation:
        """Find what is in a radiograph in any form; `spacing_mm` (down the rows, along the columns) is of pixels.

        Raises:
            UnreadableRadiographError: it cannot be read, or no such pixels.
        """
        return self.segment_all([as_radiograph(image, spacing_mm)])[0]

    @torch.inference_mode()
    def segment_all(self, images: Sequence[Image]) -> list[Segmentation]:
        """The same for several; neighbours of one padded size run through the network together."""
        radiographs = [as_radiograph(image) for image in images]
        items = [self.preprocessing({"image": radiograph}) for radiograph in radiographs]
        logits: list[Tensor] = []
        for _, group in groupby(items, key=lambda item: tuple(item["image"].shape)):
            stack = torch.stack([item["image"].as_subclass(torch.Tensor) for item in group])
            with autocast(self.device, self.amp):
                logits += self.inferer(stack.to(self.device), self.network).float().as_subclass(torch.Tensor)
        found = []
        for radiograph, item, each in zip(radiographs, items, logits, strict=True):
            done = self.postprocessing({**item, "pred": each})
            mask = done[DISPLAYED if DISPLAYED in done else "pred"].as_subclass(torch.Tensor).cpu()
            labels = mask.reshape(mask.shape[-2:]).to(torch.uint8)
            found.append(Segmentation(radiograph, labels, each.cpu(), item[GEOMETRY_KEY], self.classes, self.model))
        return found
