"""Table and plot of a token ablation: mean ± sd over seeds, differences to the CLS token alone paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import atomic_path
from .error_bar_plot import COLOURS, ErrorBarPlot
from .experiment import read_cells, write_experiment_report
from .seed_statistics import by_seed, fixed, mean_sd, paired_difference
from .token_ablation import BASELINES, CLS, CLS_GRID, CLS_REGISTERS, REAL, RECONSTRUCTION, UNCONDITIONAL, Cell

REPORT_STEM = "token_ablation"
LABELS = {
    REAL: "real, of other patients",
    RECONSTRUCTION: "codec reconstruction",
    UNCONDITIONAL: "unconditional",
    CLS: "CLS",
    CLS_REGISTERS: "CLS + registers",
}
MAX_ENCODERS = len(COLOURS) - len(BASELINES)  # beside the baselines in one plot
PANEL = (900, 620)  # px
# key: (heading, decimals)
QUALITY = {
    "num_tokens": ("tokens", 0),
    "val_loss": ("validation loss ↓", 4),
    "dino_fd": ("FD-DINO ↓", 1),
    "dino_fd_over_floor": ("× floor, DINO", 2),
    "inception_fd": ("FD-Inception ↓", 1),
    "inception_fd_over_floor": ("× floor, Inception", 2),
    "dino_precision": ("precision ↑", 2),
    "dino_recall": ("recall ↑", 2),
    "ms_ssim_between_variations": ("MS-SSIM between variations ↓", 3),
}
CLOSENESS = {
    "ms_ssim_to_source": ("MS-SSIM to source", 3),
    "cosine_to_source": ("DINO cosine to source", 3),
    "own_source_nearest_embedding": ("source nearest, DINO", 3),
    "own_source_nearest_pixels": ("source nearest, pixels", 3),
    "copies_source": ("copies source", 3),
    "flagged": ("near-copies of training", 3),
    "num_copies": ("copies of training", 1),
    "nearer_than_held_out_embedding": ("nearer to training, DINO", 2),
    "nearer_than_held_out_pixels": ("nearer to training, pixels", 2),
}
PANELS = ("dino_fd_over_floor", "inception_fd_over_floor", "ms_ssim_between_variations", "cosine_to_source")
NOTES = (
    "Mean ± sd over seeds; a row without ± has one. FD, precision and recall: each half of the held-out images against "
    "the images made from the sources of the other half, both ways; × floor: over that of real halves. MS-SSIM between "
    "variations: of one source, other noise; lower is more diverse. In the row of real images a source, or variation, "
    "is another real image, so it says what unrelated images have.",
    "Source nearest: share of images that are nearer to their source than to any training image, in the judge's "
    "embedding or by small evened-out pictures. Copies source: as near to it in pixels as flagged images are to a "
    "training image. Near-copies of training: share that is flagged by the privacy check, of which at most 1 % is "
    "expected. Nearer to training: probability that an image is nearer to its nearest training image than a held-out "
    "image is to its own; 0.5 is the distance that new patients keep. The sources of the unconditional denoiser, which "
    "never saw a token, are those of the same number: what chance gives. Sources that are training pictures too, "
    "listed under another patient, are left out of these columns.",
)


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write token_ablation.json, .md and .png of all cells that a folder holds, atomically; return the JSON.

    Raises:
        NoResultsError: there are none.
    """
    folder = Path(output_dir)
    found = rows(read_cells(folder, Cell))
    report = write_experiment_report(folder, REPORT_STEM, markdown, device, rows=found)
    with atomic_path(folder / f"{REPORT_STEM}.png") as temporary:
        plot(report["rows"]).save(temporary, format="PNG", optimize=True)
    return report


