"""Generate a folder of radiographs: batch by batch, resumable, with a manifest that says how each image was made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..diffusion.image_sampler import ImageSampler
from ..errors import UserError
from ..intensity import stored_values
from ..io.contact_sheet import save_contact_sheet
from ..io.image_writer import write_png
from ..io.synthetic_dicom import write_synthetic_dicom
from .embedding_strategies import Strategy
from .generation_manifest import GenerationManifest
from .image_source import EmbeddedImages, ImageSource
from .manifest_row import ManifestRow
from .sample_request import SampleRequest

_logger = logging.getLogger(__name__)

SHEET_NAME = "contact_sheet.png"
SHEET_COLUMNS = 4


class GenerationError(UserError, ValueError):
    """The knobs of a generation are out of range."""


class FolderGeneration:
    """Make all images of a source into `output_dir`: PNGs, optional DICOMs, manifest.csv, contact sheet.

    A run that was killed goes on where it stopped. The same seed, weights and settings give the same files.

    Args:
        source: lists the images and makes them.
        output_dir: one folder is one run.
        batch_size: images at a time; the samples do not depend on it beyond float tolerance.
        bits: 8 or 16, of PNG and DICOM.
        dicom: write DICOM files beside the PNGs, marked as synthetic, with new UIDs and no patient data.
        seed: of the run, for the record; the source uses it.
        model_name: for the DICOM header.
        subject: of the images, for the DICOM header, such as "chest radiograph".
        split: train, val or test, which all sources are from, or without sources that the weights were trained on; None
            where there are no splits.
        sheet_images: images on the contact sheet at most.

    Raises:
        GenerationError: bits or batch_size out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        output_dir: str,
        batch_size: int,
        bits: int,
        dicom: bool,
        seed: int,
        model_name: str,
        subject: str,
        split: str | None,
        sheet_images: int,
    ) -> None:
        if bits not in (8, 16):
            raise GenerationError(f"bits: expected 8 or 16, found {bits}")
        if batch_size < 1:
            raise GenerationError(f"batch_size: expected at least 1, found {batch_size}")
        self.source = source
        self.output_dir = Path(output_dir)
        self.batch_size = batch_size
        self.bits = bits
        self.dicom = dicom
        self.model_name = model_name
        self.subject = subject
        self.split = split
        self.sheet_images = sheet_images
        self.weights_sha256 = source.weights_sha256
        self.settings = {
            "strategy": source.name,
            "seed": seed,
            "weights_sha256": source.weights_sha256,
            "bits": bits,
            "dicom": dicom,
            **source.settings,
        }

    def run(self) -> GenerationManifest:
        """Make what is not there yet; return the manifest."""
        requests = self.source.requests()  # first, as a strategy refuses sources that do not allow it
        manifest = GenerationManifest(self.output_dir, self.settings, self.split)
        missing = {request.name for request in requests if not manifest.is_done(self._image(request))}
        bar = tqdm(
            total=len(requests),
            initial=len(requests) - len(missing),
            desc=f"generating ({self.source.name})",
            unit="image",
            dynamic_ncols=True,
        )
        with bar:
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                todo = [request.name in missing for request in batch]
                if any(todo):  # the whole batch, so that a resumed run computes what an uninterrupted one does
                    manifest.append(self._make(batch, todo))
                    bar.update(sum(todo))
        self._sheet(requests, manifest)
        return manifest

    def _make(self, batch: Sequence[SampleRequest], todo: Sequence[bool]) -> list[ManifestRow]:
        made = zip(batch, self.source.images(batch), todo, strict=True)
        return [self._write(request, image) for request, image, wanted in made if wanted]

    @staticmethod
    def _image(request: SampleRequest) -> str:
        return f"images/{request.name}.png"

    def _row(self, request: SampleRequest) -> ManifestRow:
        table, rule = self.source.table, self.source.rule
        return ManifestRow(
            image=self._image(request),
            strategy=self.source.name,
            seed=request.seed,
            num_inference_steps=len(rule.timesteps),
            guidance_scale=rule.guidance_scale,
            method=rule.method,
            weights_sha256=self.weights_sha256,
            sources=tuple(table.paths[source] for source in request.sources) if table else (),
            source_patient_ids=tuple(table.patient_ids[source] for source in request.sources) if table else (),
            mix=request.mix,
            label=request.label,
        )

    def _write(self, request: SampleRequest, image: Tensor) -> ManifestRow:
        row = self._row(request)
        write_png(image, self.output_dir / row.image, self.bits, row.provenance())
        if self.dicom:
            # With the pixels: the same number of a run with other sources or steps is another image.
            pixels = hashlib.sha256(stored_values(image, self.bits).tobytes()).hexdigest()
            write_synthetic_dicom(
                image,
                self.output_dir / "dicom" / f"{request.name}.dcm",
                identity=f"{self.weights_sha256} {self.settings['seed']} {request.name} {pixels}",
                model=f"{self.model_name}, weights {self.weights_sha256[:8]}",
                description=f"{self.subject}, {self.source.name}",
                bits=self.bits,
                provenance=row.provenance(),
            )
        return row

    def _sheet(self, requests: Sequence[SampleRequest], manifest: GenerationManifest) -> None:
        """The first images: source(s) and their samples row by row, or just samples."""
        there = {row.image for row in manifest.rows()}
        shown = [request for request in requests if self._image(request) in there][: self.sheet_images]
        if not shown:
            return
        rows: list[list[Tensor]] = []
        captions: list[str] = []
        groups: dict[tuple[int, ...] | int, list[SampleRequest]] = {}
        for number, request in enumerate(shown):
            groups.setdefault(request.sources or number // SHEET_COLUMNS, []).append(request)
        for group in groups.values():
            first = group[0]
            rows.append(
                [
                    *self.source.source_images(first),
                    *(read_generated(self.output_dir / self._image(request)) for request in group),
                ]
            )
            captions.append(self._caption(group))
        path = save_contact_sheet(rows, self.output_dir / SHEET_NAME, None, row_captions=captions)
        _logger.info("%d images and manifest.csv in %s; %s shows the first", len(there), self.output_dir, path)
        if self.source.table is not None:
            _logger.info("the contact sheet shows the sources, manifest.csv names them: mind that if they are patients")

    @staticmethod
    def _caption(group: Sequence[SampleRequest]) -> str:
        first = group[0]
        if not first.sources:
            return f"sampled without source{f', label {first.label}' if first.label else ''}"
        mixes = ", ".join(f"{request.mix:.2f}" for request in group if request.mix is not None)
        kind = f"two sources, then mix {mixes}" if mixes else "source, then samples"
        return f"{kind}{f' (label {first.label})' if first.label else ''}"


class Generation(FolderGeneration):
    """The same for chest radiographs of embeddings that a strategy chooses.

    Args:
        strategy: chooses the embeddings.
        sampler: tokens and seeds to images.
        output_dir: this and the others as in `FolderGeneration`.
    """

    def __init__(
        self,
        strategy: Strategy,
        sampler: ImageSampler,
        output_dir: str,
        batch_size: int,
        bits: int,
        dicom: bool,
        seed: int,
        model_name: str,
        split: str | None,
        sheet_images: int,
    ) -> None:
        super().__init__(
            EmbeddedImages(strategy, sampler),
            output_dir,
            batch_size,
            bits,
            dicom,
            seed,
            model_name,
            subject="chest radiograph",
            split=split,
            sheet_images=sheet_images,
        )


def read_generated(path: Path) -> Tensor:
    """A generated PNG as it was written, [1, H, W] in [0, 1]; `read_radiograph` stretches 16 bits, refuses one grey."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return torch.from_numpy(pixels.astype(np.float32))[None] / np.iinfo(pixels.dtype).max
