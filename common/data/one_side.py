"""Keep patients and pictures on one side of a split: whom duplicates link, who moves, and the report of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..errors import DatasetError, counted
from ..files import write_csv
from ..io import read_radiograph
from ..io.contact_sheet import save_contact_sheet
from .datalists import split_by_hash
from .duplicates import SIMILAR, Duplicates, linked_groups

logger = logging.getLogger(__name__)

DUPLICATES_NAME, MOVED_NAME, SHEET_NAME = "duplicates.csv", "moved.csv", "duplicates.png"
LINK_COLUMNS = ("patient_id", "group")  # images with one value in either belong together
_COLUMNS = (
    *("image", "other", "kind", "hash_distance", "correlation"),
    *("patient_id", "other_patient_id", "split", "other_split", "action"),
)
_SHEET_SIDE = 192  # px of the longer side
_PAIRS_PER_ROW = 3
_MAX_PAIRS_DRAWN = 60  # the least alike, as these are worth a look


class Move(NamedTuple):
    """An image that changes sides; fields as in moved.csv."""

    image: str
    patient_id: str
    before: str
    after: str
    why: str


def one_side(
    items: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[int]], val_fraction: float = 0.1, seed: int = 0
) -> tuple[list[dict[str, Any]], list[Move]]:
    """Give every item a `split` such that no patient and no group is on two sides.

    Images belong together where they are in one group (indices, as of `Duplicates.groups`), of one patient or of one
    `group` (a manifest's column), directly or through others. Where the items bring a split, those that belong together
    and are on two sides go to train, so that validation and test hold nothing that was seen; without one, a hash of
    seed and the first of their patients' names decides, so that patients without duplicates go where `radiograph_items`
    puts them.

    Returns:
        Copies of the items, and what moved (nothing where no split was given).

    Raises:
        DatasetError: only some items have a split.
    """
    given = sum("split" in item for item in items)
    if given not in (0, len(items)):
        raise DatasetError(f"one_side: found a split in {given} of {len(items)} items; give all of them one, or none")
    links = [(group[0], other) for group in groups for other in group[1:]]
    for column in LINK_COLUMNS:
        first: dict[Any, int] = {}
        named = [(item[column], index) for index, item in enumerate(items) if item.get(column)]
        links += [(first.setdefault(value, index), index) for value, index in named]
    placed, moves = [dict(item) for item in items], []
    together = linked_groups(len(items), links)
    if not given:
        names = [str(item["patient_id"]) for item in items]
        for members in together:
            name = min(names[index] for index in members)
            for index in members:
                names[index] = name
        split_of = split_by_hash(names, val_fraction, seed)
        return [{**item, "split": split_of[name]} for item, name in zip(placed, names, strict=True)], []
    for members in together:
        for index in members:
            item = items[index]
            other = next((items[i] for i in members if items[i]["split"] != item["split"]), None)
            if other is not None and item["split"] != "train":
                why = f"belongs together with {other['image']} ({other['split']}, patient {other['patient_id']})"
                moves.append(Move(str(item["image"]), str(item["patient_id"]), item["split"], "train", why))
                placed[index]["split"] = "train"
    return placed, moves


def write_duplicates(
    found: Duplicates, items: Sequence[Mapping[str, Any]], moves: Sequence[Move], work_dir: str | Path
) -> None:
    """Write duplicates.csv, moved.csv and, where there are pairs, duplicates.png, each atomically.

    All three name or show patients: work_dir is a place for patients' data. The items have the splits they came with.
    """
    work_dir = Path(work_dir)
    moved = {move.image for move in moves}
    rows, sheet = [], []
    for pair in found.pairs:
        one, other = items[pair.first], items[pair.second]
        action = "moved to train" if moved & {str(one["image"]), str(other["image"])} else "on one side"
        action = "look" if pair.kind == SIMILAR else action
        sides = [item.get(column) for column in ("patient_id", "split") for item in (one, other)]
        measured = pair.kind, pair.hash_distance, f"{pair.correlation:.3f}"
        rows.append((one["image"], other["image"], *measured, *sides, action))
        whose = ", ".join(f"{item['patient_id']} {item.get('split', '')}".strip() for item in (one, other))
        sheet.append((f"{pair.kind} {pair.correlation:.2f}: {whose}", one["image"], other["image"]))
    write_csv(work_dir / DUPLICATES_NAME, _COLUMNS, rows)
    write_csv(work_dir / MOVED_NAME, Move._fields, moves)
    if sheet:
        sheet = sheet[::-1][:_MAX_PAIRS_DRAWN]
        lines = [sheet[start : start + _PAIRS_PER_ROW] for start in range(0, len(sheet), _PAIRS_PER_ROW)]
        pictures = [[thumbnail(image) for _, *both in line for image in both] for line in lines]
        captions = [" | ".join(caption for caption, *_ in line) for line in lines]
        save_contact_sheet(pictures, work_dir / SHEET_NAME, None, captions)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(pair.kind for pair in found.pairs).items())
    told = f"pairs of duplicates: {kinds}" if kinds else "no duplicates"
    moved_too = f"; {counted(len(moves), 'image')} moved to train" if moves else ""
    logger.info("%s: %s%s; see %s", counted(len(items), "image"), told, moved_too, work_dir / DUPLICATES_NAME)


def thumbnail(path: str) -> Tensor:
    """A radiograph reduced to 192 px of its longer side, [1, H, W] in [0, 1]."""
    pixels = read_radiograph(path).pixels
    scale = _SHEET_SIDE / max(pixels.shape)
    size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    return F.interpolate(pixels[None], size=size, mode="area")[0]
