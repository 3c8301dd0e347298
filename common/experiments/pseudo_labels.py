"""Labels for generated radiographs: what an ensemble of segmenters says, how far it agrees, and a data set of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.datalist_sources import MANIFEST_NAME
from ..data.mask_transforms import OWN_LABELS
from ..errors import UserError
from ..files import atomic_path
from ..io.image_writer import write_png
from ..io.mask_writer import write_mask_png
from ..io.segmentation_classes import ClassTable

COLUMNS = ("image", "mask", "mask_values", "patient_id", "split", "agreement")

Segmenter = Callable[[Tensor], Tensor]


class PseudoLabelError(UserError, ValueError):
    """Pseudo-labels cannot be drawn or written as asked."""


@dataclass(frozen=True)
class PseudoLabels:
    """What an ensemble says of N images of one size.

    Attributes:
        masks: labels, uint8 [N, 1, H, W].
        scores: agreement of the members, float64 [N] in [0, 1].
    """

    masks: Tensor
    scores: Tensor


def consensus(probabilities: Tensor) -> tuple[Tensor, float]:
    """Mask of the members' mean probability, and how far the members agree on one image.

    The agreement is the share of pairs of members that give a pixel the same label, averaged over the pixels to which
    at least one member gives a class: background that nobody doubts does not count. Large structures weigh more. It is
    0 where the mask itself holds no class, as such an image would teach nothing.

    Args:
        probabilities: float [E, K, H, W] of E ≥ 2 members and K ≤ 256 classes, the background first.

    Returns:
        Labels uint8 [1, H, W], and the agreement in [0, 1].

    Raises:
        PseudoLabelError: fewer than two members, or another shape.
    """
    if probabilities.ndim != 4 or len(probabilities) < 2:
        raise PseudoLabelError(
            f"pseudo-labels: found probabilities {tuple(probabilities.shape)}; expected [E, K, H, W] of at least two "
            "members. Give the weights of several segmenters, such as those of different seeds."
        )
    members, num_labels = probabilities.shape[:2]
    mask = probabilities.mean(0).argmax(0, keepdim=True).to(torch.uint8)
    if not mask.any():
        return mask, 0.0
    votes = torch.nn.functional.one_hot(probabilities.argmax(1), num_labels).sum(0)  # [H, W, K]
    same = (votes * (votes - 1)).sum(-1).double() / (members * (members - 1))
    # Averaging can find a class where no member has it in front; such pixels are doubted, too.
    counted = (votes[..., 0] < members) | (mask[0] > 0)
    return mask, float(same[counted].mean())


def pseudo_label(segmenters: Sequence[Segmenter], images: Tensor, batch_size: int = 8) -> PseudoLabels:
    """Run an ensemble over images of one size.

    Args:
        segmenters: two or more networks in eval mode, that give logits or log-probabilities [B, K, H, W].
        images: [N, 1, H, W] in [0, 1], on the segmenters' device.
        batch_size: images at a time.

    Raises:
        PseudoLabelError: no images, fewer than two segmenters, or a batch size below 1.
    """
    if not len(images) or batch_size < 1:
        raise PseudoLabelError(
            f"pseudo-labels: found {len(images)} images, batch_size {batch_size}; expected at least 1 of both."
        )
    masks, scores = [], []
    with torch.no_grad():
        for batch in images.split(batch_size):
            probabilities = torch.stack([segmenter(batch).float().softmax(1) for segmenter in segmenters])
            for image in range(len(batch)):
                mask, score = consensus(probabilities[:, image])
                masks.append(mask)
                scores.append(score)
    return PseudoLabels(torch.stack(masks), torch.tensor(scores, dtype=torch.float64))


def select_by_agreement(scores: Sequence[float] | Tensor, keep_share: float) -> list[int]:
    """Numbers of the images with the highest agreement, in ascending order.

    Args:
        scores: of all images, in [0, 1]; of equal ones the first is taken.
        keep_share: of all images, in (0, 1], rounded to whole images. Images of agreement 0 are never kept.

    Raises:
        PseudoLabelError: a share or a score out of range.
    """
    values = [float(score) for score in scores]
    if not 0.0 < keep_share <= 1.0 or not all(0.0 <= value <= 1.0 for value in values):
        raise PseudoLabelError(
            f"pseudo-labels: found keep_share {keep_share} and scores from {min(values, default=math.nan)} to "
            f"{max(values, default=math.nan)}; expected a share in (0, 1] and scores in [0, 1]."
        )
    best = sorted(range(len(values)), key=lambda number: (-values[number], number))[: round(keep_share * len(values))]
    return sorted(number for number in best if values[number] > 0.0)


def write_pseudo_labelled(
    output_dir: str | Path,
    images: Sequence[Tensor] | Tensor,
    masks: Sequence[Tensor] | Tensor,
    scores: Sequence[float] | Tensor,
    classes: ClassTable,
    numbers: Sequence[int] | None = None,
) -> Path:
    """Write a data set for training: images/*.png, masks/*.png (labels of `classes`) and manifest.csv.

    Each file is whole or absent, and the manifest is last: a folder without one is not finished, and the same call
    finishes it. The same arguments give the same bytes. Every image is a patient of its own, of the split train.

    Args:
        output_dir: made if need be; one folder is one set.
        images: [1, H, W] each, in [0, 1].
        masks: labels [1, H, W] each, of the image's size.
        scores: agreement of each.
        classes: the labels.
        numbers: of the images, for their names; such as those that `select_by_agreement` gave. None counts from 0.

    Returns:
        The manifest's path.

    Raises:
        PseudoLabelError: no images, arguments that do not belong together, or a folder that holds another set.
    """
    if numbers is None:
        numbers = range(len(images))
    counts = {len(images), len(masks), len(scores), len(numbers), len({*numbers})}
    if len(counts) != 1 or not len(images):
        raise PseudoLabelError(
            f"pseudo-labels: found {len(images)} images, {len(masks)} masks, {len(scores)} scores and "
            f"{len({*numbers})} different numbers; expected as many of each, and at least one. Where none was left, "
            "raise keep_share, or see whether the segmenters find anything in the generated images."
        )
    folder = Path(output_dir)
    names = [f"synthetic-{number:04d}" for number in numbers]
    text = _manifest_text(names, scores)
    manifest = folder / MANIFEST_NAME
    if manifest.exists() and manifest.read_text(encoding="utf-8") != text:
        raise PseudoLabelError(
            f"{manifest}: found another set of images or labels there; expected none, or the same. Give another "
            "output_dir, or delete this folder."
        )
    for name, image, mask in zip(names, images, masks, strict=True):
        if image.shape != mask.shape:
            raise PseudoLabelError(
                f"{name}: found an image {tuple(image.shape)} and a mask {tuple(mask.shape)}; expected both [1, H, W]."
            )
        write_png(image, folder / "images" / f"{name}.png")
        write_mask_png(mask[0].cpu().numpy(), folder / "masks" / f"{name}.png", classes)
    with atomic_path(manifest) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return manifest


def _manifest_text(names: Sequence[str], scores: Sequence[float] | Tensor) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, score in zip(names, scores, strict=True):
        writer.writerow([f"images/{name}.png", f"masks/{name}.png", OWN_LABELS, name, "train", f"{float(score):.6f}"])
    return file.getvalue()
