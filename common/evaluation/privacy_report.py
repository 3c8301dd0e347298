"""The privacy check of a generated folder: which samples copy a training image, as tables, pictures and a verdict.

`PrivacyCheck(...).run()` writes the report; `drop_flagged` of `privacy_drop` takes flagged images out of the folder.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from ..data.datalist_sources import MANIFEST_NAME, manifest_items, name_in
from ..data.datalists import assert_disjoint_patients
from ..data.transforms import load_square
from ..errors import DatasetError, counted
from ..files import write_json
from ..io.contact_sheet import save_contact_sheet
from ..pipelines.manifest import several
from ..progress import stopwatch
from ..provenance import provenance
from ..seeding import derive_seed
from .copy_detection import CopyCheck, CopyReference
from .image_features import FeatureExtractor, ImageFeatures
from .nearest_patients import SPACES, CopyFeatureNetwork, CopyFeatures
from .patient_link import LinkCheck, PatientImages, draw_links, link_markdown
from .report import COLOURS, Row, draw_shares, markdown_table, plot_file, write_report, write_rows

logger = logging.getLogger(__name__)

REPORT_NAME, TABLE_NAME, FLAGGED_NAME = "privacy.json", "privacy_per_image.csv", "flagged.csv"
SHEET_NAME, PLOT_NAME, LINK_NAME, CACHE_NAME = "flagged.png", "distances.png", "links.png", "features"
SUMMARY_NAMES = ("privacy_summary.json", "privacy_summary.md")
SETTINGS = ("image_size", "picture_size", "max_shift", "num_neighbours", "false_flag_rate", "significance")
PRIVATE_SETTINGS = ("generated_dir",)  # a path of one machine
SHEET_CELL = 256  # px: larger images are reduced to this on the contact sheet
# Of the altered copies that the check has to find:
MAX_CONTROL_SHIFT = 0.03  # of the side
CONTROL_BLUR = 0.004  # of the side, sd of a Gaussian
CONTROL_NOISE = 0.02  # sd, white is 1
CONTROL_CONTRAST = (0.9, 1.1)


@dataclass
class PrivacyCheck:
    """Compare generated images with the training set, against held-out images of other patients.

    Writes into output_dir, each file atomically: privacy.json, privacy_per_image.csv, flagged.csv and flagged.png,
    which shows samples beside their nearest training images. Features are kept, so that a second run, or one that was
    killed, encodes only what is new. All this is data of real patients: output_dir must not be shared with the
    generated images. What may be, as it names and shows nobody, goes to summary_dir: privacy_summary.json and .md,
    distances.png, and links.png, which like the search for links needs some patients with several images.
    """

    generated_dir: str | Path  # folder with the manifest.csv of a generation run (columns image, strategy, sources)
    # dicts with "image" (path) and "patient_id": all that the generator was trained on
    train_items: Sequence[Mapping[str, Any]]
    # the same of patients who are not in training, of the same kinds of images; at least 199 with the default
    # false_flag_rate, the more the better
    held_out_items: Sequence[Mapping[str, Any]]
    encoder: nn.Module  # maps [B, 1, H, W] in [0, 1] to an object with `cls_token` [B, D], such as `DinoEncoder`
    device: torch.device | str  # where the encoder runs
    output_dir: str | Path  # made if absent
    summary_dir: str | Path | None = None  # of what may be shared; by default output_dir
    # where features are kept; None for a folder in output_dir. Several checks may share one
    cache_dir: str | Path | None = None
    image_size: int = 256  # px; every image is brought to this shorter side and its central square, as for training
    picture_size: int = 32  # px of the small pictures that are compared
    max_shift: int = 2  # px of these, see `CopyReference`, as for the next three
    num_neighbours: int = 5  # training patients that a distance is compared with
    false_flag_rate: float = 0.01  # share of images of new patients that is flagged at most, on average
    significance: float = 0.05  # of the verdict
    # training images of which altered copies are made, to see how many the check finds; 0 for none
    num_controls: int = 100
    num_examples: int = 24  # rows of flagged.png at most; free ones show the nearest samples that are not flagged
    batch_size: int = 16  # images at a time
    seed: int = 0  # of the controls

    def __post_init__(self) -> None:
        self.folder, self.shared_folder = Path(self.output_dir), Path(self.summary_dir or self.output_dir)
        self.reference = CopyReference(self.num_neighbours, self.max_shift, self.false_flag_rate, self.significance)
        self.network = CopyFeatureNetwork(self.encoder, self.picture_size)
        looks_at = f"{getattr(self.encoder, 'image_size', None)}, {self.picture_size}"
        extractor = FeatureExtractor("copy", self.network, looks_at)
        cache_dir = self.folder / CACHE_NAME if self.cache_dir is None else self.cache_dir
        self.features = ImageFeatures(extractor, cache_dir, self.image_size, self.batch_size, self.device)
        self.settings = {
            "generated_dir": str(Path(self.generated_dir).resolve()),
            **{name: getattr(self, name) for name in SETTINGS},
            "encoder_and_picture": extractor.fingerprint,
            "seed": self.seed,
        }

    def run(self) -> Row:
        """Check, write the report, log the verdict; returns what privacy.json holds.

        Raises:
            DatasetError: no manifest of generated images, a patient in training and held out, none of the images of a
                kind readable, or too few images to compare; at the end, files that could not be read.
        """
        elapsed, generated = stopwatch(), Path(os.path.abspath(self.generated_dir))
        if not (generated / MANIFEST_NAME).is_file():
            raise DatasetError(
                f"{generated / MANIFEST_NAME}: found no such file; generate first, or correct generated_dir"
            )
        rows = manifest_items(generated)
        assert_disjoint_patients(training=self.train_items, held_out=self.held_out_items)
        unreadable: dict[str, list[tuple[str, str]]] = {}
        train, train_features = self._read("training", self.train_items, unreadable)
        held_out, held_out_features = self._read("held_out", self.held_out_items, unreadable)
        samples, sample_features = self._read("generated", rows, unreadable)
        self.reference.fit(train_features, held_out_features, [item["patient_id"] for item in train])
        real = [str(item["image"]) for item in (*train, *held_out)]
        number = {os.path.abspath(path): i for i, path in enumerate(real)}
        sources = [[os.path.abspath(generated / s) for s in several(row.get("sources", ""))] for row in samples]
        own = [tuple(number[path] for path in paths if path in number) for paths in sources]
        # Samples without source are independent of each other.
        groups = [row.get("sources") or f"\0{i}" for i, row in enumerate(samples)]
        check = self.reference.check(sample_features, own, groups)
        table = [_line(i, name_in(generated, row["image"]), row, check, real) for i, row in enumerate(samples)]
        report = {
            "verdict": check.verdict,
            "sensitivity": self._sensitivity(train),
            "spaces": {space: self._describe(space, check) for space in SPACES},
            # Play no part in the verdict.
            "own_sources": {
                "samples_with_known_source": sum(map(bool, own)),
                "samples_with_unknown_source": sum(bool(s) and not o for s, o in zip(sources, own, strict=True)),
                "nearest_is_own_source": {n: int(s.nearest_is_own_source.sum()) for n, s in check.spaces.items()},
                "copies_source": int(check.copies_source.sum()),
            },
            "link": self._link(
                _patients(train, train_features), _patients(held_out, held_out_features), sample_features, own, groups
            ),
            "images": {"generated": len(samples), "training": len(train), "held_out": len(held_out)},
            "held_out_copies_of_training": [[real[len(train) + i], real[j]] for i, j in self.reference.leaks],
            "unreadable": unreadable,
            "settings": self.settings,
            "provenance": provenance(torch.device(self.device)),
        }
        self._write(report, check, table, [row["image"] for row in samples])
        self._log(report)
        logger.info("%d images checked in %s: %s", len(samples), elapsed(), self.folder)
        if lost := sum(map(len, unreadable.values())):
            where = self.folder / REPORT_NAME
            raise DatasetError(
                f"{counted(lost, 'file')} could not be read and are listed in {where}; all others are checked"
            )
        return report

    def _write(self, report: Row, check: CopyCheck, table: Sequence[Row], images: Sequence[str]) -> None:
        order = np.argsort(np.min([check.spaces[space].tail_p_value for space in SPACES], axis=0), kind="stable")
        order = order[np.argsort(~check.is_flagged[order], kind="stable")]  # flagged first
        write_rows(self.folder / TABLE_NAME, table)
        write_rows(self.folder / FLAGGED_NAME, [table[i] for i in order if check.is_flagged[i]], list(table[0]))
        draw_distances(self.shared_folder / PLOT_NAME, self.reference, check)
        shown = order[: self.num_examples]
        self._draw_suspects([images[i] for i in shown], [table[i] for i in shown])
        write_json(self.folder / REPORT_NAME, report)
        found = summary(report)
        write_report(self.shared_folder, found, markdown(found), SUMMARY_NAMES)

    def _read(
        self, name: str, items: Sequence[Mapping[str, Any]], unreadable: dict[str, list[tuple[str, str]]]
    ) -> tuple[list[Mapping[str, Any]], CopyFeatures]:
        """The readable items and their features."""
        logger.info("%s images: %d", name, len(items))
        found = self.features.of_files([str(item["image"]) for item in items])
        unreadable[name] = found.problems
        return [items[i] for i in found.indices], self.network.unpack(found.features)

    def _link(
        self,
        train: PatientImages,
        held_out: PatientImages,
        samples: CopyFeatures,
        own: Sequence[tuple[int, ...]],
        groups: Sequence[str],
    ) -> Row | None:
        """What `LinkCheck` finds, and its plot; None where too few patients have several images."""
        if not LinkCheck.can(train, held_out):
            return None
        check = LinkCheck(train, held_out, self.num_neighbours, self.false_flag_rate)
        found = check.run(samples, own, groups)
        draw_links(self.shared_folder / LINK_NAME, check)
        return found

    def _sensitivity(self, train: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
        """How many altered copies of training images are flagged and traced to the right image."""
        count = min(self.num_controls, len(train))
        if not count:
            return None
        chosen = np.random.default_rng(self.seed).choice(len(train), count, replace=False).tolist()

        def batches() -> Iterator[Tensor]:
            for start in range(0, count, self.batch_size):
                numbers = chosen[start : start + self.batch_size]
                images = [load_square(train[i]["image"], self.image_size) for i in numbers]
                seeds = [derive_seed(self.seed, i) for i in numbers]
                yield torch.stack([altered_copy(image, seed) for image, seed in zip(images, seeds, strict=True)])

        logger.info("altered copies of training images, to see whether they are found: %d", count)
        check = self.reference.check(self.network.unpack(self.features.of_batches(batches())))
        is_right = np.any([check.spaces[space].nearest == np.array(chosen) for space in SPACES], axis=0)
        return {"copies": count, "found": int((check.is_flagged & is_right).sum())}

    def _describe(self, space: str, check: CopyCheck) -> Row:
        held_out, compared = self.reference.held_out[space], check.comparison[space]
        names = "probability_sample_is_nearer", "p_value"
        return {
            "flagged": int(check.spaces[space].is_flagged.sum()),
            "ratio_threshold": held_out.threshold,
            "held_out": len(held_out.sorted),
            "smallest_p_value": 1 / (len(held_out.sorted) + 1),
            "compared_with_held_out": {key: dict(zip(names, pair, strict=True)) for key, pair in compared.items()},
        }

    def _draw_suspects(self, samples: Sequence[str], lines: Sequence[Row]) -> None:
        """Samples beside the training images that they may have copied, pictures of patients; the worst first."""
        rows, captions = [], []
        for sample, line in zip(samples, lines, strict=True):
            neighbours = (line[f"{space}_nearest"] for space in SPACES)
            rows.append([load_square(path, self.image_size) for path in (sample, *neighbours)])
            state = "COPY" if line["copy"] == "yes" else "flagged" if line["flagged"] == "yes" else "not flagged"
            figures = (f"{s} {float(line[f'{s}_distance']):.3g} (p {float(line[f'{s}_p_value']):.2g})" for s in SPACES)
            captions.append(f"{state}: {', '.join(figures)}; {line['image']}")
        titles = ["generated", *(f"nearest by {space}" for space in SPACES)]
        scale = min(1.0, SHEET_CELL / self.image_size)
        save_contact_sheet(rows, self.folder / SHEET_NAME, titles, captions, scale)

    def _log(self, report: Row) -> None:
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
        logger.info("%s", _link_text(report).partition("\n")[0])
        logger.info("%s shows real patients: do not share %s with the generated images", SHEET_NAME, self.folder)


def altered_copy(image: Tensor, seed: int) -> Tensor:
    """Move an image [1, H, W] in [0, 1] a little, blur it, change its contrast, add noise, as a generator might."""
    generator = np.random.default_rng(seed)
    height, width = image.shape[1:]
    margin = round(MAX_CONTROL_SHIFT * min(height, width))
    top, left = generator.integers(2 * margin + 1, size=2)
    pixels = np.pad(image[0].numpy(), margin, mode="edge")[top : top + height, left : left + width]
    pixels = gaussian_filter(pixels, CONTROL_BLUR * min(height, width), mode="nearest")
    pixels = (pixels - 0.5) * generator.uniform(*CONTROL_CONTRAST) + 0.5
    pixels = pixels + CONTROL_NOISE * generator.standard_normal(pixels.shape)
    return torch.from_numpy(pixels.clip(0, 1).astype(np.float32))[None]


# ---- what may be shared ----------------------------------------------------------------------------------------------


def draw_distances(path: str | Path, reference: CopyReference, check: CopyCheck) -> None:
    """Histograms of distances and ratios of samples and held-out images, which show nobody."""
    with plot_file(path, panels=2 * len(SPACES), columns=2) as panels:
        for space, left, right in zip(SPACES, panels[::2], panels[1::2], strict=True):
            held_out, mine = reference.held_out[space], check.spaces[space]
            distances = {"held out": reference.held_out_distance[space], "generated": mine.distance}
            ratios = {"held out": held_out.sorted, "generated": mine.ratio}
            draw_shares(left, distances, f"{space}: distance to the nearest training image", is_first_grey=True)
            draw_shares(right, ratios, f"{space}: ratio, flagged below the line", is_first_grey=True)
            if held_out.threshold is not None:
                right.axvline(held_out.threshold, color=COLOURS[1])
            left.legend()


def summary(report: Row) -> Row:
    """The figures of a report of `PrivacyCheck` without a name or picture of anybody; lists of files become lengths."""
    return {
        "settings": {key: value for key, value in report["settings"].items() if key not in PRIVATE_SETTINGS},
        "provenance": report["provenance"],
        **{key: report[key] for key in ("verdict", "sensitivity", "images", "spaces", "own_sources", "link")},
        "num_held_out_copies_of_training": len(report["held_out_copies_of_training"]),
        "num_unreadable": {name: len(problems) for name, problems in report["unreadable"].items()},
    }


def markdown(report: Row) -> str:
    """A summary's verdict as a sentence and a table: a row per space that images were compared in."""
    images, sensitivity, lines = report["images"], report["sensitivity"], []
    for name, space in report["spaces"].items():
        compared = (
            f"{measure}: {100 * found['probability_sample_is_nearer']:.0f} % (p = {found['p_value']:.2g})"
            for measure, found in space["compared_with_held_out"].items()
        )
        threshold = "none" if space["ratio_threshold"] is None else f"{space['ratio_threshold']:.3f}"
        lines.append([name, str(space["flagged"]), threshold, "; ".join(compared)])
    headings = ["space", "flagged", "ratio below which it is flagged"]
    table = markdown_table([*headings, "sample nearer to training than a held-out image (p)"], lines)
    found = "%(found)d of %(copies)d altered copies of training images are found.\n"
    return (
        f"{report['verdict']['text']}\n\n{table}\n"
        f"{images['generated']} generated images against {images['training']} training images, calibrated on "
        f"{images['held_out']} held-out ones; 50 % is what new patients have.\n"
        f"{found % sensitivity if sensitivity else ''}"
        f"Held-out images that are training images: {report['num_held_out_copies_of_training']}.\n\n"
        f"{_link_text(report)}"
    )


