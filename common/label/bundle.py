"""The segmentation bundle as its own inference.yaml builds it, with the weights that are served now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.utils.others.generic import name_to_device

from ..errors import SettingsError
from ..files import read_json
from ..io.segmentation_classes import ClassTable
from ..pipelines import DentalSegmenter
from .weights_store import WeightsStore

INFERENCE, TRAINING, METADATA = "configs/inference.yaml", "configs/train.yaml", "configs/metadata.json"
WEIGHTS = "models/model.pt"

_logger = logging.getLogger(__name__)


class Bundle:
    """One bundle folder, with `configs` and `models`; SettingsError if it is none that can be served."""

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
        self.classes: ClassTable = self._build("classes")
        self.switches: dict[str, bool] = {name: self._build(name) for name in ("flips", "sliding_window")}
        self.labels = {name: label for label, name in enumerate(self.classes.names) if label}  # without background

    def segmenter(self, weights: str | Path, device: torch.device, **switches: bool) -> DentalSegmenter:
        """The pipeline of inference.yaml with these weights; `switches` as its settings are called.

        Never give text for a switch: to the parser a text that starts with $ is code.
        """
        return self._build("segmenter", weights_path=str(weights), device=device, **switches)

    def _build(self, item: str, **settings: Any) -> Any:
        parser = ConfigParser()
        parser.read_config(str(self.folder / INFERENCE))
        parser.update({"bundle_root": str(self.folder), **settings})
        return parser.get_parsed_content(item)


class ServedModel:
    """The bundle with the weights that are served now, built once for each version, device and setting of switches."""

    def __init__(self, bundle: Bundle, store: WeightsStore) -> None:
        self.bundle = bundle
        self.store = store
        self._built: dict[tuple[Any, ...], DentalSegmenter] = {}
        self._lock = threading.RLock()

    @contextmanager
    def segmenter(
        self, device: str | list[str] | None = None, **switches: bool
    ) -> Iterator[tuple[DentalSegmenter, int]]:
        """The pipeline on a device as MONAI Label names them, and its weights' version; for one thread at a time.

        Raises:
            WeightsError: the store is damaged.
        """
        with self._lock:
            version, name = self.store.served(), str(name_to_device(device))
            key = (version, name, *sorted({**self.bundle.switches, **switches}.items()))
            if key not in self._built:
                _logger.info("loading weights, version %d, on %s", version, name)
                self._built = {old: pipe for old, pipe in self._built.items() if old[:2] == key[:2]}
                self._built[key] = self.bundle.segmenter(self.store.path(version), torch.device(name), **switches)
            yield self._built[key], version
