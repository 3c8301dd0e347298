"""What may be shared of a privacy check: its verdict and figures, without a name or picture of anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_path, write_json

STEM = "privacy_summary"
PRIVATE_SETTINGS = ("generated_dir",)  # a path of one machine


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report of `PrivacyCheck`; lists of files become their lengths."""
    return {
        "settings": {key: value for key, value in report["settings"].items() if key not in PRIVATE_SETTINGS},
        "provenance": report["provenance"],
        **{key: report[key] for key in ("verdict", "sensitivity", "images", "spaces", "own_sources")},
        "num_held_out_copies_of_training": len(report["held_out_copies_of_training"]),
        "num_unreadable": {name: len(problems) for name, problems in report["unreadable"].items()},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The verdict as a sentence and a table: a row per space that images were compared in."""
    images, sensitivity = report["images"], report["sensitivity"]
    lines = [report["verdict"]["text"], ""]
    lines += [
        "| space | flagged | ratio below which it is flagged | sample nearer to training than a held-out image (p) |",
        "|---|---:|---:|---:|",
    ]
    for name, space in report["spaces"].items():
        compared = space["compared_with_held_out"]
        cells = [
            f"{measure}: {100 * found['probability_sample_is_nearer']:.0f} % (p = {found['p_value']:.2g})"
            for measure, found in compared.items()
        ]
        threshold = "none" if space["ratio_threshold"] is None else f"{space['ratio_threshold']:.3f}"
        lines.append(f"| {name} | {space['flagged']} | {threshold} | {'; '.join(cells)} |")
    lines.append("")
    lines.append(
        f"{images['generated']} generated images against {images['training']} training images, calibrated on "
        f"{images['held_out']} held-out ones; 50 % is what new patients have."
    )
    if sensitivity:
        lines.append(f"{sensitivity['found']} of {sensitivity['copies']} altered copies of training images are found.")
    lines.append(f"Held-out images that are training images: {report['num_held_out_copies_of_training']}.")
    return "\n".join([*lines, ""])


def write_summary(folder: str | Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write privacy_summary.json and .md, each whole or not at all; return the JSON."""
    folder, found = Path(folder), summary(report)
    write_json(folder / f"{STEM}.json", found)
    with atomic_path(folder / f"{STEM}.md") as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
    return found
