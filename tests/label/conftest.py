"""Fixtures of the MONAI Label tests; see the other conftest for when they are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle folder whose network trains in a second."""
    from label_data import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny_segmentation")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder of eight phantoms, 45 × 61."""
    from label_data import write_studies

    return write_studies(tmp_path / "studies", 8)


@pytest.fixture
def client(tiny_bundle: Path, studies: Path, tmp_path: Path):
    """MONAI Label's server in this process."""
    from label_data import app_client

    return app_client(studies, bundle_dir=tiny_bundle, weights_dir=tmp_path / "weights")


@pytest.fixture
def orthanc(tmp_path: Path):
    """A running archive, empty."""
    from label_server import Orthanc

    archive = Orthanc(tmp_path / "orthanc")
    archive.start()
    yield archive
    archive.process.kill()  # nobody needs what it holds; to stop it takes seconds
    archive.process.wait(30)
