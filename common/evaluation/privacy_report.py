"""The privacy check of a generated folder: which samples copy a training image, as tables, pictures and a verdict.

`PrivacyCheck(...).run()` writes the report; `drop_flagged` of `privacy_drop` takes flagged images out of the folder.
"""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.datalist_sources import MANIFEST_NAME
from ..data.datalists import assert_disjoint_patients
from ..data.transforms import load_square
from ..errors import UserError
from ..files import atomic_path, write_json
from ..pipelines.manifest import several
from ..provenance import provenance
from ..seeding import derive_seed
from .altered_copy import altered_copy
from .copy_detection import CopyCheck, CopyReference
from .copy_features import CopyFeatureNetwork, CopyFeatures
from .image_features import FeatureExtractor, ImageFeatures
from .nearest_patients import SPACES
from .privacy_pictures import draw_distances, draw_suspects
from .privacy_summary import write_summary

logger = logging.getLogger(__name__)

REPORT_NAME, TABLE_NAME, FLAGGED_NAME = "privacy.json", "privacy_per_image.csv", "flagged.csv"
SHEET_NAME, PLOT_NAME, CACHE_NAME = "flagged.png", "distances.png", "features"


class PrivacyCheckError(UserError, ValueError):
    """A generated folder or a report that cannot be used."""


