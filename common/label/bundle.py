"""The segmentation bundle as its own inference.yaml builds it: from a file to a mask, with any weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.mask_transforms import PadGeometry
from ..errors import SettingsError
from ..files import read_json
from ..io import read_radiograph
from ..io.segmentation_classes import ClassTable
from ..pipelines import DentalSegmenter

INFERENCE, TRAINING, METADATA = "configs/inference.yaml", "configs/train.yaml", "configs/metadata.json"
WEIGHTS = "models/model.pt"
PARTS = ("classes", "preprocessing", "inferer", "postprocessing")  # of a `DentalSegmenter`, by their names


class Bundle:
    """One bundle folder, with `configs` and `models`.

    Raises:
        SettingsError: the folder is no bundle that can be served.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        missing = [name for name in (INFERENCE, TRAINING, METADATA, WEIGHTS) if not (self.folder / name).is_file()]
        if missing:
            raise SettingsError(
                f"{self.folder}: found no {', '.join(missing)}; expected the folder of a segmentation bundle."
            )
        metadata = read_json(self.folder / METADATA)
        self.name = self.folder.name
        self.version: str = metadata["version"]
        self.description: str = metadata["description"]
        self.shipped_weights = self.folder / WEIGHTS
        self.classes: ClassTable = self._parser().get_parsed_content("classes")

    @property
    def labels(self) -> dict[str, int]:
        """Label of each class name, without the background."""
        return {name: label for label, name in enumerate(self.classes.names) if label}

    def pipeline(self, weights: str | Path, device: torch.device) -> Pipeline:
        """Build network and transforms with these weights on this device."""
        return Pipeline(self._parser(weights_path=str(weights), device=device))

    def _parser(self, **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self.folder / INFERENCE))
        parser.update({"bundle_root": str(self.folder), **overrides})
        return parser


class Pipeline:
    """What inference.yaml, device and weights set, builds; one call at a time, whatever thread it comes from."""

    def __init__(self, parser: ConfigParser) -> None:
        self.parser = parser
        self.network: nn.Module = parser.get_parsed_content("network")
        self.device: torch.device = parser.get_parsed_content("device")
        self._defaults = {name: parser[name] for name in ("flips", "sliding_window")}
        self._lock = threading.RLock()

    def segment(self, path: str | Path, **switches: bool) -> NDArray[np.uint8]:
        """Draw the mask of one radiograph: labels [H, W], rows × columns exactly those of the radiograph.

        Args:
            path: in any format that `read_radiograph` knows.
            switches: `flips` and `sliding_window`, where they are to be otherwise than in inference.yaml. Never text:
                to the parser a text that starts with $ is code.

        Raises:
            UnreadableRadiographError: there is no radiograph in the file.
        """
        with self._lock:
            return np.ascontiguousarray(self._segmenter(switches).segment(path).mask.numpy())

    def sample_probabilities(self, path: str | Path, run: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """Class probabilities at the network's size, the padding cut off: float32 [S, K, h, w] on the CPU.

        `run` gives logits [S, K, H', W'] of S ways to see the image, from the image [1, 1, H', W'] and the network.

        Raises:
            UnreadableRadiographError: there is no radiograph in the file.
        """
        with self._lock, torch.no_grad():
            segmenter = self._segmenter({})
            item = segmenter.preprocessing({"image": read_radiograph(path)})
            logits = run(item["image"][None].to(segmenter.device), segmenter.network)
        geometry = PadGeometry.of(item["geometry"])
        rows = slice(geometry.top, geometry.top + geometry.resized_height)
        columns = slice(geometry.left, geometry.left + geometry.resized_width)
        return logits.float().softmax(dim=1)[:, :, rows, columns].cpu()

    def _segmenter(self, switches: dict[str, bool]) -> DentalSegmenter:
        for name, value in {**self._defaults, **switches}.items():
            self.parser[name] = value
        self.parser.parse(reset=True)
        parts = (self.parser.get_parsed_content(part) for part in PARTS)
        return DentalSegmenter(self.network, *parts, self.device)
