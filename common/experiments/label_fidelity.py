"""Do generated images keep the label of their source? A judge that was trained on real ones is shown them.

A judge learns from all labelled training images. It then classifies the held-out images as they are, what the codec
alone makes of them, and one variation of each. What it loses from the first to the second is the codec's part, from the
second to the third that of embedding and denoiser: a classifier that is trained on variations learns from labels that
are wrong to that extent. The generator has not seen these patients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.transforms import load_square
from ..evaluation.report import Point, Row, cell, markdown_table, mean_sd, write_error_bar_plot
from ..fingerprint import file_sha256, json_sha256, network_sha256
from ..io.image_writer import write_png
from ..progress import ProgressBar
from .benefit_pool import Recipe, in_blocks
from .benefit_report import TITLES
from .benefit_study import PROBE, BenefitStudy, scores_of
from .benefit_trials import REAL, VARIATION
from .trials import Trials, by_seed, grouped, paired_difference, read_trials, write_experiment_report

STEM = "label_fidelity"
ORIGINAL, RECONSTRUCTION = "original", "reconstruction"
KINDS = (ORIGINAL, RECONSTRUCTION, VARIATION)
LABELS = {ORIGINAL: "real images", RECONSTRUCTION: "what the codec makes of them", VARIATION: "a variation of each"}
FIGURES = ("auc", "accuracy", "same_verdict")


@dataclass(frozen=True)
class Judge:
    """A classifier that knows the real images."""

    classifier: str  # probe or densenet
    seed: int  # of its training; of no effect on the probe


def grid(judges: Sequence[str], seeds: Sequence[int]) -> list[Judge]:
    """All judges; the probe has nothing random and takes the first seed."""
    return [Judge(name, seed) for name in judges for seed in (seeds[:1] if name == PROBE else seeds)]


class LabelFidelity:
    """Trains judges and shows them the held-out images and what the generator makes of them.

    Reconstructions go to the folder to work in, variations to the study's pool.
    """

    def __init__(self, study: BenefitStudy, work_dir: str | Path) -> None:
        self.study = study
        made_with = json_sha256([network_sha256(study.pipe.codec), study.pipe.image_size])[:16]
        self.folder = Path(work_dir) / "reconstructions" / made_with

    def __call__(self, judge: Judge) -> dict[str, Any]:
        """AUC, accuracy and share of unchanged verdicts for each of `KINDS`."""
        study = self.study
        paths = {ORIGINAL: study.test_paths, RECONSTRUCTION: self._reconstructions(), VARIATION: self._variations()}
        shown = [path for kind in KINDS for path in paths[kind]]
        real = study.examples(study.train)
        probabilities, about = study.new_classifier(judge.classifier, shown)(real, [], REAL, judge.seed, 1)
        parts = dict(zip(KINDS, probabilities.reshape(len(KINDS), len(study.test), -1), strict=True))
        verdicts = {kind: part.argmax(1) for kind, part in parts.items()}
        same = {kind: float((verdict == verdicts[ORIGINAL]).mean()) for kind, verdict in verdicts.items()}
        kinds = {k: {**scores_of(part, study.test_labels), "same_verdict": same[k]} for k, part in parts.items()}
        return {**kinds, "num_train": len(real), "num_test": len(study.test), **about}

    def _variations(self) -> list[str]:
        """One of each held-out image, made where it is not there."""
        recipes = [Recipe(VARIATION, (item["image"],), 0, item["label"]) for item in self.study.test]
        self.study.pool.make(in_blocks(recipes))
        return [str(self.study.pool.path(recipe)) for recipe in recipes]

    @torch.inference_mode()
    def _reconstructions(self) -> list[str]:
        """What the codec alone makes of each held-out image."""
        pipe = self.study.pipe
        paths = []
        for source in ProgressBar(self.study.test_paths, desc="reconstructions", unit="image"):
            path = self.folder / f"{file_sha256(source)[:12]}.png"
            if not path.is_file():
                image = load_square(source, pipe.image_size).as_subclass(torch.Tensor)[None].to(pipe.device)
                decoded = pipe.codec.decode(pipe.codec.encode(image))[0].float().cpu()
                write_png(decoded, path, provenance={"codec": self.folder.name})
            paths.append(str(path))
        return paths


# ---- the report ------------------------------------------------------------------------------------------------------


def write_report(output_dir: str | Path, device: torch.device | str) -> dict[str, Any]:
    """Write label_fidelity.json, .md and .png of all judges that a folder holds; return the JSON."""
    trials = read_trials(Path(output_dir) / f"{STEM}.csv", Judge)
    (num_train,) = {figures["num_train"] for _, figures in trials}
    found = rows(trials)
    report = write_experiment_report(output_dir, STEM, markdown, device, rows=found, num_train=num_train)
    series: dict[str, list[Point]] = defaultdict(list)
    for row in found:
        point = (KINDS.index(row["kind"]), row["auc"]["mean"], row["auc"]["sd"])
        series[TITLES[row["classifier"]]].append(point)
    titles = "what a judge trained on real images is shown", "AUC for the label of the source"
    write_error_bar_plot(Path(output_dir) / f"{STEM}.png", series, titles, [LABELS[kind] for kind in KINDS])
    return report


def rows(trials: Trials[Judge]) -> list[Row]:
    """One row per classifier and kind of image: `mean_sd` over seeds, and the AUC's paired difference to real ones."""
    found = {
        (kind, figure): grouped(trials, ("classifier",), f"{kind}.{figure}") for kind in KINDS for figure in FIGURES
    }
    listed = []
    for key in sorted(found[ORIGINAL, "auc"], key=lambda key: list(TITLES).index(key[0])):
        for kind in KINDS:
            aucs = found[kind, "auc"][key]
            row: Row = {"classifier": key[0], "kind": kind}
            row |= {figure: mean_sd(found[kind, figure][key].values()) for figure in FIGURES}
            row["auc_by_seed"] = by_seed(aucs)
            if kind != ORIGINAL:
                row["loss"] = paired_difference(aucs, found[ORIGINAL, "auc"][key])
            listed.append(row)
    return listed


def markdown(report: Mapping[str, Any]) -> str:
    """The table."""
    settings, lines = report["settings"], []
    for row in report["rows"]:
        loss = f" ({row['loss']['mean']:+.3f})" if "loss" in row else ""
        auc, accuracy, same = (cell(row[figure], 3) for figure in FIGURES)
        lines.append([TITLES[row["classifier"]], LABELS[row["kind"]], auc + loss, accuracy, same])
    return (
        f"Judges trained on all {report['num_train']} labelled training images ({', '.join(settings['classes'])}), on "
        f"{settings['num_test_images']} images of {settings['num_test_patients']} held-out patients; in brackets the "
        "difference to the real images.\n\n"
    ) + markdown_table(["judge", "shown", "AUC", "accuracy", "same verdict as on the real image"], lines, "llr")
