"""Score weights on validation radiographs, to choose among trials, averages and milestones; one row per call.

python scripts/score_weights.py autoencoder RUN/model.pt --name lpips1 --config "[train.yaml,recipe_train.yaml]" \
    --dataset_dir DIR --output_dir OUT --dino_source bundles/cxr_dino_latent_diffusion/models/dinov2_vits14
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from common.amp import autocast
from common.command_line import run_command
from common.data.datalists import radiograph_items
from common.data.latent_store import LatentStore
from common.data.mask_transforms import PadResized
from common.data.transforms import load_square
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.diffusion.samplers import Sampler
from common.evaluation.distribution_metrics import frechet_distance, precision_recall_density_coverage
from common.evaluation.image_features import ImageFeatures, build_extractor
from common.evaluation.image_quality import split_halves
from common.evaluation.report import read_rows, write_rows
from common.io import read_radiograph
from common.io.contact_sheet import save_contact_sheet
from common.metrics import psnr
from common.networks.lpips import LPIPS
from common.networks.weights import load_weights
from common.seeding import sample_seed
from common.spectrum import band_power, line_power

BATCH = 16
SHEET_COLUMNS = 8
TABLE_NAME = "scores.csv"


def score_weights(
    kind: str,
    weights: str,
    *,
    name: str,
    config: str | Sequence[str],
    dataset_dir: str,
    output_dir: str,
    store: str | None = None,
    num_images: int = 256,
    num_inference_steps: int = 20,
    guidance_scale: float = 1.5,
    dino_source: str | None = None,
    inception_path: str | None = None,
    network_id: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Add a row to OUT/scores.csv and draw OUT/NAME.png.

    Real images are the validation split, dealt by patient into two halves. What is scored comes from the first half
    (or, for pixel_denoiser, from noise) and is compared with the second; so are the images of the first half
    themselves, which gives the floor.

    Args:
        kind: autoencoder, latent_denoiser or pixel_denoiser.
        weights: file of the network.
        name: of the row and the sheet.
        config: YAML files of the training, later ones override; bundle_root is the first one's bundle.
        dataset_dir: as of the training.
        output_dir: of table and sheets.
        store: of latents and tokens; for latent_denoiser.
        num_images: of each half at most; for pixel_denoiser drawn samples.
        num_inference_steps: of the sampler.
        guidance_scale: of the sampler of latents.
        dino_source: DINO encoder of the Fréchet distance; None leaves it out.
        inception_path: Inception of the Fréchet distance; None leaves it out.
        network_id: where the config says what the network is; None for the usual place.
        seed: of halves and samples.
        device: of the networks.
    """
    files = [config] if isinstance(config, str) else list(config)
    parser = ConfigParser()
    parser.read_config(files)
    parser["bundle_root"] = str(Path(files[0]).resolve().parents[1])
    parser["device"] = torch.device(device)
    usual = "denoiser_def" if kind == "pixel_denoiser" else "network_def"
    network = load_weights(parser.get_parsed_content(network_id or usual), weights).to(device)
    scorer = Scorer(parser, network, torch.device(device), dataset_dir, num_images, seed)
    sampler = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    with torch.inference_mode():
        if kind == "autoencoder":
            row, real, fake = scorer.autoencoder()
        elif kind == "latent_denoiser":
            row, real, fake = scorer.latent_denoiser(str(store), **sampler)
        elif kind == "pixel_denoiser":
            row, real, fake = scorer.pixel_denoiser(num_inference_steps)
        else:
            raise SystemExit(f"kind: expected autoencoder, latent_denoiser or pixel_denoiser, found {kind}")
    for extractor, source in (("dino", dino_source), ("inception", inception_path)):
        if source is not None:
            row |= distances(extractor, source, scorer.first, real, fake, device)
    folder = Path(output_dir)
    shown = [*zip(scorer.first, fake, strict=False)][: 2 * SHEET_COLUMNS]
    rows = [
        [pair[side] for pair in shown[start : start + SHEET_COLUMNS]] for start in (0, SHEET_COLUMNS) for side in (0, 1)
    ]
    save_contact_sheet([row for row in rows if row], folder / f"{name}.png", None)
    add_row(folder / TABLE_NAME, {"name": name, "kind": kind, **row})


