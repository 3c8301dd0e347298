"""Describe the training images of weights, so that what is unlike them can be told, see `TypicalImages`.

python scripts/typical_images.py DIR --output_file bundles/NAME/models/typical_images.pt --other OTHER_DIR

Learns from the split `train`, sets its limits on `val`, and prints the share of each that is above.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.command_line import run_command
from common.data.datalists import radiograph_items
from common.data.typical_images import TypicalImages, features
from common.io import read_radiograph
from common.networks.weights import save_weights
from common.progress import ProgressBar


def typical_images(
    dataset_dir: str,
    *,
    output_file: str,
    where: Mapping[str, str] | None = None,
    other: str | None = None,
    limit: int | None = None,
) -> None:
    """Write `output_file`, a few kilobytes.

    Args:
        dataset_dir: of the training, with its splits.
        output_file: beside the weights.
        where: manifest columns and the value that each must have.
        other: folder of images of another kind, whose split `val` is looked at, too.
        limit: images of each at most.
    """

    def found(folder: str, split: str, chosen: Mapping[str, str] | None = None) -> list:
        items = radiograph_items(folder, split, 0.1, 0, where=chosen)[:limit]
        bar = ProgressBar(items, desc=f"{split} of {folder}", unit="image")
        return [features(read_radiograph(item["image"]).pixels) for item in bar]

    training, held_out = found(dataset_dir, "train", where), found(dataset_dir, "val", where)
    typical = TypicalImages().fit(training, held_out)
    save_weights(typical, output_file)
    sets = {f"{dataset_dir} train": training, f"{dataset_dir} val": held_out}
    for name, values in {**sets, **({f"{other} val": found(other, "val")} if other else {})}.items():
        above = sum(typical.of_features(value) > 1 for value in values)
        print(f"{name}: {above} of {len(values)} ({above / len(values):.1%}) are above 1")


if __name__ == "__main__":
    run_command(typical_images)
