"""Measure the generator on held-out radiographs: fidelity, coverage and diversity, beside real images and the codec."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.transforms import load_square
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.token_sampler import TokenSampler
from ..distributed import is_rank_zero, of_all, share
from ..errors import RunError, SettingsError
from ..fingerprint import network_sha256
from ..io.contact_sheet import save_contact_sheet
from ..io.image_writer import write_png
from ..metrics import MS_SSIM_MIN_SIZE, ms_ssim
from ..pipelines.folder_generation import FolderGeneration
from ..pipelines.inputs import read_generated
from ..pipelines.source_table import SourceTable
from ..pipelines.strategies import Prior, Variation
from ..progress import ProgressBar, stopwatch
from ..provenance import provenance
from .image_features import FeatureExtractor, ImageFeatures
from .image_quality import NUM_LEFT_OUT, SHARES, ImageQuality, cells, headings, split_halves
from .report import Row, cell, markdown_table, mean_sd, write_report

_logger = logging.getLogger(__name__)

SHEET_ROWS = 8
HANGS = 0.1  # of a ratio: that a distance may change by without the images that it hangs on most


@dataclass
class GeneratorEvaluator:
    """Generate from held-out sources and from the prior, and compare with the held-out images.

    Rows of the table, each against the real images of the split:

    - `reconstruction`: through the codec alone, the best that latents allow;
    - `variation`: one image per source;
    - `prior`: as many images without source;
    - `real`: one half of the real images against the other, the floor. FD depends on the number of images, so beside
      every row stands how many times the floor is the FD of the first half of the real images to as many fakes, of the
      second half's sources; and the same without the images that either distance hangs on. Precision to coverage are
      of these halves, too.

    Diversity is MS-SSIM between variations of one source (lower is more diverse), beside MS-SSIM between sources and
    their reconstructions, and between pairs of different real images.

    Writes into output_dir: metrics.json, table.md, contact_sheet.png (which shows the sources), and the images. The
    processes of a torchrun job share the images and their features; the first alone compares them and writes.

    Raises:
        SettingsError: images too small for MS-SSIM, or too few variations to compare.
    """

    sources: Callable[[], SourceTable]  # encodes the held-out images
    sampler: ImageSampler  # of the images
    token_sampler: TokenSampler  # of the prior
    extractors: Sequence[FeatureExtractor | None]  # of the features
    quality: ImageQuality  # which metrics, with what seed
    output_dir: str  # one folder is one evaluation; a killed one goes on
    num_diverse_sources: int  # sources whose variations are compared with each other
    num_diverse: int  # variations of each
    batch_size: int  # images at a time
    seed: int  # of the samples
    device: torch.device  # of the features

    def __post_init__(self) -> None:
        if self.sampler.image_size < MS_SSIM_MIN_SIZE:
            raise SettingsError(f"image_size: found {self.sampler.image_size}; MS-SSIM needs {MS_SSIM_MIN_SIZE} px")
        if min(self.num_diverse, self.num_diverse_sources) < 2:
            found = self.num_diverse, self.num_diverse_sources
            raise SettingsError(f"num_diverse and num_diverse_sources: expected at least 2, found {found}")

    def run(self) -> Row:
        """Generate, measure, write; return what metrics.json holds, nothing in the other processes of a job.

        Raises:
            SettingsError: too few sources for the metrics; nothing is generated then.
            RunError: generated images that cannot be compared.
        """
        elapsed, table = stopwatch(), self.sources()
        halves = split_halves(table.patient_ids, self.seed)
        self.quality.check_counts(len(halves[0]), len(halves[1]))
        prior = Prior(self.token_sampler, len(table), None, self.seed)
        variation = self._generate("variation", Variation(table, 1, self.seed))  # first: refuses a folder of others
        folders = {
            "reconstruction": self._reconstruct(table),
            "variation": variation,
            "prior": self._generate("prior", prior),
        }
        chosen = table.subset(_spread(len(table), self.num_diverse_sources))
        diverse = self._generate("diversity", Variation(chosen, self.num_diverse, self.seed))
        features = {each.name: self._features(each, table, folders) for each in self.extractors if each}
        if not is_rank_zero():
            return {}
        report = {
            "num_real": len(table),
            "num_left_out": self.quality.num_left_out,
            "sampler": {
                "method": self.sampler.sampler.method,
                "num_inference_steps": len(self.sampler.sampler.timesteps),
                "guidance_scale": self.sampler.sampler.guidance_scale,
                "seed": self.seed,
            },
            "weights_sha256": network_sha256(self.sampler.denoiser),
            "prior_sha256": network_sha256(self.token_sampler.prior),
            "features": {name: self._compare(found, halves) for name, found in features.items()},
            "ms_ssim": self._diversity(table, folders["reconstruction"], chosen, diverse),
            "provenance": provenance(self.device),
        }
        write_report(self.output_dir, report, markdown(report), ("metrics.json", "table.md"))
        self._sheet(table, folders)
        _logger.info("%d images compared in %s: %s\n%s", len(table), elapsed(), self.output_dir, markdown(report))
        return report

    # ---- images ------------------------------------------------------------------------------------------------------

    def _generate(self, name: str, strategy: Variation | Prior) -> list[Path]:
        folder = Path(self.output_dir) / name
        generation = FolderGeneration(strategy, self.sampler, str(folder), self.batch_size, sheet_images=8)
        rows = of_all(generation.run())[0]  # the first process has them
        return [folder / image for image in sorted(row["image"] for row in rows)]

    @torch.inference_mode()
    def _reconstruct(self, table: SourceTable) -> list[Path]:
        paths = [Path(self.output_dir) / "reconstruction" / f"{number:06d}.png" for number in range(len(table))]
        missing = of_all([n for n, path in enumerate(paths) if not path.is_file()])[0]  # before anybody writes
        codec, device = self.sampler.codec, self.sampler.device
        batches = [missing[start : start + self.batch_size] for start in range(0, len(missing), self.batch_size)]
        for numbers in ProgressBar(share(batches), desc="reconstructing", unit="batch"):
            images = codec(self._real([table.paths[number] for number in numbers]).to(device)).float().cpu()
            for number, image in zip(numbers, images, strict=True):
                write_png(image, paths[number])
        return paths

    def _real(self, paths: Sequence[str]) -> Tensor:
        return torch.stack([load_square(path, self.sampler.image_size) for path in paths])

    # ---- figures -----------------------------------------------------------------------------------------------------

    def _features(
        self, extractor: FeatureExtractor, table: SourceTable, folders: Mapping[str, Sequence[Path]]
    ) -> dict[str, NDArray[np.float32]]:
        """Of the real images, as "real", and of all folders."""
        folder, size = Path(self.output_dir) / "features", self.sampler.image_size
        encode = ImageFeatures(extractor, folder, size, self.batch_size, self.device)
        paths: dict[str, Sequence[str | Path]] = {"real": table.paths, **folders}
        return {name: _features(encode, each) for name, each in paths.items()}

    def _compare(self, features: Mapping[str, NDArray[np.float32]], halves: tuple[list[int], list[int]]) -> Row:
        real, (first, second) = features["real"], halves
        floor = self.quality.metrics(real[first], real[second])
        found: Row = {"real": {"halves": floor}}
        for name, fake in features.items():
            if name == "real":
                continue
            by_halves = self.quality.metrics(real[first], fake[second])
            found[name] = {
                "all": {**self.quality.metrics(real, fake), **self.quality.intervals(real, fake)},
                "halves": by_halves,
                **{f"{figure}_over_floor": by_halves[figure] / floor[figure] for figure in ("fd", "fd_without")},
            }
        return found

    def _diversity(
        self, table: SourceTable, reconstructions: Sequence[Path], chosen: SourceTable, diverse: Sequence[Path]
    ) -> Row:
        """MS-SSIM: variations of one source, sources and reconstructions, variations and source, different images."""
        samples, sources = _generated(diverse).unflatten(0, (len(chosen), self.num_diverse)), self._real(chosen.paths)
        pairs = combinations(range(self.num_diverse), 2)
        path_of = dict(zip(table.paths, reconstructions, strict=True))
        found = {
            "between_variations_of_one_source": [ms_ssim(samples[:, a], samples[:, b]) for a, b in pairs],
            "variation_to_its_source": [ms_ssim(samples[:, a], sources) for a in range(self.num_diverse)],
            "reconstruction_to_its_source": [ms_ssim(_generated([path_of[path] for path in chosen.paths]), sources)],
            "between_different_real_images": [ms_ssim(sources, sources.roll(1, dims=0))],
        }
        measured = {name: mean_sd(torch.cat(values).tolist()) for name, values in found.items()}
        return {"num_sources": len(chosen), "num_variations": self.num_diverse, **measured}

    def _sheet(self, table: SourceTable, folders: Mapping[str, Sequence[Path]]) -> None:
        shown = _spread(len(table), SHEET_ROWS)
        columns = [list(_generated([paths[number] for number in shown])) for paths in folders.values()]
        rows = zip(self._real([table.paths[number] for number in shown]), *columns, strict=True)
        titles = ["real (held out)", "reconstruction", "variation", "prior (no source)"]
        captions = [Path(table.paths[number]).name for number in shown]
        save_contact_sheet([list(row) for row in rows], Path(self.output_dir) / "contact_sheet.png", titles, captions)
        _logger.info("contact_sheet.png shows real patients: keep it where the data set is kept")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of metrics.json, and before them what they say."""
    ratios, lines, left_out = ("fd_over_floor", "fd_without_over_floor"), [], report.get("num_left_out", NUM_LEFT_OUT)
    for features, rows in report["features"].items():
        for name, row in rows.items():
            over = [cell(row.get(ratio, 1 if name == "real" else None), 2, missing="–") for ratio in ratios]
            shares = {share: row["halves"][share] for share in SHARES}  # they hang on n, as the ratios do
            figures = {"fd_ci": row.get("fd_ci", ()), **row.get("all", row["halves"]), **shares}  # fd_ci: of 0.1
            lines.append([features, f"{name} ({figures['num_fake']})", *over, *cells(figures)])
    titles = ["features", "images", "× floor", f"× floor without {left_out}", *headings(left_out)]
    similarity = {name: value for name, value in report["ms_ssim"].items() if isinstance(value, dict)}
    pairs = [[name.replace("_", " "), cell(value, 3)] for name, value in similarity.items()]
    measured = {name: rows for name, rows in report["features"].items() if ratios[1] in rows["variation"]}
    said = "".join(conclusion(name, rows, left_out) for name, rows in measured.items())
    tables = markdown_table(titles, lines, "llr"), markdown_table(["MS-SSIM", "mean ± sd"], pairs)
    return said + "\n" * bool(said) + "\n".join(tables)


def conclusion(features: str, rows: Mapping[str, Row], num_left_out: int) -> str:
    """One sentence: how far variations are, by FD, and whether that hangs on a few images."""
    whole, without = (rows["variation"][f"{name}_over_floor"] for name in ("fd", "fd_without"))
    advice = "so go by the second and by MMD" if abs(whole / without - 1) > HANGS else "so it does not hang on them"
    return (
        f"By {features}, variations are {whole:.2f} times as far from real images as those from each other, and "
        f"{without:.2f} times without the {num_left_out} images of largest leverage on each distance, {advice}.\n"
    )


def _spread(count: int, wanted: int) -> range:
    """Rows spread over a table."""
    return range(0, count, max(1, count // wanted))[:wanted]


def _generated(paths: Sequence[Path]) -> Tensor:
    return torch.stack([read_generated(path) for path in paths])


def _features(encode: ImageFeatures, paths: Sequence[str | Path]) -> NDArray[np.float32]:
    found = encode.of_files(paths)
    if found.problems:
        path, reason = found.problems[0]
        raise RunError(
            f"{len(found.problems)} of {len(paths)} images cannot be compared, first {path}: {reason}; expected all. "
            "If the generator made them, look at the contact sheets: it is not trained well enough"
        )
    return found.features
