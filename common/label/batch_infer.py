"""MONAI Label's batch inference, on a CPU too, and past images that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

_logger = logging.getLogger(__name__)


class RadiographBatchInfer(BatchInferTask):
    """Segments all, labelled or unlabelled images one by one and saves the masks under the tag "original"."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Run; the result has for each image what inference gives, or {"error": reason}."""

        def infer_or_report(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except HTTPException as error:
                _logger.warning("batch inference: %s", error.detail)
                return {"error": error.detail}

        # MONAI Label asks for several GPUs by default and divides by their number.
        has_gpus = torch.cuda.is_available() and request.get("multi_gpu", True)
        return super().__call__({**request, "multi_gpu": bool(has_gpus), "max_workers": 1}, datastore, infer_or_report)
