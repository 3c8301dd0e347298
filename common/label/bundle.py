"""The segmentation bundle as its own inference.yaml builds it: from a file to a mask, with any weights."""

from __future__ import annotations

import json
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
from ..errors import UserError, root_user_error
from ..io.segmentation_classes import ClassTable

INFERENCE, TRAINING = "inference.yaml", "train.yaml"
SWITCHES = ("flips", "sliding_window")  # knobs of inference.yaml that a request may set


class RequestError(UserError, ValueError):
    """A request holds a value that is not of the kind it has to be."""


class Bundle:
    """One bundle folder.

    Args:
        folder: with `configs` and `models`.

    Raises:
        RequestError: the folder is no bundle that can be served.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        missing = [name for name in (INFERENCE, TRAINING, "metadata.json") if not self.config(name).is_file()]
        if missing or not self.shipped_weights.is_file():
            raise RequestError(
                f"{self.folder}: found no {', '.join(missing) or self.shipped_weights}; expected a segmentation bundle "
                "with configs and models/model.pt. Give the folder of one."
            )
        metadata = json.loads(self.config("metadata.json").read_text(encoding="utf-8"))
        self.name = self.folder.name
        self.version: str = metadata["version"]
        self.description: str = metadata["description"]
        self.classes: ClassTable = self._parser().get_parsed_content("classes")

    def config(self, name: str) -> Path:
        """Path of a config file."""
        return self.folder / "configs" / name

    @property
    def shipped_weights(self) -> Path:
        """The weights that came with the bundle."""
        return self.folder / "models" / "model.pt"

    @property
    def labels(self) -> dict[str, int]:
        """Label of each class name, without the background."""
        return {name: label for label, name in enumerate(self.classes.names) if label}

    def pipeline(self, weights: str | Path, device: torch.device) -> Pipeline:
        """Build network and transforms with these weights on this device."""
        return Pipeline(self._parser(weights_path=str(weights), device=device))

    def _parser(self, **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self.config(INFERENCE)))
        parser.update({"bundle_root": str(self.folder), **overrides})
        return parser


class Pipeline:
    """What inference.yaml builds, ready to run; one call at a time, whatever thread it comes from.

    Args:
        parser: of inference.yaml, with device and weights set.
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.parser = parser
        self.network: nn.Module = parser.get_parsed_content("network")
        self.device: torch.device = parser.get_parsed_content("device")
        self._switches: dict[str, bool] = {name: parser[name] for name in SWITCHES}
        self._lock = threading.RLock()

    def segment(self, path: str | Path, **switches: bool) -> NDArray[np.uint8]:
        """Draw the mask of one radiograph.

        Args:
            path: in any format that `read_radiograph` knows.
            switches: `SWITCHES` to set otherwise than inference.yaml does.

        Returns:
            Labels [H, W], rows × columns exactly those of the radiograph.

        Raises:
            UnreadableRadiographError: there is no radiograph in the file.
        """
        with self._lock:
            item, inferer, postprocessing = self._prepared(path, switches)
            with torch.no_grad():
                logits = inferer(item["image"][None].to(self.device), self.network)
            item = postprocessing({**item, "pred": logits[0]})
            return np.ascontiguousarray(item["pred_displayed"].as_subclass(torch.Tensor).cpu().numpy().astype(np.uint8))

    def sample_probabilities(self, path: str | Path, run: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """Class probabilities at the network's size, the padding cut off.

        Args:
            path: of the radiograph.
            run: gives logits [S, K, H', W'] of S ways to see the image, from the image [1, 1, H', W'] and the network.

        Returns:
            float32 [S, K, h, w] on the CPU, each summing to one over K.

        Raises:
            UnreadableRadiographError: there is no radiograph in the file.
        """
        with self._lock:
            item, _, _ = self._prepared(path, {})
            with torch.no_grad():
                logits = run(item["image"][None].to(self.device), self.network)
        geometry = PadGeometry.of(item["geometry"])
        rows = slice(geometry.top, geometry.top + geometry.resized_height)
        columns = slice(geometry.left, geometry.left + geometry.resized_width)
        return logits.float().softmax(dim=1)[:, :, rows, columns].cpu()

    def _prepared(self, path: str | Path, switches: dict[str, bool]) -> tuple[dict, Any, Any]:
        # Only true and false get here: to the parser a text that starts with $ is code, which no request may bring.
        for name, value in switches.items():
            if name not in SWITCHES or not isinstance(value, bool):
                names = ", ".join(SWITCHES)
                raise RequestError(f"{name}: found {value!r}; expected true or false, for one of {names}.")
        for name, value in {**self._switches, **switches}.items():
            self.parser[name] = value
        self.parser.parse(reset=True)
        parts = (self.parser.get_parsed_content(part) for part in ("preprocessing", "inferer", "postprocessing"))
        preprocessing, inferer, postprocessing = parts
        try:
            return preprocessing({"image": str(path)}), inferer, postprocessing
        except RuntimeError as error:  # in which MONAI wraps what a transform raises
            cause = root_user_error(error)
            if cause is None:
                raise
            raise cause from error
