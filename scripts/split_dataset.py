"""Check a data set for duplicates and write a manifest.csv whose splits share no patient and no picture.

python scripts/split_dataset.py DIR --output_dir OUT    # then OUT is the dataset_dir of every workflow
"""

from __future__ import annotations

from pathlib import Path

from common.command_line import run_command
from common.data.datalist_sources import MANIFEST_NAME, write_manifest
from common.data.datalists import radiograph_items
from common.data.duplicates import find_duplicates
from common.data.one_side import one_side, write_duplicates
from common.data.readability import readable_items
from common.evaluation.image_features import ImageFeatures, build_extractor


def split_dataset(
    dataset_dir: str,
    *,
    output_dir: str,
    val_fraction: float = 0.1,
    seed: int = 0,
    patient_id_pattern: str | None = None,
    max_unreadable_share: float = 0.5,
    dino_source: str | None = None,
) -> None:
    """Write OUT/manifest.csv, and what was found: duplicates.csv, moved.csv, duplicates.png, skipped.csv.

    The originals stay where they are. Everything in OUT names or shows patients: keep it where they are kept.

    Args:
        dataset_dir: folder of radiographs, or of a manifest.csv whose splits then stand, but for what is on two sides.
        output_dir: made when missing.
        val_fraction: share of the patients for validation, where there is no split.
        seed: of that split.
        patient_id_pattern: regular expression with one group, finds the patient in a file name.
        max_unreadable_share: of the files; with more nothing is written.
        dino_source: DINO encoder whose embeddings propose pairs, too (more crops are found; minutes per 5,000 images).
    """
    items = radiograph_items(dataset_dir, "all", val_fraction, seed, patient_id_pattern=patient_id_pattern)
    items = readable_items(items, output_dir, "all", max_unreadable_share)
    embeddings = None
    if dino_source is not None:
        encode = ImageFeatures(build_extractor("dino", dino_source=dino_source))
        embeddings = encode.of_files([item["image"] for item in items]).features
    found = find_duplicates(items, embeddings=embeddings)
    placed, moves = one_side(items, found.groups(with_alike=True), val_fraction, seed=seed)
    write_duplicates(found, items, moves, output_dir)
    manifest = Path(output_dir) / MANIFEST_NAME
    write_manifest(placed, manifest)
    counts = {split: sum(item["split"] == split for item in placed) for split in ("train", "val", "test")}
    print(f"{manifest}: {counts}, {len(found.pairs)} pairs of duplicates, {len(moves)} images moved to train")


if __name__ == "__main__":
    run_command(split_dataset)
