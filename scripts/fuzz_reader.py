"""Damage radiographs and masks of every format at random, and see that the reader refuses or reads each of them.

python scripts/fuzz_reader.py                                        # 2,000 radiographs and 400 masks
python scripts/fuzz_reader.py --radiographs 100000 --masks 20000     # a night on one core
"""

from __future__ import annotations

import gzip
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from common.command_line import run_command
from common.data.phantom import draw_chest_phantom
from common.errors import RunError
from common.io import UnreadableRadiographError, read_radiograph
from common.io.mask_files import read_mask

SAMPLE = Path(__file__).parents[1] / "bundles" / "cxr_autoencoder" / "samples" / "phantom_07_cr.dcm"
MOST_SECONDS, MOST_MIB = 20.0, 3072  # for one file; of the process
SYNTAXES = {50: "jpeg", 57: "ljpeg", 70: "ljpeg", 80: "jpegls", 90: "jpeg2k"}  # last part of the UID, codec


def fuzz(radiographs: int = 2000, masks: int = 400, seed: int = 0, size: int = 96) -> None:
    """Read so many damaged files; the first that breaks a promise stops the run and is kept.

    Args:
        radiographs: number of them.
        masks: number of them.
        seed: another one damages otherwise.
        size: px of the images, about.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, count, whole, read in (
            ("radiographs", radiographs, whole_radiographs(size), read_radiograph),
            ("masks", masks, whole_masks(size), read_mask),
        ):
            refused, slowest = fuzz_kind(count, whole, read, np.random.default_rng(seed), Path(folder) / "damaged")
            print(f"{count} {name}: {refused} refused, {count - refused} read; at most {slowest:.2f} s")
    print(f"at most {peak_mib()} MiB of memory; no other error than {UnreadableRadiographError.__name__}")


def fuzz_kind(
    count: int, whole: Mapping[str, bytes], read: Callable[[Path], Any], draw: np.random.Generator, path: Path
) -> tuple[int, float]:
    """How many of the damaged files were refused, and the seconds that the slowest took.

    Raises:
        RunError: an error of another type, or too much time or memory.
    """
    names, refused, slowest = sorted(whole), 0, 0.0
    for number in range(count):
        name = names[number % len(names)]
        path.write_bytes(damaged(whole[name], whole[names[draw.integers(len(names))]], draw))
        began, problem = time.monotonic(), ""
        try:
            read(path)
        except UnreadableRadiographError:
            refused += 1
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.monotonic() - began)
        if slowest > MOST_SECONDS or peak_mib() > MOST_MIB:
            problem = problem or f"{slowest:.0f} s, {peak_mib()} MiB"
        if problem:
            kept = Path(tempfile.gettempdir()) / f"fuzz_{name}_{number}"
            path.replace(kept)
            raise RunError(f"{kept}: {problem}")
    return refused, slowest


def damaged(content: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """One to three of: bits flipped, bytes replaced, a stretch lost, zeroed or doubled, cut, the rest of another."""
    data = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        # Half of the damage is where headers are.
        start = int(draw.integers(min(len(data), 600) if draw.random() < 0.5 else len(data))) if data else 0
        end = start + int(draw.integers(1, max(2, len(data) // 2)))
        kind = draw.integers(7)
        if kind == 0:
            for at in draw.integers(start, min(end, start + 8), 4):
                data[at : at + 1] = bytes(byte ^ 1 << int(draw.integers(8)) for byte in data[at : at + 1])
        elif kind == 1:
            data[start : start + 4] = draw.bytes(4) if draw.random() < 0.5 else b"\xff\xff\xff\x7f"
        else:
            stretch = data[start:end]
            data[start:end] = [b"", bytes(len(stretch)), stretch * 2, b"", other[start:]][kind - 2]
            if kind == 5:
                del data[start:]
    return bytes(data)


def whole_radiographs(size: int) -> dict[str, bytes]:
    """A phantom in every format and coding, by name."""
    unit = draw_chest_phantom(size, size + 8, seed=0)[0].clamp(0, 1).numpy()
    grey, wide = (unit * 255).astype(np.uint8), (unit * 4095).astype(np.uint16)
    whole = {"sample.dcm": SAMPLE.read_bytes()} | {f"nii{name}": each for name, each in whole_niftis(grey).items()}
    pictures: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("png", grey, {}),
        ("wide.png", wide, {}),
        ("jpeg", grey, {"quality": 90}),
        ("progressive.jpeg", grey, {"progressive": True, "restart_marker_blocks": 3}),
        ("tiff", grey, {}),
        ("lzw.tiff", wide, {"compression": "lzw"}),
        ("float.tiff", unit, {"byteorder": ">"}),
    ]
    for name, pixels, options in pictures:
        buffer = io.BytesIO()
        if name.endswith("tiff"):
            tifffile.imwrite(buffer, pixels, **options)
        else:
            Image.fromarray(pixels).save(buffer, name.split(".")[-1], **options)
        whole[name] = buffer.getvalue()
    return whole | {f"{number}.dcm": compressed(grey, number, codec) for number, codec in SYNTAXES.items()}


def whole_masks(size: int) -> dict[str, bytes]:
    """A mask as PNG and NIfTI, by name."""
    labels = np.random.default_rng(0).integers(0, 6, (size // 8, size // 8 + 1)).repeat(8, 0).repeat(8, 1)
    whole = whole_niftis(labels.astype(np.uint8))
    for mode in ("L", "P"):
        buffer = io.BytesIO()
        image = Image.fromarray(labels.astype(np.uint8))
        if mode == "P":
            image.putpalette([channel for label in range(6) for channel in (label * 40, 255 - label * 40, 0)])
        image.save(buffer, "PNG")
        whole[f"{mode}.png"] = buffer.getvalue()
    return whole


def whole_niftis(values: np.ndarray) -> dict[str, bytes]:
    """As NIfTI-1, plain and gzipped, and as NIfTI-2."""
    first, second = (kind(values.T, np.diag([-0.2, -0.2, 1, 1])) for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image))
    return {"1": first.to_bytes(), "1.gz": gzip.compress(first.to_bytes(), mtime=0), "2": second.to_bytes()}


def compressed(grey: np.ndarray, number: int, codec: str) -> bytes:
    """The sample's header with other pixels of 8 bits, compressed."""
    dataset = pydicom.dcmread(SAMPLE)
    dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.4.{number}")
    dataset.Rows, dataset.Columns = grey.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    frame = getattr(imagecodecs, f"{codec}_encode")(grey)
    dataset.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def peak_mib() -> int:
    """Most memory that the process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


if __name__ == "__main__":
    run_command(fuzz)
