"""What a DICOMweb archive holds for the app: radiographs, and the labels that belong to them as DICOM SEG."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from ..io import UnreadableRadiographError
from ..io.segmentation_classes import ClassTable
from .http_errors import ArchiveError
from .seg_conversion import labels_of_seg, segment_names

TIMEOUT_S = 60.0  # without an answer; the clients of MONAI Label wait as long
PIXEL_DATA = "7FE00010"

_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")  # becomes the name of a file
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredImage:
    """A series of the archive with what clients are told of it.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID, the id of the image.
        count: of the files in the series; a radiograph is one.
        info: PatientID and the like, as MONAI Label names them.
    """

    study: str
    series: str
    count: int
    info: dict[str, str]


@dataclass(frozen=True)
class StoredLabel:
    """A DICOM SEG of the archive.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        created: content date and time; sorts by time.
    """

    study: str
    series: str
    instance: str
    created: str = ""


class DicomArchive:
    """Asks an archive, anew each time: others store and delete there, too.

    Labels are the SEGs of a radiograph that have only segments of the class table and that somebody has looked at: a
    SEG whose segments all are AUTOMATIC is a model's, and a model must not be trained on what it said itself.

    Args:
        client: of DICOMweb.
        search_filter: what images have in common, by DICOM keyword.
        classes: the labels.
    """

    def __init__(self, client: DICOMwebClient, search_filter: Mapping[str, Any], classes: ClassTable) -> None:
        self._client = client
        self._search_filter = dict(search_filter)
        self.classes = classes
        self._labels_of_series: dict[tuple[str, int], dict[str, StoredLabel]] = {}
        self.url: str = client.base_url

    def images(self) -> dict[str, StoredImage]:
        """All radiographs by their id.

        Raises:
            ArchiveError: it gives no usable answer.
        """
        found = [_stored_image(item) for item in self._series(self._search_filter)]
        for image in found:
            if image.count > 1:
                _logger.warning("%s: not offered, a series of %d files", image.series, image.count)
        return {image.series: image for image in found if image.count == 1 and _UID.fullmatch(image.series)}

    def image(self, image_id: str) -> StoredImage | None:
        """One series by its id, or None if there is none or if it is no image.

        Raises:
            ArchiveError: it gives no usable answer.
        """
        if not _UID.fullmatch(image_id):  # the archive would take * for anything
            return None
        found = self._series({**self._search_filter, "SeriesInstanceUID": image_id})
        return next((_stored_image(item) for item in found if item.SeriesInstanceUID == image_id), None)

    def fetch_image(self, image: StoredImage, path: Path) -> None:
        """Write a radiograph as the DICOM file that the archive has.

        Raises:
            UnreadableRadiographError: the series holds several files.
            ArchiveError: it gives no usable answer.
        """
        datasets, count = [], image.count
        if count == 1:
            with self._asking():
                datasets = self._client.retrieve_series(image.study, image.series)
            count = len(datasets)
        if count != 1:
            raise UnreadableRadiographError(
                image.series, f"a series of {count} files", "one radiograph in a series", "Store each in its own."
            )
        datasets[0].save_as(path)

    def labels(self) -> dict[str, StoredLabel]:
        """The newest label of each image, by the image's id.

        Raises:
            ArchiveError: it gives no usable answer.
        """
        known = {}
        for item in self._series({"Modality": "SEG"}):
            key = str(item.SeriesInstanceUID), _count(item)
            # What a series says does not change, and asking for each takes long.
            before = self._labels_of_series.get(key)
            known[key] = self._read_series(str(item.StudyInstanceUID), key[0]) if before is None else before
        self._labels_of_series = known
        newest: dict[str, StoredLabel] = {}
        for labels in known.values():
            for image_id, label in labels.items():
                newest[image_id] = max(newest.get(image_id, label), label, key=lambda one: (one.created, one.instance))
        return newest

    def read_label(self, label: StoredLabel) -> NDArray[np.uint8]:
        """Labels [H, W] of a SEG.

        Raises:
            ArchiveError: it gives no usable answer.
            DicomSegError: no SEG of one radiograph.
        """
        with self._asking():
            dataset = self._client.retrieve_instance(label.study, label.series, label.instance)
        return labels_of_seg(dataset, f"label {label.instance}", self.classes)[0]

    def store_label(self, path: Path) -> StoredLabel:
        """Store a SEG file; whether it has come in is for `labels` to say.

        Raises:
            ArchiveError: it was not taken.
        """
        dataset = dcmread(path)
        with self._asking():
            answer = self._client.store_instances([dataset])
        if answer.get("FailedSOPSequence"):
            reason = answer.FailedSOPSequence[0].get("FailureReason", "none given")
            raise ArchiveError(
                f"{self.url}: found that the archive refuses the label (failure reason {reason}); expected it to be "
                "stored. See the archive's log."
            )
        return StoredLabel(*(str(dataset[f"{level}InstanceUID"].value) for level in ("Study", "Series", "SOP")))

    def _series(self, search_filter: Mapping[str, Any]) -> list[Dataset]:
        with self._asking():
            return [Dataset.from_json(item) for item in self._client.search_for_series(search_filters=search_filter)]

    def _read_series(self, study: str, series: str) -> dict[str, StoredLabel]:
        with self._asking():
            answer = self._client.retrieve_series_metadata(study, series)
            datasets = [Dataset.from_json({**item, PIXEL_DATA: {"vr": "OW"}}) for item in answer]
        labels: dict[str, StoredLabel] = {}
        for dataset in sorted(datasets, key=_created):
            problem = self._why_no_label(dataset)
            if problem:
                _logger.warning("SEG series %s: not taken for a label, %s", series, problem)
                continue
            image_id = str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
            labels[image_id] = StoredLabel(study, series, str(dataset.SOPInstanceUID), _created(dataset))
        return labels

    def _why_no_label(self, dataset: Dataset) -> str:
        """Why a SEG is no label for this app; "" if it is one."""
        if not dataset.get("ReferencedSeriesSequence"):
            return "it does not say of which image it is"
        names = segment_names(dataset).values()
        unknown = sorted(set(names) - set(self.classes.names[1:]))
        if unknown or not names:
            return f"found segments {unknown}; expected {', '.join(self.classes.names[1:])}"
        if all(segment.get("SegmentAlgorithmType") == "AUTOMATIC" for segment in dataset.SegmentSequence):
            return "a model drew it and nobody has submitted it"
        return ""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (requests.RequestException, InvalidDicomError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ArchiveError(
                f"{self.url}: found no usable answer of the archive ({reason}); expected DICOMweb. Check that it runs, "
                "and its address."
            ) from error


def archive_client(url: str) -> DICOMwebClient:
    """A client with MONAI Label's own settings for user, password and prefixes, which gives up after a while."""
    from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
    from dicomweb_client.session_utils import create_session, create_session_from_user_pass

    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if "googleapis.com" in url:
        session = create_session_from_gcp_credentials()
    else:
        session = create_session_from_user_pass(user, password) if user and password else create_session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _TimedAdapter())
    client = DICOMwebClientX(
        url=url,
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(retry=False)  # half a minute, in which the server answers nobody
    return client


class _TimedAdapter(HTTPAdapter):
    """Requests without a time limit would wait for ever, and the whole server with them."""

    def send(self, request: Any, **kwargs: Any) -> Any:
        return super().send(request, **{**kwargs, "timeout": kwargs.get("timeout") or TIMEOUT_S})


def _stored_image(item: Dataset) -> StoredImage:
    keys = ("StudyDate", "StudyTime", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    info = {key: str(item.get(key) or "UNK") for key in keys}
    return StoredImage(info["StudyInstanceUID"], info["SeriesInstanceUID"], _count(item), info)


def _count(item: Dataset) -> int:
    """Files in a series; an archive that does not say is asked when the image is fetched."""
    return int(item.get("NumberOfSeriesRelatedInstances") or 1)


def _created(dataset: Dataset) -> str:
    return f"{dataset.get('ContentDate', '')}{dataset.get('ContentTime', '')}"
