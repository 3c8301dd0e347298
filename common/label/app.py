"""The MONAI Label app: the dental segmenter on a folder of radiographs or on an archive."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from .active_learning import Epistemic, EpistemicScoring
from .bundle import Bundle, ServedModel
from .checked_archive import CheckedArchive, use_own_conversion
from .client_requests import CheckedSessions, is_of_request, refusal
from .datastore import CheckedDatastore
from .dicom_archive import DicomArchive, archive_client
from .infer_task import RadiographBatchInfer, RadiographInferTask
from .server_guard import guard_server
from .train_task import RadiographTrainTask
from .weights_store import WeightsStore

DEFAULT_BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "dental_radiograph_segmentation"
EPISTEMIC = "epistemic"


class RadiographApp(MONAILabelApp):
    """Serves one segmentation bundle.

    Args:
        app_dir: of main.py; fine-tuned weights are kept below it.
        studies: folder of the radiographs, or URL of an archive.
        conf: "bundle_dir" for another bundle, "weights_dir" for another folder of fine-tuned weights, "cors_origins"
            for origins of other pages that may send requests, as a JSON list.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        guard_server(_origins(conf.get("cors_origins") or "[]"))
        self.bundle = Bundle(conf.get("bundle_dir") or DEFAULT_BUNDLE)
        weights_dir = conf.get("weights_dir") or Path(app_dir) / "model" / self.bundle.name
        self.store = WeightsStore(weights_dir, self.bundle.shipped_weights)
        self.model = ServedModel(self.bundle, self.store)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Radiographs",
            description=f"{self.bundle.description}. For research; not a medical device.",
            version=self.bundle.version,
            labels=self.bundle.labels,
        )

    def init_datastore(self) -> Datastore:
        """The checked folder, or for a URL the checked archive (XNAT and DSA: MONAI Label's own datastores)."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return CheckedDatastore(
            self.studies,
            self.bundle.classes,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        """In place of MONAI Label's, which begins by downloading dcmqi."""
        classes, model = self.bundle.classes, f"{self.bundle.name} {self.bundle.version}"
        use_own_conversion(classes, model)
        archive = DicomArchive(archive_client(self.studies), settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, classes)
        cache = settings.MONAI_LABEL_DATASTORE_CACHE_PATH or settings.MONAI_LABEL_DICOMWEB_CACHE_PATH
        return CheckedArchive(archive, cache.strip(), model)

    def init_infers(self) -> dict[str, InferTask]:
        """One model, named as the bundle."""
        return {self.bundle.name: RadiographInferTask(self.model)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One training of that name."""
        return {self.bundle.name: RadiographTrainTask(self.bundle, self.store)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Predictive entropy."""
        return {EPISTEMIC: EpistemicScoring(self.model)}

    def init_strategies(self) -> dict[str, Strategy]:
        """By predictive entropy, at random, or in order."""
        return {EPISTEMIC: Epistemic(EpistemicScoring(self.model)), "random": Random(), "first": First()}

    def init_batch_infer(self) -> Callable:
        """One that runs on a CPU."""
        return RadiographBatchInfer()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the datastore, or a file that is of this request or what its session keeps: no other.

        Raises:
            ImageNotFoundException: there is no such image.
        """
        image, session, sessions = request.get("image"), request.get("session"), self.sessions()
        kept = None
        if sessions is not None and isinstance(session, dict):
            kept = sessions.get_session(str(session.get("name")))
        is_own = isinstance(image, str) and (is_of_request(image) or (kept is not None and image == kept.image))
        if isinstance(image, str) and not is_own and not (datastore or self.datastore()).get_image_uri(image):
            raise ImageNotFoundException(
                f"image: found no {image!r} in the datastore; expected the id of an image or of a session, or a file."
            )
        return super().infer(request, datastore)

    def _load_sessions(self, load: bool = False) -> CheckedSessions | None:
        return CheckedSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None


def _origins(text: str) -> list[str]:
    with suppress(ValueError):
        origins = json.loads(text)
        if isinstance(origins, list) and all(re.fullmatch(r"https?://[^/@]+/?", str(origin)) for origin in origins):
            return origins
    raise refusal("MONAI_LABEL_CORS_ORIGINS", text, "a list such as '[\"http://NAME:PORT\"]'")