def rows(cells: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per encoder and variant: `mean_sd` of every figure, by seed, and its paired difference to CLS alone.

    The baselines have no encoder, and neither has the unconditional denoiser. Fewest tokens come first.
    """
    grouped: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for cell, result in cells:
        encoder = "" if cell.variant in (*BASELINES, UNCONDITIONAL) else cell.encoder
        grouped[encoder, cell.variant][cell.seed] = result
    found = []
    for encoder, variant in sorted(grouped, key=lambda key: (key[0], _place(key[1]))):
        results = grouped[encoder, variant]
        row: dict[str, Any] = {"encoder": encoder, "variant": variant, "seeds": sorted(results)}
        row["verdicts"] = {str(seed): result["verdict"] for seed, result in results.items() if "verdict" in result}
        row["figures"] = {key: mean_sd(values.values()) for key, values in _figures(results).items()}
        row["figures_by_seed"] = {key: by_seed(values) for key, values in _figures(results).items()}
        reference = _figures(grouped.get((encoder, CLS), {}))
        if encoder and variant != CLS:
            row["to_cls"] = {
                key: paired_difference(values, reference.get(key, {})) for key, values in _figures(results).items()
            }
        found.append(row)
    return found


def _figures(results: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Figure to seed to number."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for seed, result in results.items():
        for key, value in result.items():
            if isinstance(value, int | float):
                found[key][seed] = float(value)
    return found


def _place(variant: str) -> tuple[int, int]:
    order = list(LABELS)
    return (order.index(variant), 0) if variant in LABELS else (len(order), int(variant.removeprefix(CLS_GRID)))


def label(variant: str) -> str:
    """What tables call a variant."""
    size = variant.removeprefix(CLS_GRID)
    return LABELS.get(variant, f"CLS + {size} × {size}")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables: quality, closeness to sources and training images, differences to CLS alone."""
    found = report["rows"]
    text = _table(found, QUALITY, "figures") + f"\n{NOTES[0]}\n\n" + _table(found, CLOSENESS, "figures")
    text += f"\n{NOTES[1]}\n"
    compared = [row for row in found if "to_cls" in row]
    if compared:
        columns = {key: QUALITY.get(key) or CLOSENESS[key] for key in ("val_loss", *PANELS, "ms_ssim_to_source")}
        text += "\nDifference to the CLS token alone, paired by seed\n\n" + _table(compared, columns, "to_cls", "+")
    return text + f"\n{_budget(report)}\n"


def _budget(report: Mapping[str, Any]) -> str:
    settings, overrides = report["settings"], report["settings"]["overrides"]
    trained = [row for row in report["rows"] if "num_steps" in row["figures"]]
    steps, sizes = ({row["figures"][key]["mean"] for row in trained} for key in ("num_steps", "num_parameters"))
    text = (
        f"Every row trained alike: {' / '.join(f'{number:.0f}' for number in sorted(steps))} steps of "
        f"{overrides['batch_size']} images of {overrides['image_size']} px, "
        f"{min(sizes, default=0):,.0f} to {max(sizes, default=0):,.0f} parameters. "
    )
    return text + (
        f"Sampling: DPM-Solver++(2M), {settings['num_inference_steps']} steps, guidance "
        f"{settings['guidance_scale']:g}. `{report['provenance']['command']}`, {report['provenance']['date'][:10]}."
    )


def _table(
    found: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, int]], kind: str, sign: str = ""
) -> str:
    """Rows by columns, without the columns that no row has."""
    used = {key: value for key, value in columns.items() if any(key in row[kind] for row in found)}
    headings = ["encoder", "conditioning", "seeds", *(heading for heading, _ in used.values())]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in found:
        cells = [row["encoder"], label(row["variant"]), str(len(row["seeds"])) if row["encoder"] else ""]
        if row["variant"] == UNCONDITIONAL:
            cells[2] = str(len(row["seeds"]))
        values = {key: row[kind].get(key) for key in used}
        if values.get("num_tokens"):  # is what it is in every seed
            values["num_tokens"] = {**values["num_tokens"], "sd": None}
        cells += [fixed(values[key], decimals, sign) for key, (_, decimals) in used.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(found: Sequence[Mapping[str, Any]]) -> Image.Image:
    """One panel per figure over the variants, a series per encoder, the baselines as lines; two panels in a row."""
    panels = [
        ErrorBarPlot(*_panel(found, key)).image() for key in PANELS if any(key in row["figures"] for row in found)
    ]
    width, height = PANEL
    sheet = Image.new("RGB", (2 * width, -(-len(panels) // 2) * height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % 2 * width, number // 2 * height))
    return sheet


def _panel(
    found: Sequence[Mapping[str, Any]], key: str
) -> tuple[dict[str, list[tuple[float, float, float | None]]], str, str, str, dict[float, str], tuple[int, int]]:
    """Arguments of `ErrorBarPlot`; its axis doubles, so the variants stand at powers of two."""
    variants = sorted({row["variant"] for row in found if row["variant"] not in BASELINES}, key=_place)
    place = {variant: float(2**number) for number, variant in enumerate(variants)}
    series: dict[str, list[tuple[float, float, float | None]]] = defaultdict(list)
    for row in sorted(found, key=lambda row: row["variant"] in BASELINES):  # an encoder has one colour in all panels
        value = row["figures"].get(key)
        if value is None:
            continue
        if row["variant"] in BASELINES:
            ends = (min(place.values(), default=1.0), max(place.values(), default=1.0))
            series[label(row["variant"])] = [(x, value["mean"], None) for x in dict.fromkeys(ends)]
        else:
            series[row["encoder"] or label(UNCONDITIONAL)].append((place[row["variant"]], value["mean"], value["sd"]))
    heading = (QUALITY.get(key) or CLOSENESS[key])[0].removesuffix(" ↓")
    title = heading.replace("× floor", "FD over that of real halves")
    ticks = {x: label(name).replace("×", "x") for name, x in place.items()}  # which Pillow's font lacks
    return dict(series), "conditioning", title, "", ticks, PANEL