@dataclass
class Scorer:
    """The images of one call: two halves of the validation split, and what the network makes of the first."""

    parser: ConfigParser  # of the training's config
    network: Any  # with weights
    device: torch.device  # of the network
    dataset_dir: str
    num_images: int  # of each half at most
    seed: int  # of halves and samples

    def __post_init__(self) -> None:
        items = radiograph_items(self.dataset_dir, "val", 0.1, self.seed, where=self.parser.get("where"))
        halves = split_halves([item["patient_id"] for item in items], self.seed)
        order = np.random.default_rng(self.seed)
        self.items = [[items[i] for i in order.permutation(half)[: self.num_images]] for half in halves]
        self.first, self.second = ([self._load(item["image"]) for item in half] for half in self.items)

    def autoencoder(self) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
        """Reconstructions: PSNR, LPIPS, power of each octave over that of the originals, the latents' grid."""
        judge = LPIPS(self.parser.get_parsed_content("perceptual#weights_path")).to(self.device)
        images = torch.stack(self.first)
        fake = torch.cat([self.network(batch.to(self.device)).cpu() for batch in images.split(BATCH)])
        row = {"psnr": psnr(fake, images).mean().item()}
        parts = zip(fake.split(BATCH), images.split(BATCH), strict=True)
        row["lpips"] = torch.cat([judge(a.to(self.device), b.to(self.device)) for a, b in parts]).mean().item()
        return row | spectra(fake, images, 8), self.second, list(fake)

    def latent_denoiser(self, store: str, **settings: Any) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
        """A variation of each image of the first half."""
        codec, schedule, selection = map(self.parser.get_parsed_content, ("codec", "schedule", "selection"))
        sampler = ImageSampler(
            self.network, codec, Sampler(schedule, "dpm_solver++_2m", **settings), 256, True, self.device
        )
        data = LatentStore(store)
        rows = {item["image"]: row for row, item in enumerate(data.items)}
        tokens = selection.select(data.tokens([rows[item["image"]] for item in self.items[0]]))
        fake = torch.cat([*self._sampled(sampler.sample, tokens.split(BATCH))])
        return spectra(fake, torch.stack(self.first), 8), self.second, list(fake)

    def pixel_denoiser(self, num_inference_steps: int) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
        """Samples from noise alone."""
        schedule = self.parser.get_parsed_content("schedule")
        sampler = Sampler(schedule, "dpm_solver++_2m", num_inference_steps)
        size = self.parser.get_parsed_content("image_size")
        images = PixelImageSampler(self.network, sampler, size, True, self.device)
        empty = torch.zeros(self.num_images, 0)
        fake = torch.cat([*self._sampled(lambda _, seeds: images.sample(seeds), empty.split(BATCH))])
        row = spectra(fake, torch.stack(self.first), getattr(self.network, "patch_size", 1))
        return row, self.second, list(fake)

    def _sampled(self, draw: Callable[[Tensor, list[int]], Tensor], parts: Sequence[Tensor]) -> Iterator[Tensor]:
        done = 0
        for part in parts:
            with autocast(self.device, True):
                yield draw(part, [sample_seed(self.seed, done + number) for number in range(len(part))])
            done += len(part)

    def _load(self, path: str) -> Tensor:
        size = self.parser.get_parsed_content("image_size")
        if isinstance(size, int):
            return load_square(path, size)
        return PadResized(["image"], size)({"image": read_radiograph(path).pixels})["image"]


def spectra(fake: Tensor, real: Tensor, period: int) -> dict[str, float]:
    """Mean power of each octave over that of real images, lowest first, and of the lines of a grid over their sides."""
    ratios = band_power(fake).mean(0) / band_power(real).mean(0)
    found = {f"power_{number}": ratio for number, ratio in enumerate(ratios.tolist(), 1)}
    if period > 1:
        found["grid"] = line_power(fake, period).item()
        found["grid_real"] = line_power(real, period).item()
    return found


def distances(
    extractor: str, source: str, first: Sequence[Tensor], second: Sequence[Tensor], fake: Sequence[Tensor], device: str
) -> dict[str, float]:
    """Fréchet distance to the second half, over that of the first half, and precision and recall."""
    weights = {"dino_source": source} if extractor == "dino" else {"inception_weights": source}
    encoder = ImageFeatures(build_extractor(extractor, **weights), device=device, progress=False)
    sides = [encoder.of_batches(torch.stack(list(side)).split(BATCH)) for side in (first, second, fake)]
    near = precision_recall_density_coverage(sides[1], sides[2])
    floor, distance = frechet_distance(sides[0], sides[1]), frechet_distance(sides[2], sides[1])
    return {
        f"fd_{extractor}": distance,
        f"fd_{extractor}_over_floor": distance / floor,
        f"precision_{extractor}": near["precision"],
        f"recall_{extractor}": near["recall"],
    }


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file, replacing that of the same name, and print it."""
    rows = [old for old in read_rows(path) if str(old["name"]) != str(row["name"])] if path.is_file() else []
    rows.append({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
    write_rows(path, rows)
    print(", ".join(f"{key} {value}" for key, value in rows[-1].items()))


if __name__ == "__main__":
    run_command(score_weights)
