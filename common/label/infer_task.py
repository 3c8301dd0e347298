"""MONAI Label's inference by the bundle's own pipeline."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from ..io import read_radiograph
from .bundle import SWITCHES, Bundle, Pipeline
from .http_errors import BAD_REQUEST, as_http_errors
from .label_checks import named_in_errors
from .readable import readable_file
from .request_files import request_folder
from .weights_store import WeightsStore
from .writer import default_suffix, result_suffix, write_result

_logger = logging.getLogger(__name__)


class ServedModel:
    """The bundle with the weights that are served now, built once for each version and device.

    Args:
        bundle: whose network it is.
        store: of the weights.
    """

    def __init__(self, bundle: Bundle, store: WeightsStore) -> None:
        self.bundle = bundle
        self.store = store
        self._built: tuple[int, str, Pipeline] | None = None

    def pipeline(self, device: str) -> tuple[Pipeline, int]:
        """The pipeline and the version of its weights.

        Raises:
            WeightsStoreError: the store is damaged.
        """
        version = self.store.served()
        if self._built is None or self._built[:2] != (version, device):
            _logger.info("loading weights, version %d, on %s", version, device)
            self._built = (version, device, self.bundle.pipeline(self.store.path(version), torch.device(device)))
        return self._built[2], version


class RadiographInferTask(InferTask):
    """From a radiograph to a mask with its rows × columns, in a file.

    Args:
        model: what to run.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=model.bundle.labels,
            dimension=2,
            description=model.bundle.description,
            config={"device": device_list(), **dict.fromkeys(SWITCHES, False)},
        )
        self.model = model

    def is_valid(self) -> bool:
        """Always: the bundle was checked when it was loaded."""
        return True

    def info(self) -> dict[str, Any]:
        """What clients are told, with the version of bundle and weights."""
        served = self.model.store.served()
        return {**super().info(), "version": self.model.bundle.version, "weights_version": served}

    def get_path(self, validate: bool = True) -> str:
        """The weights file that is served."""
        return str(self.model.store.path(self.model.store.served()))

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`, a path.

        Takes "result_extension" (see `writer`), "device", and the switches of `bundle`.

        Returns:
            Path of the mask, which the caller removes, and what to tell the client.

        Raises:
            HTTPException: 400 for an image that cannot be read or a value that cannot be used.
        """
        path = request["image"]
        if not isinstance(path, str):
            raise HTTPException(BAD_REQUEST, "image: found pixels; expected the id of an image or an uploaded file.")
        with as_http_errors():
            return self._segment(path, request)

    def _segment(self, path: str, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        start = time.perf_counter()
        pipeline, version = self.model.pipeline(name_to_device(request.get("device")))
        switches = {name: request[name] for name in SWITCHES if name in request}
        bundle = self.model.bundle
        with named_in_errors(Path(path).name), readable_file(path) as file:
            radiograph = read_radiograph(file)
            suffix = result_suffix(request.get("result_extension") or default_suffix(path))
            mask = pipeline.segment(file, **switches)
            done = time.perf_counter()
            # Beside its place first, so that nothing is left there when it cannot be written.
            result = str(request_folder() / f"mask_{uuid.uuid4().hex}{suffix}")
            write_result(mask, result, radiograph, bundle.classes, f"{bundle.name} weights {version}")
        written = time.perf_counter()
        latencies = {"infer": round(done - start, 3), "write": round(written - done, 3)}
        return result, {
            "label_names": self.labels,
            "weights_version": version,
            "latencies": {**latencies, "total": round(written - start, 3)},
            "centroids": {},
        }
