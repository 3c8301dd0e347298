"""A real Orthanc with DICOMweb on loopback, and radiographs in it."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import requests
from dicomweb_client import DICOMwebClient
from label_server import free_port
from pydicom import dcmread

from common.io import read_radiograph
from common.io.dicom_dx import DxSettings, dx_dataset, write_dx

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


class Orthanc:
    """An archive of its own in a folder, started and stopped at will; it keeps what it has."""

    def __init__(self, folder):
        if not shutil.which("Orthanc") or not PLUGIN.exists():
            pytest.skip("needs Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb")
        self.folder = folder
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/dicom-web"
        self.client = DICOMwebClient(self.url)
        self.process = None
        folder.mkdir()
        config = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(config))

    def start(self):
        with (self.folder / "orthanc.log").open("ab") as log:
            command = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()[-2000:]
            try:
                requests.get(f"{self.url}/studies", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                assert time.monotonic() < deadline, "Orthanc did not start"
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def store(self, *paths):
        """Store DICOM files; returns the SeriesInstanceUID of the first."""
        datasets = [dcmread(path) for path in paths]
        self.client.store_instances(datasets)
        return str(datasets[0].SeriesInstanceUID)

    def instances(self):
        """Orthanc's own ids of all files that it has."""
        return sorted(requests.get(f"{self.root}/instances", timeout=30).json())

    def segmentations(self):
        """All SEGs, oldest first."""
        series = self.client.search_for_series(search_filters={"Modality": "SEG"})
        uids = [(one["0020000D"]["Value"][0], one["0020000E"]["Value"][0]) for one in series]
        found = [dataset for one in uids for dataset in self.client.retrieve_series(*one)]
        return sorted(found, key=lambda dataset: (dataset.ContentDate, dataset.ContentTime))

    def remove_series(self, uid):
        """Delete a series by its SeriesInstanceUID."""
        found = requests.post(f"{self.root}/tools/lookup", data=uid, timeout=30).json()
        for entry in found:
            requests.delete(f"{self.root}{entry['Path']}", timeout=30).raise_for_status()


def make_dx(image, path, spacing_mm=(0.2, 0.1)):
    """The DX that png_to_dx makes of a picture."""
    pixels = read_radiograph(image).pixels
    return write_dx(dx_dataset(pixels, DxSettings(body_part="JAW"), spacing_mm), path, pixels)