class PrivacyCheck:
    """Compare generated images with the training set, against held-out images of other patients.

    Writes into output_dir, each file atomically: privacy.json, privacy_per_image.csv, flagged.csv and flagged.png,
    which shows samples beside their nearest training images. Features are kept, so that a second run, or
    one that was killed, encodes only what is new. The sheet, the tables and the features are data of real patients:
    output_dir must not be shared with the generated images. What may be, because it names and shows nobody, are
    privacy_summary.json, privacy_summary.md and distances.png; these go to summary_dir.

    Args:
        generated_dir: folder with the manifest.csv of a generation run (columns image, strategy, sources).
        train_items: dicts with "image" (path) and "patient_id": all that the generator was trained on.
        held_out_items: the same of patients who are not in training, of the same kinds of images; at least 199 with the
            default false_flag_rate, the more the better.
        encoder: maps [B, 1, H, W] in [0, 1] to an object with `cls_token` [B, D], such as `DinoEncoder`.
        device: where the encoder runs.
        output_dir: made if absent.
        summary_dir: of what may be shared; by default output_dir.
        cache_dir: where features are kept; None for a folder in output_dir. Several checks may share one.
        image_size: px; every image is brought to this shorter side and its central square, as for training.
        picture_size: px of the small pictures that are compared.
        max_shift: px of these, see `CopyReference`, as for the next three.
        num_neighbours: training patients that a distance is compared with.
        false_flag_rate: share of images of new patients that is flagged at most, on average.
        significance: of the verdict.
        num_controls: training images of which altered copies are made, to see how many the check finds; 0 for none.
        num_examples: rows of flagged.png at most; free ones show the nearest samples that are not flagged.
        batch_size: images at a time.
        seed: of the controls.
        progress: show progress bars.
    """

    def __init__(
        self,
        generated_dir: str | Path,
        train_items: Sequence[Mapping[str, Any]],
        held_out_items: Sequence[Mapping[str, Any]],
        encoder: nn.Module,
        device: torch.device | str,
        output_dir: str | Path,
        summary_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        image_size: int = 256,
        picture_size: int = 32,
        max_shift: int = 2,
        num_neighbours: int = 5,
        false_flag_rate: float = 0.01,
        significance: float = 0.05,
        num_controls: int = 100,
        num_examples: int = 24,
        batch_size: int = 16,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.generated_dir, self.output_dir = Path(generated_dir), Path(output_dir)
        self.summary_dir = self.output_dir if summary_dir is None else Path(summary_dir)
        self.train_items, self.held_out_items = list(train_items), list(held_out_items)
        self.reference = CopyReference(num_neighbours, max_shift, false_flag_rate, significance)
        self.network = CopyFeatureNetwork(encoder, picture_size)
        extractor = FeatureExtractor("copy", self.network, f"{getattr(encoder, 'image_size', None)}, {picture_size}")
        cache_dir = self.output_dir / CACHE_NAME if cache_dir is None else cache_dir
        self.features = ImageFeatures(extractor, cache_dir, image_size, batch_size, device, progress)
        self.image_size, self.batch_size = image_size, batch_size
        self.num_controls, self.num_examples, self.seed = num_controls, num_examples, seed
        self.settings = {
            "generated_dir": str(self.generated_dir.resolve()),
            "image_size": image_size,
            "picture_size": picture_size,
            "max_shift": max_shift,
            "num_neighbours": num_neighbours,
            "false_flag_rate": false_flag_rate,
            "significance": significance,
            "encoder_and_picture": extractor.fingerprint,
            "seed": seed,
        }

    def run(self) -> dict[str, Any]:
        """Check, write the report, log the verdict; returns what privacy.json holds.

        Raises:
            PrivacyCheckError: no manifest of generated images.
            DatasetError: a patient is in training and held out.
            ExtractorError: none of the training, held-out or generated images can be read.
            CopyDetectionError: too few images to compare.
        """
        rows = _manifest_rows(self.generated_dir)
        assert_disjoint_patients(training=self.train_items, held_out=self.held_out_items)
        unreadable: dict[str, list[tuple[str, str]]] = {}
        train, train_features = self._read("training", self.train_items, unreadable)
        held_out, held_out_features = self._read("held_out", self.held_out_items, unreadable)
        samples, sample_features = self._read("generated", rows, unreadable)
        self.reference.fit(train_features, held_out_features, [item["patient_id"] for item in train])
        real = [str(item["image"]) for item in (*train, *held_out)]
        number = {os.path.abspath(path): i for i, path in enumerate(real)}
        own = [[number[path] for path in self._sources(row) if path in number] for row in samples]
        # Samples without source are independent of each other.
        groups = [row.get("sources") or f"\0{i}" for i, row in enumerate(samples)]
        check = self.reference.check(sample_features, own, groups)
        table = [self._table_row(i, row, check, real) for i, row in enumerate(samples)]
        report = {
            "verdict": asdict(check.verdict),
            "sensitivity": self._sensitivity(train),
            "spaces": {space: self._describe(space, check) for space in SPACES},
            "own_sources": _describe_sources(check, samples, own),
            "images": {"generated": len(samples), "training": len(train), "held_out": len(held_out)},
            "held_out_copies_of_training": [[real[len(train) + i], real[j]] for i, j in self.reference.leaks],
            "unreadable": unreadable,
            "settings": self.settings,
            "provenance": provenance(self.features.device),
        }
        order = np.argsort(np.min([check.spaces[space].tail_p_value for space in SPACES], axis=0), kind="stable")
        order = order[np.argsort(~check.is_flagged[order], kind="stable")]  # flagged first
        _write_csv(self.output_dir / TABLE_NAME, table)
        _write_csv(self.output_dir / FLAGGED_NAME, [table[i] for i in order if check.is_flagged[i]], list(table[0]))
        draw_distances(self.summary_dir / PLOT_NAME, self.reference, check)
        shown = order[: self.num_examples]
        paths, lines = [samples[i]["image"] for i in shown], [table[i] for i in shown]
        draw_suspects(self.output_dir / SHEET_NAME, paths, lines, self.image_size)
        write_json(self.output_dir / REPORT_NAME, report)
        write_summary(self.summary_dir, report)
        self._log(report)
        return report

    # ---- images ----------------------------------------------------------------------------------------------------

    def _read(
        self, name: str, items: Sequence[Mapping[str, Any]], unreadable: dict[str, list[tuple[str, str]]]
    ) -> tuple[list[Mapping[str, Any]], CopyFeatures]:
        """The readable items and their features."""
        logger.info("%s images: %d", name, len(items))
        found = self.features.of_files([str(item["image"]) for item in items])
        unreadable[name] = found.problems
        return [items[i] for i in found.indices], self.network.unpack(found.features)

    def _sources(self, row: Mapping[str, str]) -> list[str]:
        """Absolute paths of what a sample was made from."""
        return [os.path.abspath(self.generated_dir / name) for name in several(row.get("sources") or "")]

    def _sensitivity(self, train: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
        """How many altered copies of training images are flagged and traced to the right image."""
        count = min(self.num_controls, len(train))
        if not count:
            return None
        chosen = np.random.default_rng(self.seed).choice(len(train), count, replace=False).tolist()

        def batches() -> Iterator[Tensor]:
            for start in range(0, count, self.batch_size):
                indices = chosen[start : start + self.batch_size]
                images = [
                    altered_copy(load_square(train[i]["image"], self.image_size), derive_seed(self.seed, i))
                    for i in indices
                ]
                yield torch.stack(images)

        logger.info("altered copies of training images, to see whether they are found: %d", count)
        check = self.reference.check(self.network.unpack(self.features.of_batches(batches())))
        is_right = np.any([check.spaces[space].nearest == np.array(chosen) for space in SPACES], axis=0)
        return {"copies": count, "found": int((check.is_flagged & is_right).sum())}

    # ---- report ----------------------------------------------------------------------------------------------------

    def _table_row(self, i: int, row: Mapping[str, str], check: CopyCheck, real: Sequence[str]) -> dict[str, Any]:
        """One line of privacy_per_image.csv; paths of generated images are as in the manifest."""
        line: dict[str, Any] = {
            "image": row["name"],
            "strategy": row.get("strategy", ""),
            "sources": row.get("sources", ""),
            "flagged": _yes(check.is_flagged[i]),
            "copy": _yes(check.is_copy[i]),
            "copies_source": _yes(check.copies_source[i]),
        }
        for name in SPACES:
            space = check.spaces[name]
            line[f"{name}_nearest"] = real[space.nearest[i]]
            line[f"{name}_nearest_is_own_source"] = _yes(space.nearest_is_own_source[i])
            for column in ("distance", "ratio", "p_value", "tail_p_value", "source_distance", "source_p_value"):
                value = float(getattr(space, column)[i])
                line[f"{name}_{column}"] = "" if math.isnan(value) else f"{value:.6g}"
        return line

    def _describe(self, space: str, check: CopyCheck) -> dict[str, Any]:
        held_out = self.reference.held_out[space]
        nearer = {
            name: {"probability_sample_is_nearer": probability, "p_value": p}
            for name, (probability, p) in check.comparison[space].items()
        }
        return {
            "flagged": int(check.spaces[space].is_flagged.sum()),
            "ratio_threshold": held_out.threshold,
            "held_out": len(held_out.sorted),
            "smallest_p_value": 1 / (len(held_out.sorted) + 1),
            "compared_with_held_out": nearer,
        }

    def _log(self, report: Mapping[str, Any]) -> None:
        for first, second in report["held_out_copies_of_training"]:
            logger.warning("held out, yet (nearly) the same picture as a training image: %s, %s", first, second)
        verdict, own, sensitivity = report["verdict"], report["own_sources"], report["sensitivity"]
        logger.log(logging.INFO if verdict["level"] == "no_sign" else logging.WARNING, "%s", verdict["text"])
        if sensitivity:
            logger.info("%(found)d of %(copies)d altered copies of training images are found", sensitivity)
        if own["samples_with_known_source"]:
            logger.info("%(copies_source)d of %(samples_with_known_source)d samples copy their own source", own)
        if own["samples_with_unknown_source"]:
            logger.warning(
                "%(samples_with_unknown_source)d samples have sources that are in neither list; these sources are not "
                "compared",
                own,
            )
        logger.info("%s shows real patients: do not share %s with the generated images", SHEET_NAME, self.output_dir)


def _describe_sources(
    check: CopyCheck, samples: Sequence[Mapping[str, str]], own: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What privacy.json says of the images that samples were made from; these play no part in the verdict."""
    has_source = [bool(row.get("sources")) for row in samples]
    return {
        "samples_with_known_source": sum(map(bool, own)),
        "samples_with_unknown_source": sum(has and not found for has, found in zip(has_source, own, strict=True)),
        "nearest_is_own_source": {name: int(check.spaces[name].nearest_is_own_source.sum()) for name in SPACES},
        "copies_source": int(check.copies_source.sum()),
    }


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _manifest_rows(folder: Path) -> list[dict[str, str]]:
    """The manifest's rows, with "name" as listed and "image" as a path from here."""
    path = folder / MANIFEST_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise PrivacyCheckError(
            f"{path} cannot be read ({error.strerror}); generate images first, or correct generated_dir"
        ) from error
    if not rows or not all(row.get("image") for row in rows):
        raise PrivacyCheckError(f"{path}: found {len(rows)} rows; expected some, each with an image. Generate first.")
    return [{**row, "name": row["image"], "image": str(folder / row["image"])} for row in rows]


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
