"""A page in the browser to try the bundles on single radiographs; nothing leaves this machine.

python scripts/explore.py
python scripts/explore.py bundles/dental_radiograph_segmentation
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from common.command_line import run_command
from common.diffusion.samplers import Sampler
from common.errors import SettingsError, UserError
from common.fingerprint import network_sha256
from common.intensity import stored_values
from common.io import Radiograph, UnreadableRadiographError, is_radiograph_file, read_radiograph
from common.io.image_writer import write_png
from common.io.mask_writer import class_layers
from common.io.read import detect_format
from common.io.scaling import MAX_BYTES
from common.io.synthetic_dicom import write_synthetic_dicom
from common.networks.weights import read_description
from common.page_server import PageServer, Upload
from common.pipelines import DentalSegmenter, DinoDiffusion
from common.pipelines.inputs import OpenBundle
from common.seeding import sample_seed

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SHOWN = ("cxr_dino_latent_diffusion", "dental_radiograph_segmentation")  # without arguments
PAGE = Path(__file__).with_suffix(".html")
PREVIEW = 1024  # px, longer side of a radiograph on the page at most
KEPT = 200  # pictures, uploads included; those not used for longest are removed
MOST_WISH = 2**23  # bytes of JSON: a mask of PREVIEW × PREVIEW
SAMPLES = 5
FILES = {"PNG": "image.png", "DICOM": "image.dcm", "mask": "image_mask.png", "overlay": "image_overlay.png"}
FILES |= {"DICOM SEG": "image_seg.dcm"}  # names on the page, and in a picture's folder
Wish = dict[str, Any]  # what the page asks for, and what it is given, as JSON


class Explorer:
    """What the page can do with the pipelines; one thing at a time.

    Args:
        bundles: folders or zips, of generators and segmenters.
        folder: of uploads and results, a folder each.
        device: as of the pipelines.
        settings: of generators.

    Raises:
        SettingsError: a bundle of something else.
        WeightsError: weights that are missing or damaged.
    """

    def __init__(self, bundles: Sequence[Path], folder: Path, device: str = "auto", **settings: Any) -> None:
        self.folder = folder
        self.kept: dict[str, None] = {}  # names of pictures, those used last at the end
        self.lock = threading.Lock()
        self.actions: dict[str, Callable[[Wish], list[Wish]]] = {}
        self.samples: dict[str, list[Path]] = {}
        for bundle in bundles:
            description = read_description(OpenBundle(bundle).models / "model.pt")
            actions: dict[str, Callable[[Wish], list[Wish]]] = {"masks": self.masks}
            if "class_table" in description:
                self.segmenter = DentalSegmenter.from_bundle(bundle, device)
            elif "selection" in description:
                self.generator = DinoDiffusion.from_bundle(bundle, device, **settings)
                self.weights_sha256 = network_sha256(self.generator.network)
                actions = {"variation": self.variation, "interpolation": self.interpolation}
                actions |= {"inpainting": self.inpainting, "prior": self.prior}
            else:
                raise SettingsError(f"{bundle}: expected a generator or a segmenter, found {', '.join(description)}")
            files = [path for path in sorted(bundle.glob("samples/images/*")) if is_radiograph_file(path)]
            self.actions |= actions
            self.samples |= dict.fromkeys(actions, files[:SAMPLES])

    def get(self, path: str) -> Path | Wish | None:
        """The page, what it has to know, samples and pictures."""
        if path == "/":
            return PAGE
        if path == "/about":
            urls = {name: [f"/samples/{name}/{n}" for n in range(len(files))] for name, files in self.samples.items()}
            labels = self.generator.token_sampler.prior.labels if "prior" in urls else []
            return {"samples": urls, "labels": labels, "most_bytes": MAX_BYTES}
        if sample := re.fullmatch(r"/samples/([a-z]+)/(\d)", path):
            return dict(enumerate(self.samples.get(sample[1], []))).get(int(sample[2]))
        file = re.fullmatch(r"/pictures/([0-9a-f]{16}/[a-z_0-9]+\.(?:png|dcm))", path)
        return self.folder / file[1] if file and (self.folder / file[1]).is_file() else None

    def post(self, path: str, upload: Upload) -> Wish:
        """Take a radiograph, or do one of the actions.

        Raises:
            UserError: the radiograph cannot be read, or what is asked for cannot be done.
        """
        if path == "/radiographs":
            return self.take(upload)
        body, action = io.BytesIO(), path.strip("/")
        upload.save(body, MOST_WISH)
        try:
            wish = json.loads(body.getvalue())
        except ValueError as error:
            raise SettingsError(f"expected JSON, found none ({error})") from error
        if action not in self.actions or not isinstance(wish, dict):
            raise SettingsError(f"expected an object for one of {', '.join(self.actions)}; found {action[:40]}")
        with self.lock:
            return {"pictures": self.actions[action](wish)}

    # ---- radiographs and pictures ------------------------------------------------------------------------------------

    def take(self, upload: Upload) -> Wish:
        """Keep an upload, if it can be read."""
        folder = self._new_folder()
        try:
            with (folder / "original").open("wb") as file:
                upload.save(file, MAX_BYTES)
            radiograph = read_radiograph(folder / "original")
        except UnreadableRadiographError as error:
            shutil.rmtree(folder)
            raise SettingsError(
                f"{upload.name}: found {error.found}; expected {error.expected}. {error.hint}"
            ) from error
        except BaseException:
            shutil.rmtree(folder)
            raise
        preview = Image.fromarray(stored_values(radiograph.pixels, 8))
        preview.thumbnail((PREVIEW, PREVIEW))
        preview.save(folder / "image.png")
        height, width = radiograph.pixels.shape[1:]
        return self._picture(folder, name=upload.name, about=f"{width} × {height} px {radiograph.modality}".strip())

    def _new_folder(self) -> Path:
        name = secrets.token_hex(8)
        (self.folder / name).mkdir()
        self.kept[name] = None
        for old in list(self.kept)[:-KEPT]:
            self.kept.pop(old, None)
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return self.folder / name

    def _kept_folder(self, name: Any) -> Path:
        if not isinstance(name, str) or name not in self.kept:
            raise SettingsError(
                "found no such picture any more; expected one of the latest. Drop the radiograph again."
            )
        self.kept[name] = self.kept.pop(name)
        return self.folder / name

    def _source(self, wish: Wish, which: str = "source") -> Radiograph:
        folder = self._kept_folder(wish.get(which))
        original = folder / "original"
        return read_radiograph(original if original.is_file() else folder / "image.png")

    def _picture(self, folder: Path, **more: Any) -> Wish:
        base = f"/pictures/{folder.name}"
        files = {kind: f"{base}/{name}" for kind, name in FILES.items() if (folder / name).is_file()}
        return {"id": folder.name, "image": f"{base}/image.png", "files": files, **more}

    # ---- actions -----------------------------------------------------------------------------------------------------

    def variation(self, wish: Wish) -> list[Wish]:
        """Variations of a radiograph."""
        source = self._source(wish)
        images = self._guided(wish).vary(source, whole(wish, "count", 1, 16), whole(wish, "seed"))
        return self._generated(images, "variation", wish, source)

    def interpolation(self, wish: Wish) -> list[Wish]:
        """A strip from one radiograph to another."""
        ends, count = (self._source(wish), self._source(wish, "other")), whole(wish, "count", 2, 16)
        images = self._guided(wish).interpolate(*ends, count, whole(wish, "seed"))
        pictures = self._generated(images, "interpolation", wish, *ends)
        return [{**each, "about": f"{100 * n / (count - 1):.0f} % of the way"} for n, each in enumerate(pictures)]

    def inpainting(self, wish: Wish) -> list[Wish]:
        """What is painted over, drawn anew."""
        source = self._source(wish)
        with Image.open(self._kept_folder(wish["source"]) / "image.png") as shown:
            painted = opaque(wish.get("mask"), shown.size)
        height, width = source.pixels.shape[1:]
        mask = np.asarray(painted.resize((width, height), Image.Resampling.NEAREST))
        images = self._guided(wish).inpaint(source, mask, whole(wish, "count", 1, 16), whole(wish, "seed"))
        return self._generated(images, "inpainting", wish, source)

    def prior(self, wish: Wish) -> list[Wish]:
        """Radiographs without a source."""
        count, seed = whole(wish, "count", 1, 16), whole(wish, "seed")
        return self._generated(self._guided(wish).sample(count, seed, wish.get("label") or None), "prior", wish)

    def masks(self, wish: Wish) -> list[Wish]:
        """What is in a dental radiograph, a layer for each class."""
        source, folder = self._source(wish), self._new_folder()
        found, note = self.segmenter.segment(source), unlike(self.segmenter, source)
        found.save(folder, "image")
        if detect_format(source.path) == "dicom":
            try:
                found.save_dicom_seg(folder / "image_seg.dcm")
            except UserError as error:
                note = f"{note} No DICOM SEG: {error}".strip()
        shutil.copy(self._kept_folder(wish["source"]) / "image.png", folder / "image.png")
        with Image.open(folder / "image.png") as shown:
            labels = Image.fromarray(found.mask.numpy()).resize(shown.size, Image.Resampling.NEAREST)
        layers = []
        for number, layer in enumerate(class_layers(np.asarray(labels), found.classes)):
            layer.save(folder / f"layer{number}.png")
            entry = found.classes.classes[number]
            mm2 = f" · {found.areas_mm2[entry.name]:.1f} mm²" if found.areas_mm2 else ""
            about = {"name": entry.name, "colour": entry.colour, "area": f"{found.areas_px[entry.name]:,} px{mm2}"}
            layers.append({**about, "image": f"/pictures/{folder.name}/layer{number}.png"})
        return [self._picture(folder, about="segmentation", layers=layers, note=note)]

    def _guided(self, wish: Wish) -> DinoDiffusion:
        pipe = self.generator
        method, steps = pipe.sampler.method, len(pipe.sampler.timesteps)
        guidance = number(wish, "guidance", 0, 10)
        pipe.image_sampler.sampler = Sampler(pipe.schedule, method, steps, guidance_scale=guidance)
        return pipe

    def _generated(self, images: Tensor, strategy: str, wish: Wish, *sources: Radiograph) -> list[Wish]:
        """Write images as PNG, and as DICOM if they show nothing of their sources."""
        note = next(filter(None, (unlike(self.generator, source) for source in sources)), "")
        about = {name: str(value) for name, value in self.generator.image_sampler.sampler.settings.items()}
        about |= {"strategy": strategy, "weights_sha256": self.weights_sha256}
        pictures = []
        for n, image in enumerate(images):
            folder, seed = self._new_folder(), {"seed": str(sample_seed(wish["seed"], n))}
            write_png(image, folder / "image.png", provenance={**about, **seed})
            if strategy != "inpainting":
                write_synthetic_dicom(
                    image,
                    folder / "image.dcm",
                    identity=f"{about} {seed} {hashlib.sha256(stored_values(image, 8).tobytes()).hexdigest()}",
                    model=f"cxr_dino_latent_diffusion, weights {self.weights_sha256[:8]}",
                    description=f"chest radiograph, {strategy}",
                    bits=8,
                    provenance={**about, **seed},
                )
            pictures.append(self._picture(folder, about=f"{n + 1} of {len(images)}", note=note))
        return pictures


def number(wish: Wish, name: str, low: float, high: float) -> float:
    """A number of a wish; SettingsError where it is none, or out of range."""
    value = wish.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SettingsError(f"{name}: found {value!r}; expected a number from {low} to {high}")
    return value


def whole(wish: Wish, name: str, low: int = 0, high: int = 2**31 - 1) -> int:
    """The same for whole numbers."""
    value = number(wish, name, low, high)
    if not isinstance(value, int):
        raise SettingsError(f"{name}: found {value!r}; expected a whole number")
    return value


def opaque(uri: Any, size: tuple[int, int]) -> Image.Image:
    """Where the picture of a data URI is opaque, as a mask of 0 and 255.

    Raises:
        SettingsError: no RGBA PNG of this size, (width, height).
    """
    try:
        content = io.BytesIO(base64.b64decode(str(uri).partition(",")[2], validate=True))
        with Image.open(content, formats=["PNG"]) as picture:
            if picture.size == size and picture.mode == "RGBA":
                return picture.getchannel("A").point([0] * 128 + [255] * 128)
            raise ValueError(f"{picture.mode} of {picture.size}")
    except (OSError, ValueError) as error:
        raise SettingsError(f"mask: expected an RGBA PNG of {size}, found something else ({error})") from error


def unlike(pipeline: DinoDiffusion | DentalSegmenter, source: Radiograph) -> str:
    """A warning about a radiograph unlike those of the training; "" about others."""
    is_unlike = pipeline.typical is not None and pipeline.typical(source.pixels) > 1
    return "Unlike the radiographs that this model learnt from: the result means little." if is_unlike else ""


def explore(*bundles: str, port: int = 8321, device: str = "auto", browser: bool = True) -> None:
    """Serve a page for variations, interpolation, inpainting and masks, on 127.0.0.1 alone, until Ctrl-C.

    Radiographs and results lie in a temporary folder, which is removed at the end.

    Args:
        bundles: folders or zips; by default the generator and the dental segmenter of this repository.
        port: of the page; 0 takes a free one.
        device: such as cpu; auto takes a GPU where there is one.
        browser: open the page.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what removes the folder
    chosen = [Path(bundle).expanduser() for bundle in bundles] or [BUNDLES / name for name in SHOWN]
    with tempfile.TemporaryDirectory(prefix="radiographs_", ignore_cleanup_errors=True) as folder:
        explorer = Explorer(chosen, Path(folder), device)
        server = PageServer(port, explorer.get, explorer.post)
        print(f"{server.address} (Ctrl-C ends)", flush=True)
        if browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    run_command(explore)
