"""What a DICOMweb archive holds for the app: radiographs, and the labels that belong to them as DICOM SEG."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from ..errors import DatasetError
from ..io import UnreadableRadiographError
from ..io.segmentation_classes import ClassTable
from .services import ServiceError, asking, limited

PIXEL_DATA = "7FE00010"
LOG_IN = "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"

_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")  # becomes the name of a file
_logger = logging.getLogger(__name__)


class DicomArchive:
    """Asks an archive, anew each time: others store and delete there, too. Each method may raise ServiceError.

    Images have the `search_filter`, by DICOM keyword, in common. Labels are the SEGs of a radiograph that have only
    segments of the class table and that somebody has looked at: a SEG whose segments all are AUTOMATIC is a model's,
    and a model must not be trained on what it said itself.
    """

    def __init__(self, client: DICOMwebClient, search_filter: Mapping[str, Any], classes: ClassTable) -> None:
        self._client = client
        self._search_filter = dict(search_filter)
        self.classes = classes
        self._labels_of_series: dict[tuple[str, int], dict[str, Dataset]] = {}
        self.url: str = client.base_url

    def images(self) -> dict[str, Dataset]:
        """What the archive says of each radiograph's series, by its SeriesInstanceUID, the id of the image."""
        found = self._series(self._search_filter)
        images = {}
        for item in found:
            image_id, count = str(item.get("SeriesInstanceUID")), file_count(item)
            if count > 1:
                _logger.warning("%s: not offered, a series of %d files", image_id, count)
            elif count == 1 and _UID.fullmatch(image_id):
                images[image_id] = item
        return images

    def image(self, image_id: str) -> Dataset | None:
        """One series by its id, or None if there is none or if it is no image."""
        if not _UID.fullmatch(image_id):  # the archive would take * for anything
            return None
        found = self._series({**self._search_filter, "SeriesInstanceUID": image_id})
        return next((item for item in found if item.SeriesInstanceUID == image_id), None)

    def fetch_image(self, image: Dataset, path: Path) -> None:
        """Write a radiograph as the DICOM file that the archive has.

        Raises:
            UnreadableRadiographError: the series holds several files.
        """
        datasets, count = [], file_count(image)
        if count == 1:
            with self._asking():
                datasets = self._client.retrieve_series(image.StudyInstanceUID, image.SeriesInstanceUID)
            count = len(datasets)
        if count != 1:
            raise UnreadableRadiographError(
                image.SeriesInstanceUID, f"a series of {count} files", "one radiograph", "Store each in its own series."
            )
        datasets[0].save_as(path)

    def labels(self) -> dict[str, Dataset]:
        """The header of the newest label of each image, by the image's id."""
        known = {}
        for item in self._series({"Modality": "SEG"}):
            key = str(item.SeriesInstanceUID), file_count(item)
            # What a series says does not change, and asking for each takes long.
            before = self._labels_of_series.get(key)
            known[key] = self._read_series(str(item.StudyInstanceUID), key[0]) if before is None else before
        self._labels_of_series = known
        newest: dict[str, Dataset] = {}
        for labels in known.values():
            for image_id, label in labels.items():
                newest[image_id] = max(newest.get(image_id, label), label, key=_age)
        return newest

    def read_label(self, label: Dataset) -> NDArray[np.uint8]:
        """Labels [H, W] of a SEG; DatasetError if it is none of one radiograph."""
        with self._asking():
            uids = (label.StudyInstanceUID, label.SeriesInstanceUID, label.SOPInstanceUID)
            dataset = self._client.retrieve_instance(*uids)
        return labels_of_seg(dataset, f"label {label.SOPInstanceUID}", self.classes)

    def store_label(self, path: Path) -> str:
        """Store a SEG file and give its SOPInstanceUID; whether it has come in is for `labels` to say."""
        dataset = dcmread(path)
        with self._asking():
            answer = self._client.store_instances([dataset])
        if answer.get("FailedSOPSequence"):
            reason = answer.FailedSOPSequence[0].get("FailureReason", "none given")
            raise ServiceError(
                f"{self.url}: found that the archive refuses the label (failure reason {reason}); expected it to be "
                "stored. See the archive's log."
            )
        return str(dataset.SOPInstanceUID)

    def _asking(self) -> AbstractContextManager[None]:
        return asking(self.url, LOG_IN)

    def _series(self, search_filter: dict[str, Any]) -> list[Dataset]:
        with self._asking():
            return [Dataset.from_json(item) for item in self._client.search_for_series(search_filters=search_filter)]

    def _read_series(self, study: str, series: str) -> dict[str, Dataset]:
        with self._asking():
            answer = self._client.retrieve_series_metadata(study, series)
            datasets = [Dataset.from_json({**item, PIXEL_DATA: {"vr": "OW"}}) for item in answer]
        labels: dict[str, Dataset] = {}
        for dataset in sorted(datasets, key=_age):
            problem = self._why_no_label(dataset)
            if problem:
                _logger.warning("SEG series %s: not taken for a label, %s", series, problem)
            else:
                labels[str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)] = dataset
        return labels

    def _why_no_label(self, dataset: Dataset) -> str:
        """Why a SEG is no label for this app; "" if it is one."""
        if not dataset.get("ReferencedSeriesSequence"):
            return "it does not say of which image it is"
        names = _segment_names(dataset).values()
        unknown = sorted(set(names) - set(self.classes.names[1:]))
        if unknown or not names:
            return f"found segments {unknown}; expected {', '.join(self.classes.names[1:])}"
        if all(segment.get("SegmentAlgorithmType") == "AUTOMATIC" for segment in dataset.SegmentSequence):
            return "a model drew it and nobody has submitted it"
        return ""


