"""What a privacy check shows: how near samples are as a whole, and possible copies beside what they may copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.transforms import load_square
from ..files import atomic_path
from ..io.contact_sheet import save_contact_sheet
from .copy_detection import CopyCheck, CopyReference
from .held_out_ratios import Floats
from .histograms import histograms
from .nearest_patients import SPACES

SHEET_CELL = 256  # pixels: larger images are reduced to this on the contact sheet


def draw_distances(path: str | Path, reference: CopyReference, check: CopyCheck) -> None:
    """Histograms of distances and ratios of samples and held-out images, which show nobody.

    Args:
        path: of the PNG; written whole or not at all.
        reference: that the samples were checked against.
        check: of the samples.
    """
    panels: list[tuple[str, Floats, Floats, float | None]] = []
    for space in SPACES:
        held_out, mine = reference.held_out[space], check.spaces[space]
        distance = reference.held_out_distance[space]
        panels.append((f"{space}: distance to the nearest training image", distance, mine.distance, None))
        panels.append((f"{space}: ratio, flagged below the line", held_out.sorted, mine.ratio, held_out.threshold))
    with atomic_path(path) as temporary:
        histograms(panels).save(temporary, format="PNG")


def draw_suspects(
    path: str | Path, samples: Sequence[str], table: Sequence[Mapping[str, str]], image_size: int
) -> None:
    """Samples beside the training images that they may have copied: pictures of patients.

    Args:
        path: of the PNG; written whole or not at all.
        samples: paths of the images, the most suspicious first.
        table: of each, its line of the check's table.
        image_size: px that all images are brought to.
    """
    rows, captions = [], []
    for sample, line in zip(samples, table, strict=True):
        rows.append(
            [load_square(name, image_size) for name in (sample, *(line[f"{space}_nearest"] for space in SPACES))]
        )
        state = "COPY" if line["copy"] == "yes" else "flagged" if line["flagged"] == "yes" else "not flagged"
        figures = ", ".join(
            f"{name} {float(line[f'{name}_distance']):.3g} (p {float(line[f'{name}_p_value']):.2g})" for name in SPACES
        )
        captions.append(f"{state}: {figures}; {line['image']}")
    titles = ["generated", *(f"nearest by {space}" for space in SPACES)]
    save_contact_sheet(rows, path, titles, captions, min(1.0, SHEET_CELL / image_size))
