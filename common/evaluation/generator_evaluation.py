"""Measure the generator on held-out radiographs: fidelity, coverage and diversity, beside real images and the codec."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..data.transforms import load_square
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.token_sampler import TokenSampler
from ..errors import UserError
from ..files import atomic_path
from ..fingerprint import network_sha256
from ..io.contact_sheet import save_contact_sheet
from ..io.image_writer import write_png
from ..metrics import MS_SSIM_MIN_SIZE, ms_ssim
from ..pipelines.folder_generation import FolderGeneration
from ..pipelines.inputs import read_generated
from ..pipelines.source_table import SourceTable
from ..pipelines.strategies import Prior, Variation
from ..provenance import provenance
from .image_features import FeatureExtractor, ImageFeatures
from .image_quality import ImageQuality, split_halves

_logger = logging.getLogger(__name__)

SHEET_ROWS = 8


class GeneratorEvaluationError(UserError, ValueError):
    """The knobs of an evaluation do not allow it."""


class GeneratorEvaluator:
    """Generate from held-out sources and from the prior, and compare with the held-out images.

    Rows of the table, each against the real images of the split:

    - `reconstruction`: through the codec alone, the best that latents allow;
    - `variation`: one image per source;
    - `prior`: as many images without source;
    - `real`: one half of the real images against the other, the floor. FD depends on the number of images, so next to
      every FD stands the one of the first half of the real images against as many fakes, of the second half's sources:
      that one compares with the floor.

    Diversity is MS-SSIM between variations of one source (lower is more diverse), beside MS-SSIM between sources and
    their reconstructions, and between pairs of different real images.

    Writes into output_dir: metrics.json, table.md, contact_sheet.png (which shows the sources), and the images.

    Args:
        sources: encodes the held-out images.
        sampler: of the images.
        token_sampler: of the prior.
        extractors: of the features.
        quality: which metrics, with what seed.
        output_dir: one folder is one evaluation; a killed one goes on.
        num_diverse_sources: sources whose variations are compared with each other.
        num_diverse: variations of each.
        batch_size: images at a time.
        seed: of the samples.
        device: of the features.

    Raises:
        GeneratorEvaluationError: images too small for MS-SSIM, or too few variations to compare.
    """

    def __init__(
        self,
        sources: Callable[[], SourceTable],
        sampler: ImageSampler,
        token_sampler: Callable[[], TokenSampler],
        extractors: Sequence[FeatureExtractor | None],
        quality: ImageQuality,
        output_dir: str,
        num_diverse_sources: int,
        num_diverse: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if sampler.image_size < MS_SSIM_MIN_SIZE:
            raise GeneratorEvaluationError(
                f"image_size: expected at least {MS_SSIM_MIN_SIZE} for MS-SSIM, found {sampler.image_size}"
            )
        if num_diverse < 2 or num_diverse_sources < 2:
            raise GeneratorEvaluationError(
                f"num_diverse and num_diverse_sources: expected at least 2, found {num_diverse}, {num_diverse_sources}"
            )
        self.sources = sources
        self.sampler = sampler
        self.token_sampler = token_sampler
        self.extractors = [extractor for extractor in extractors if extractor is not None]
        self.quality = quality
        self.output_dir = Path(output_dir)
        self.num_diverse_sources = num_diverse_sources
        self.num_diverse = num_diverse
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    def run(self) -> dict[str, Any]:
        """Generate, measure, write; return what metrics.json holds."""
        table = self.sources()
        prior = Prior(self.token_sampler(), len(table), None, self.seed)
        variation = self._generate("variation", Variation(table, 1, self.seed))  # first: refuses a folder of others
        folders = {
            "reconstruction": self._reconstruct(table),
            "variation": variation,
            "prior": self._generate("prior", prior),
        }
        step = max(1, len(table) // self.num_diverse_sources)
        chosen = table.subset(range(0, len(table), step)[: self.num_diverse_sources])
        diverse = self._generate("diversity", Variation(chosen, self.num_diverse, self.seed))
        report = {
            "num_real": len(table),
            "sampler": {
                "method": self.sampler.sampler.method,
                "num_inference_steps": len(self.sampler.sampler.timesteps),
                "guidance_scale": self.sampler.sampler.guidance_scale,
                "seed": self.seed,
            },
            "weights_sha256": network_sha256(self.sampler.denoiser),
            "prior_sha256": network_sha256(prior.token_sampler.prior),
            "features": {extractor.name: self._compare(extractor, table, folders) for extractor in self.extractors},
            "ms_ssim": self._diversity(table, folders["reconstruction"], chosen, diverse),
            "provenance": provenance(self.device),
        }
        self._write(report)
        self._sheet(table, folders)
        return report

    # ---- images ------------------------------------------------------------------------------------------------------

    def _generate(self, name: str, strategy: Variation | Prior) -> list[Path]:
        folder = self.output_dir / name
        generation = FolderGeneration(strategy, self.sampler, str(folder), self.batch_size, sheet_images=8)
        return [folder / image for image in sorted(row["image"] for row in generation.run())]

    @torch.inference_mode()
    def _reconstruct(self, table: SourceTable) -> list[Path]:
        folder = self.output_dir / "reconstruction"
        paths = [folder / f"{number:06d}.png" for number in range(len(table))]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        codec, device = self.sampler.codec, self.sampler.device
        for start in tqdm(range(0, len(missing), self.batch_size), desc="reconstructing", unit="batch"):
            numbers = missing[start : start + self.batch_size]
            images = codec(self._sources(table.subset(numbers)).to(device)).float().cpu()
            for number, image in zip(numbers, images, strict=True):
                write_png(image, paths[number])
        return paths

    # ---- figures -----------------------------------------------------------------------------------------------------

    def _compare(self, extractor: FeatureExtractor, table: SourceTable, folders: dict[str, list[Path]]) -> dict:
        encode = ImageFeatures(
            extractor, self.output_dir / "features", self.sampler.image_size, self.batch_size, self.device
        )
        real = _features(encode, table.paths)
        first, second = split_halves(table.patient_ids, self.seed)
        found: dict[str, Any] = {"real": {"halves": self.quality.metrics(real[first], real[second])}}
        for name, paths in folders.items():
            fake = _features(encode, paths)
            found[name] = {
                "all": self.quality.metrics(real, fake),
                "fd_ci": list(self.quality.interval(real, fake)),
                "halves": self.quality.metrics(real[first], fake[second]),
            }
        floor = found["real"]["halves"]["fd"]
        for name in folders:
            found[name]["fd_over_floor"] = found[name]["halves"]["fd"] / floor
        return found

    def _diversity(
        self, table: SourceTable, reconstructions: list[Path], chosen: SourceTable, diverse: list[Path]
    ) -> dict[str, Any]:
        """MS-SSIM: variations of one source, sources and reconstructions, variations and source, different images."""
        samples = self._read(diverse).unflatten(0, (len(chosen), self.num_diverse))
        sources = self._sources(chosen)
        within = [ms_ssim(samples[:, a], samples[:, b]) for a, b in combinations(range(self.num_diverse), 2)]
        to_source = [ms_ssim(samples[:, a], sources) for a in range(self.num_diverse)]
        all_paths = dict(zip(table.paths, reconstructions, strict=True))
        reconstructed = ms_ssim(self._read([all_paths[path] for path in chosen.paths]), sources)
        return {
            "num_sources": len(chosen),
            "num_variations": self.num_diverse,
            "between_variations_of_one_source": _mean_sd(torch.cat(within)),
            "variation_to_its_source": _mean_sd(torch.cat(to_source)),
            "reconstruction_to_its_source": _mean_sd(reconstructed),
            "between_different_real_images": _mean_sd(ms_ssim(sources, sources.roll(1, dims=0))),
        }

    @staticmethod
    def _read(paths: Sequence[Path]) -> Tensor:
        return torch.stack([read_generated(path) for path in paths])

    def _sources(self, table: SourceTable) -> Tensor:
        return torch.stack([load_square(path, self.sampler.image_size) for path in table.paths])

    # ---- files -------------------------------------------------------------------------------------------------------

    def _write(self, report: dict[str, Any]) -> None:
        with atomic_path(self.output_dir / "metrics.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
        with atomic_path(self.output_dir / "table.md") as temporary:
            temporary.write_text(markdown(report), encoding="utf-8")
        _logger.info("figures in %s:\n%s", self.output_dir / "metrics.json", markdown(report))

    def _sheet(self, table: SourceTable, folders: dict[str, list[Path]]) -> None:
        step = max(1, len(table) // SHEET_ROWS)
        shown = list(range(0, len(table), step))[:SHEET_ROWS]
        sources = self._sources(table.subset(shown))
        columns = [list(self._read([paths[number] for number in shown])) for paths in folders.values()]
        rows = [list(row) for row in zip(sources, *columns, strict=True)]
        titles = ["real (held out)", "reconstruction", "variation", "prior (no source)"]
        save_contact_sheet(rows, self.output_dir / "contact_sheet.png", titles)
        _logger.info("contact_sheet.png shows real patients: keep it where the data set is kept")


def _features(encode: ImageFeatures, paths: Sequence[str | Path]) -> NDArray[np.float32]:
    found = encode.of_files(paths)
    if found.problems:
        path, reason = found.problems[0]
        raise GeneratorEvaluationError(
            f"{len(found.problems)} of {len(paths)} images cannot be compared, first {path}: {reason}; expected all. "
            "If the generator made them, look at the contact sheets: it is not trained well enough"
        )
    return found.features


def markdown(report: dict[str, Any]) -> str:
    """The tables of metrics.json."""
    columns = ["features", "images", "FD (n all)", "FD (halves)", "× floor", "KID × 1000", "precision", "recall"]
    columns += ["density", "coverage"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for features, rows in report["features"].items():
        for name, row in rows.items():
            values = row.get("all", row["halves"])
            whole = "" if "all" not in row else f"{row['all']['fd']:.1f} [{row['fd_ci'][0]:.1f}, {row['fd_ci'][1]:.1f}]"
            ratio = f"{row['fd_over_floor']:.2f}" if "fd_over_floor" in row else "1"
            cells = [features, name, whole, f"{row['halves']['fd']:.1f}", ratio, f"{1000 * values['kid']:.2f}"]
            cells += [f"{values[key]:.3f}" for key in ("precision", "recall", "density", "coverage")]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| MS-SSIM | mean ± sd |", "|---|---:|"]
    for name, value in report["ms_ssim"].items():
        if isinstance(value, dict):
            lines.append(f"| {name.replace('_', ' ')} | {value['mean']:.3f} ± {value['sd']:.3f} |")
    return "\n".join(lines) + "\n"


def _mean_sd(values: Tensor) -> dict[str, float]:
    numbers = np.asarray(values.double())
    return {"mean": float(numbers.mean()), "sd": float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0}
