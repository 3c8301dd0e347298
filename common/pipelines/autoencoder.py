"""Radiographs to latents and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image as Pictures
from torch import Tensor

from ..amp import autocast
from ..data.dataset import RadiographDataset
from ..data.transforms import center_square
from ..data.typical_images import TypicalImages, load_typical
from ..files import atomic_path, write_csv
from ..io.contact_sheet import reconstruction_rows
from ..metrics import psnr
from ..networks.latent_codec import LatentCodec
from ..networks.weights import described, load_described
from .folder_job import FileJob
from .inputs import Image, OpenBundle, as_list, as_radiograph, pick_device, read_generated
from .job_log import Item, Row


@dataclass(eq=False, repr=False)
class RadiographAutoencoder:
    """The autoencoder, of radiographs in any form (see `as_radiograph`): one, a list, or a batch [B, 1, H, W].

    Images are resized to S = `image_size` px by their shorter side, and the central square is taken. The device "auto"
    is a GPU where there is one; with `amp` it is bfloat16 where the hardware has it. `typical`: what the training
    images were like.

    Raises:
        SettingsError: no such device, or a size that the network cannot divide.
    """

    network: LatentCodec
    image_size: int
    device: str | torch.device = "auto"
    amp: bool = False
    typical: TypicalImages | None = None

    def __post_init__(self) -> None:
        self.network.check_size(self.image_size)
        self.device = pick_device(self.device)
        self.network.to(self.device).eval()

    @classmethod
    def from_bundle(
        cls, bundle: str | os.PathLike[str], device: str | torch.device = "auto", amp: bool = False
    ) -> RadiographAutoencoder:
        """The shipped weights of a bundle, a folder or a zip.

        Raises:
            WeightsError: there are none, or they are damaged.
        """
        opened = OpenBundle(bundle)
        path = opened.models / "model.pt"
        return cls(load_described(path), described(path, "image_size"), device, amp, load_typical(path))

    def prepare(self, images: Image | Sequence[Image]) -> Tensor:
        """Images as the network sees them, [B, 1, S, S] in [0, 1] on the CPU.

        Raises:
            UnreadableRadiographError: one that cannot be read, or no such pixels.
        """
        return torch.stack([center_square(as_radiograph(image).pixels, self.image_size) for image in as_list(images)])

    @torch.inference_mode()
    def encode(self, images: Image | Sequence[Image]) -> Tensor:
        """Latents [B, C, S/f, S/f] on the CPU, of about zero mean and unit standard deviation."""
        with autocast(self.device, self.amp):
            return self.network.encode(self.prepare(images).to(self.device)).float().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w], or one [C, h, w], to images [B, 1, h·f, w·f] in [0, 1] on the CPU."""
        batch = latents if latents.ndim == 4 else latents[None]
        with autocast(self.device, self.amp):
            return self.network.decode(batch.to(self.device)).float().cpu()

    @torch.inference_mode()
    def reconstruct(self, images: Image | Sequence[Image]) -> Tensor:
        """What encoding and decoding leave of images, [B, 1, S, S] in [0, 1] on the CPU."""
        with autocast(self.device, self.amp):
            return self.network(self.prepare(images).to(self.device)).float().cpu()


class FolderReconstruction(FileJob):
    """A PNG of each image, a table with the PSNR of each, and a contact sheet; arguments as of `FileJob`."""

    verb = "reconstructed"
    sheet_titles = ("input", "reconstruction", "|difference| x 4")  # ASCII: Pillow's own font has no ×

    def __init__(
        self,
        pipeline: RadiographAutoencoder,
        dataset: RadiographDataset,
        dataset_dir: str,
        output_dir: str,
        batch_size: int,
        sheet_rows: int,
    ) -> None:
        settings = {"image_size": pipeline.image_size}
        super().__init__(pipeline, dataset, dataset_dir, output_dir, settings, batch_size, sheet_rows)

    def result(self, item: Item) -> str:
        """The reconstruction."""
        return f"{item.name}_reconstruction.png"

    def compute(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        """Images as the network sees them, and their reconstructions."""
        images = self.pipeline.prepare([item.source for item in items])
        return list(zip(images, self.pipeline.reconstruct(images), strict=True))

    def write(self, item: Item, output: tuple[Tensor, Tensor]) -> Row:
        """Write the PNG."""
        image, reconstruction = output
        with atomic_path(self.output_dir / self.result(item)) as temporary:
            Pictures.fromarray((reconstruction[0] * 255).round().to(torch.uint8).numpy()).save(temporary, format="PNG")
        found = {"psnr_db": psnr(reconstruction[None], image[None]).item(), "unlikeness": self.unlikeness(image)}
        return {"image": item.name, "source": item.source, **found}

    def tabulate(self, rows: Sequence[Row]) -> None:
        """Write reconstructions.csv."""
        cells = [(row["image"], row["source"], f"{row['psnr_db']:.2f}", row["unlikeness"]) for row in rows]
        write_csv(self.output_dir / "reconstructions.csv", ("image", "source", "psnr_db", "unlikeness"), cells)

    def pictures(self, item: Item, row: Row) -> tuple[list[Tensor], str]:
        """Image, reconstruction, difference."""
        reconstruction = read_generated(self.output_dir / self.result(item))
        shown = reconstruction_rows(self.pipeline.prepare(item.source), reconstruction[None])[0]
        return shown, f"{item.name}: PSNR {row['psnr_db']:.1f} dB"
