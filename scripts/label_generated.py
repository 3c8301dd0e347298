"""Label generated radiographs by several segmenters and keep those on which they agree, as a data set for training.

python scripts/label_generated.py GENERATED --weights seed0.pt,seed1.pt,seed2.pt --output_dir OUT --keep_share 0.5
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor
from tqdm import tqdm

from common.command_line import run_command
from common.data.datalists import DatasetError, radiograph_items
from common.data.mask_transforms import GEOMETRY_KEY, to_original
from common.experiments.pseudo_labels import PseudoLabelError, consensus, select_by_agreement, write_pseudo_labelled
from common.files import atomic_path
from common.fingerprint import file_sha256
from common.io import read_radiograph
from common.networks.weights import load_weights

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "dental_radiograph_segmentation"
SUMMARY_NAME = "pseudo_labels.json"


def label_generated(
    generated: str,
    *,
    weights: str | Sequence[str],
    output_dir: str,
    keep_share: float = 0.5,
    config: str | None = None,
    device: str = "cpu",
) -> None:
    """Write images/*.png, masks/*.png, manifest.csv (split train, agreement) and pseudo_labels.json.

    The mask is that of the segmenters' mean probability at the image's own size; the agreement is that of pairs of
    segmenters over all that any of them finds. A killed run is finished by the same command, to the same files.

    Args:
        generated: folder that generate.yaml wrote, or any folder of generated radiographs.
        weights: model.pt files of two or more segmenters, such as those of different seeds; several with commas.
        output_dir: folder for the data set; it may hold the same one already, but no other.
        keep_share: of all images, those with the highest agreement; in (0, 1].
        config: file with network_def, preprocessing and classes; by default the dental bundle's inference.yaml.
        device: where the networks run, such as cuda.
    """
    paths = [path.strip() for path in weights.split(",")] if isinstance(weights, str) else list(weights)
    select_by_agreement([], keep_share)  # tells of a wrong share before the work
    if len({*paths}) < max(2, len(paths)):
        raise PseudoLabelError(f"--weights: found {', '.join(paths)}; expected two or more different files")
    parser = read_config(config)
    segmenters = [load_segmenter(parser, path, device) for path in paths]
    items = radiograph_items(generated, "all", val_fraction=0.0, seed=0)
    preprocessing = parser.get_parsed_content("preprocessing")
    labelled = [label_image(preprocessing(item), segmenters, device) for item in tqdm(items, "labelling", unit="image")]
    scores = [score for _, score in labelled]
    kept = select_by_agreement(scores, keep_share)
    write_pseudo_labelled(
        output_dir,
        [read_radiograph(items[number]["image"]).pixels for number in kept],
        [labelled[number][0] for number in kept],
        [scores[number] for number in kept],
        parser.get_parsed_content("classes"),
        numbers=kept,
    )
    write_summary(Path(output_dir), paths, scores, kept, keep_share)


def read_config(config: str | None) -> ConfigParser:
    """Parser of a config that has network_def, preprocessing and classes.

    Raises:
        DatasetError: there is no such file, or it lacks one of them.
    """
    path = Path(config or BUNDLE / "configs" / "inference.yaml").expanduser()
    if not path.is_file():
        raise DatasetError(f"{path}: found no config there; expected the bundle's inference.yaml, or give --config")
    parser = ConfigParser()
    parser.read_config(path)
    missing = [name for name in ("network_def", "preprocessing", "classes") if name not in parser.get()]
    if missing:
        raise DatasetError(f"{path}: found no {', '.join(missing)}; expected a config such as inference.yaml")
    return parser


def load_segmenter(parser: ConfigParser, path: str, device: str) -> torch.nn.Module:
    """The config's network with the weights at `path`, in eval mode."""
    network = copy.deepcopy(parser.get_parsed_content("network_def"))
    try:
        return load_weights(network, Path(path).expanduser()).to(device)
    except RuntimeError as error:  # keys or shapes
        raise PseudoLabelError(
            f"{path}: found weights of another network ({str(error)[:200]} …); expected those of the config's "
            "network_def. Give the config that they were trained with"
        ) from error


@torch.no_grad()
def label_image(item: dict[str, Any], segmenters: Sequence[torch.nn.Module], device: str) -> tuple[Tensor, float]:
    """Mask uint8 [1, H, W] at the image's original size, and agreement, of one preprocessed item."""
    image = item["image"].as_subclass(torch.Tensor)[None].to(device)
    probabilities = [
        to_original(segmenter(image)[0].float().softmax(0), item[GEOMETRY_KEY]).cpu() for segmenter in segmenters
    ]
    return consensus(torch.stack(probabilities))


def write_summary(
    folder: Path, weights: Sequence[str], scores: Sequence[float], kept: Sequence[int], keep_share: float
) -> None:
    """Write and print where the labels come from, and how far the segmenters agreed."""
    summary = {
        "weights_sha256": [file_sha256(Path(path).expanduser()) for path in weights],
        "keep_share": keep_share,
        "images": len(scores),
        "kept": len(kept),
        "mean_agreement": statistics.fmean(scores),
        "mean_agreement_kept": statistics.fmean(scores[number] for number in kept),
        "without_finding": sum(score == 0.0 for score in scores),
    }
    with atomic_path(folder / SUMMARY_NAME) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"kept {len(kept)} of {len(scores)} images in {folder}; mean agreement "
        f"{summary['mean_agreement_kept']:.3f}, of all {summary['mean_agreement']:.3f}"
    )


if __name__ == "__main__":
    run_command(label_generated)