def archive_client(url: str) -> DICOMwebClient:
    """A client with MONAI Label's own settings for user, password and prefixes, which gives up after a while."""
    from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
    from dicomweb_client.session_utils import create_session, create_session_from_user_pass

    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if "googleapis.com" in url:
        session = create_session_from_gcp_credentials()
    else:
        session = create_session_from_user_pass(user, password) if user and password else create_session()
    client = DICOMwebClientX(
        url=url,
        session=limited(session, url),
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(retry=False)  # half a minute, in which the server answers nobody
    return client


def labels_of_seg(dataset: Dataset, name: str, classes: ClassTable) -> NDArray[np.uint8]:
    """Labels [H, W] of a SEG of one radiograph with its pixels, whoever made it, by the names of its segments.

    A pixel in several segments gets the largest label. Messages call the SEG by `name`.

    Raises:
        DatasetError: no SEG, a volume, or a segment that is no class.
    """
    try:
        if dataset.SOPClassUID != SegmentationStorage:
            raise DatasetError(f"{name}: found {dataset.SOPClassUID.name}; expected a DICOM SEG.")
        frames = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
        names = _segment_names(dataset)
        groups = dataset.PerFrameFunctionalGroupsSequence
        numbers = [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in groups]
        labels = [classes.label_of(names[number]) for number in numbers]
    except DatasetError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DatasetError(f"{name}: found no readable DICOM SEG ({error}); expected one of a radiograph.") from error
    if len(set(numbers)) != len(numbers):
        raise DatasetError(f"{name}: found several frames of one segment, a volume; expected one radiograph.")
    mask = np.zeros(frames.shape[1:], np.uint8)
    for place in np.argsort(labels, kind="stable"):
        mask[frames[place] > 0] = labels[place]
    return mask


def file_count(item: Dataset) -> int:
    """Files in a series; an archive that does not say is asked when the image is fetched."""
    return int(item.get("NumberOfSeriesRelatedInstances") or 1)


def _segment_names(dataset: Dataset) -> dict[int, str]:
    """Names of a SEG's segments by their numbers, in lower case as the class table has them."""
    segments = dataset.get("SegmentSequence") or []
    return {int(item.SegmentNumber): str(item.SegmentLabel).strip().lower() for item in segments}


def _age(dataset: Dataset) -> tuple[str, str]:
    """Sorts by content date and time."""
    return f"{dataset.get('ContentDate', '')}{dataset.get('ContentTime', '')}", str(dataset.SOPInstanceUID)
