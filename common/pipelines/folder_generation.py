"""A folder of generated radiographs: PNGs, optional DICOMs, manifest.csv, contact sheet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.datalist_sources import SPLITS
from ..data.transforms import load_square
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.pixel_image_sampler import PixelImageSampler
from ..errors import SettingsError
from ..fingerprint import network_sha256
from ..intensity import stored_values
from ..io.contact_sheet import save_contact_sheet
from ..io.image_writer import write_png
from ..io.synthetic_dicom import write_synthetic_dicom
from .folder_job import SHEET_NAME, FolderJob
from .inputs import read_generated
from .job_log import Item, Row
from .manifest import joined, provenance_texts, write_generation_manifest
from .strategies import SampleRequest, Strategy

SHEET_COLUMNS = 4


class FolderGeneration(FolderJob):
    """Make all images of a strategy into `output_dir`; the same seed, weights and settings give the same files.

    One folder is one run; with more images to make it grows. The samples do not depend on `batch_size` beyond float
    tolerance. With `dicom` there are DICOM files beside the PNGs, of 8 or 16 `bits` as these, marked as synthetic, with
    new UIDs and no patient data; `model_name` and `subject` are for their headers. `split` is the one of train, val and
    test that all sources are from, or without sources that the weights were trained on; None or "all" if there is none.

    Raises:
        SettingsError: bits, batch_size or split out of range, or DICOM of images that show their sources.
    """

    verb = "generated"
    keeps_folder = keeps_rows = True

    def __init__(
        self,
        strategy: Strategy,
        sampler: ImageSampler | PixelImageSampler,
        output_dir: str,
        batch_size: int,
        bits: int = 8,
        dicom: bool = False,
        model_name: str = "unknown",
        subject: str = "chest radiograph",
        split: str | None = None,
        sheet_images: int = 32,
    ) -> None:
        self.split = None if split == "all" else split
        if bits not in (8, 16) or self.split not in (None, *SPLITS):
            raise SettingsError(f"expected 8 or 16 bits, and a split of {SPLITS} or none, found {bits}, {split}")
        if dicom and strategy.shows_sources:
            raise SettingsError(
                f"dicom: found true with strategy {strategy.name}, whose images mostly show the sources; files that "
                "call themselves synthetic and name no patient would be wrong"
            )
        self.strategy, self.sampler = strategy, sampler
        self.weights_sha256 = network_sha256(sampler.denoiser)
        written = {"bits": bits, "dicom": dicom, "split": self.split}
        settings = {"strategy": strategy.name, "seed": strategy.seed, "weights_sha256": self.weights_sha256, **written}
        super().__init__(output_dir, {**settings, **sampler.settings, **strategy.settings}, batch_size, sheet_images)
        self.bits, self.dicom = bits, dicom
        self.model_name, self.subject = model_name, subject

    def items(self) -> list[Item]:
        """The strategy's requests."""
        return [Item(request.name, content=request) for request in self.strategy.requests()]

    def result(self, item: Item) -> str:
        """The PNG."""
        return f"images/{item.name}.png"

    def compute(self, items: Sequence[Item]) -> Sequence[Tensor]:
        """Generate."""
        return self.strategy.images(self.sampler, [item.content for item in items])

    def write(self, item: Item, output: Tensor) -> Row:
        """Write PNG and DICOM."""
        row = self._row(item)
        about = provenance_texts(row)
        write_png(output, self.output_dir / self.result(item), self.bits, about)
        if self.dicom:
            # With the pixels: the same number of a run with other sources or steps is another image.
            pixels = hashlib.sha256(stored_values(output, self.bits).tobytes()).hexdigest()
            write_synthetic_dicom(
                output,
                self.output_dir / "dicom" / f"{item.name}.dcm",
                identity=f"{self.weights_sha256} {self.strategy.seed} {item.name} {pixels}",
                model=f"{self.model_name}, weights {self.weights_sha256[:8]}",
                description=f"{self.subject}, {self.strategy.name}",
                bits=self.bits,
                provenance=about,
            )
        return row

    def _row(self, item: Item) -> Row:
        table, request, sampler = self.strategy.table, item.content, self.sampler.sampler
        shown = request.sources if table.unlikeness else ()
        return {
            "image": self.result(item),
            "strategy": self.strategy.name,
            "seed": request.seed,
            **sampler.settings,
            "weights_sha256": self.weights_sha256,
            "sources": joined(table.paths[source] for source in request.sources),
            "source_patient_ids": joined(table.patient_ids[source] for source in request.sources),
            "source_unlikeness": max((table.unlikeness[source] for source in shown), default=""),
            "mix": request.mix,
            "label": request.label,
            "flagged": "",
        }

    def tabulate(self, rows: Sequence[Row]) -> None:
        """Write manifest.csv."""
        write_generation_manifest(self.output_dir, rows, self.split)

    def finish(self, items: Sequence[Item], rows: Sequence[Row]) -> str:
        """Draw the first images: source(s) and their samples row by row, or just samples."""
        shown = [item for item in items if (self.output_dir / self.result(item)).is_file()][: self.sheet_images]
        groups: dict[tuple[int, ...] | int, list[Item]] = {}
        for number, item in enumerate(shown):
            groups.setdefault(item.content.sources or number // SHEET_COLUMNS, []).append(item)
        if not groups:
            return ""
        size: Any = self.sampler.image_size  # one number where there are sources: as the encoder saw them
        pictures, captions = [], []
        for group in groups.values():
            sources = [load_square(self.strategy.table.paths[each], size) for each in group[0].content.sources]
            pictures.append(sources + [read_generated(self.output_dir / self.result(item)) for item in group])
            captions.append(self._caption([item.content for item in group]))
        save_contact_sheet(pictures, self.output_dir / SHEET_NAME, None, row_captions=captions)
        warning = " beside their sources, and manifest.csv names the sources: take care if they are patients"
        return f"; {SHEET_NAME} shows the first ones{warning if self.strategy.table else ''}"

    def _caption(self, group: Sequence[SampleRequest]) -> str:
        first = group[0]
        label = f", label {first.label}" if first.label else ""
        if not first.sources:
            return f"sampled without source{label}"
        names = " and ".join(Path(self.strategy.table.paths[source]).name for source in first.sources)
        mixes = ", ".join(f"{request.mix:.2f}" for request in group if request.mix is not None)
        return f"{names}, then {f'mix {mixes}' if mixes else 'samples'}{label}"
