"""MONAI Label's inference by the bundle's own pipeline, of one image or of many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list
from pydantic import AfterValidator

from ..errors import UserError
from ..io import read_radiograph
from .bundle import ServedModel
from .client_files import RESULT_SUFFIXES, default_suffix, readable_file, write_result
from .client_requests import Strict, new_request_folder, parsed, refusal, request_folder

_logger = logging.getLogger(__name__)


def _suffix_of_masks(name: str) -> str:
    for suffix in RESULT_SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    if name:
        raise ValueError(f"one of {', '.join(RESULT_SUFFIXES)}, as others cannot hold labels")
    return ""


class InferParameters(Strict):
    """What a client may choose for one mask: the file's suffix, and what inference.yaml sets otherwise."""

    result_extension: Annotated[str, AfterValidator(_suffix_of_masks)] | None = None
    flips: bool = False
    sliding_window: bool = False

    def switches(self, only_given: bool = True) -> dict[str, bool]:
        """The settings of inference.yaml among them."""
        return self.model_dump(exclude={"result_extension"}, exclude_unset=only_given)


class RadiographInferTask(InferTask):
    """From a radiograph to a mask with its rows × columns, in a file."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=model.bundle.labels,
            dimension=2,
            description=model.bundle.description,
            config={"device": device_list(), **InferParameters().switches(only_given=False)},
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
        """Segment `request["image"]`, a path, on `request["device"]`; see `InferParameters` for the rest.

        Returns:
            Path of the mask, which the caller removes, and what to tell the client.

        Raises:
            UserError: an image that cannot be read or a value that cannot be used.
        """
        path, chosen = request["image"], parsed(InferParameters, request)
        if not isinstance(path, str):
            raise refusal("image", "pixels", "the id of an image or an uploaded file")
        bundle, start = self.model.bundle, time.perf_counter()
        with readable_file(path, Path(path).name) as file:
            radiograph = read_radiograph(file)
            with self.model.segmenter(request.get("device"), **chosen.switches()) as (segmenter, version):
                mask = segmenter.segment(radiograph).mask.numpy()
            done = time.perf_counter()
            suffix = chosen.result_extension or default_suffix(path, radiograph)
            drawn_by = f"{bundle.name} weights {version}"
            result = write_result(mask, request_folder(), suffix, radiograph, bundle.classes, drawn_by)
        written = time.perf_counter()
        seconds = {"infer": done - start, "write": written - done, "total": written - start}
        return str(result), {
            "label_names": self.labels,
            "weights_version": version,
            "latencies": {name: round(value, 3) for name, value in seconds.items()},
            "centroids": {},
        }


class RadiographBatchInfer(BatchInferTask):
    """Segments all, labelled or unlabelled images one by one and saves the masks under the tag "original"."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Run; the result has for each image what inference gives, or {"error": reason}."""

        def infer_or_report(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except (UserError, HTTPException, ImageNotFoundException) as error:
                reason = getattr(error, "detail", None) or getattr(error, "msg", None) or str(error)
                _logger.warning("batch inference: %s", reason)
                return {"error": reason}

        # MONAI Label asks for several GPUs by default and divides by their number.
        has_gpus = torch.cuda.is_available() and request.get("multi_gpu", True)
        one_by_one = {**request, "multi_gpu": bool(has_gpus), "max_workers": 1}
        with new_request_folder():
            return super().__call__(one_by_one, datastore, infer_or_report)