def _link_text(report: Row) -> str:
    if "link" not in report:  # as 0.1 wrote it
        return ""
    if report["link"] is None:
        return "Whether samples can be linked to patients was not looked at: too few have several images.\n"
    return link_markdown(report["link"])


def _line(i: int, name: str, row: Mapping[str, str], check: CopyCheck, real: Sequence[str]) -> Row:
    """One line of privacy_per_image.csv; the name of the generated image is as in the manifest."""

    def yes(value: Any) -> str:
        return "yes" if value else "no"

    masks = {"flagged": check.is_flagged, "copy": check.is_copy, "copies_source": check.copies_source}
    line: Row = {"image": name, **{column: row.get(column, "") for column in ("strategy", "sources")}}
    line |= {column: yes(mask[i]) for column, mask in masks.items()}
    for space, found in check.spaces.items():
        line[f"{space}_nearest"] = real[found.nearest[i]]
        line[f"{space}_nearest_is_own_source"] = yes(found.nearest_is_own_source[i])
        for column in ("distance", "ratio", "p_value", "tail_p_value", "source_distance", "source_p_value"):
            value = float(getattr(found, column)[i])
            line[f"{space}_{column}"] = "" if math.isnan(value) else f"{value:.6g}"
    return line


def _patients(items: Sequence[Mapping[str, Any]], features: CopyFeatures) -> PatientImages:
    patients = [(item.get("source"), item["patient_id"]) for item in items]
    return PatientImages(features, patients, [item.get("source") or "unknown" for item in items])
