"""MONAI Label's stock app `monaibundle` over packaged bundles: a real server process and MONAI Label's own client."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from label_data import BUNDLE, MODEL, dice, truth_folder, write_studies
from label_server import DENTAL_MODEL, client_of, free_port, kill_group, wait_for_training, wait_until_up
from monai.bundle import ConfigWorkflow
from PIL import Image

from common.io.mask_files import read_mask
from common.packaging.packaging import package_bundle

pytestmark = pytest.mark.slow

AFFINES = {"slice": np.diag([-0.1, -0.2, 1, 1]), "turned": np.diag([0.1, 0.2, 1, 1])}
OFFLINE = ["--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]


@pytest.fixture(scope="module")
def server(tiny_bundle, tmp_path_factory):
    """The stock app on phantoms and a sample, with the dental bundle and one whose network trains in seconds."""
    folder = tmp_path_factory.mktemp("stock")
    monailabel = [sys.executable, "-m", "monailabel.main"]
    subprocess.run(
        [*monailabel, "apps", "--download", "--name", "monaibundle", "--output", "apps"], cwd=folder, check=True
    )
    for bundle in (BUNDLE, edited(tiny_bundle, folder)):
        package_bundle(bundle, folder / "apps" / "monaibundle" / "model")
    write_images(folder / "studies")
    port = free_port()
    command = [*monailabel, "start_server", "--app", "apps/monaibundle", "--studies", "studies", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--conf", "models", f"{DENTAL_MODEL},{MODEL}", *OFFLINE]
    environment = {**os.environ, "PYTHONPATH": str(write_stand_in(folder)), "OMP_NUM_THREADS": "1"}
    log, address = folder / "server.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp
        )
    try:
        wait_until_up(process, address, log)
        yield folder, client_of(address, folder / "client")
    finally:
        kill_group(process)


def edited(tiny_bundle, folder):
    """The tiny bundle as its user could edit it: no denoiser.pt to begin with, short and fast trainings."""
    copy = folder / tiny_bundle.name
    shutil.copytree(tiny_bundle, copy)
    config = copy / "configs" / "train.yaml"
    text = config.read_text()
    for knob in ("pretrained: none", "epoch_length: 40", "learning_rate: 0.003"):
        text = re.sub(rf"^{knob.split()[0]} .*", knob, text, flags=re.MULTILINE)
    config.write_text(text)
    return copy


def write_stand_in(folder):
    """The stand-in for torchvision of the bundle's docs, for where it cannot be imported."""
    package = folder / "stand_in" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "utils.py").write_text("make_grid = save_image = None\n")
    return package.parent


def write_images(studies):
    """Phantoms, the last of them also as NIfTI of two axes, and one of the bundle's samples."""
    write_studies(studies, 6)
    shutil.copy(sorted((BUNDLE / "samples" / "images").glob("*.png"))[0], studies / "sample.png")
    pixels = np.asarray(Image.open(studies / "tooth_5.png"))
    for name, affine in AFFINES.items():
        nibabel.save(nibabel.Nifti1Image(pixels.T, affine), studies / f"{name}.nii.gz")


@pytest.fixture(scope="module", params=[DENTAL_MODEL, MODEL])
def own_masks(request, tiny_bundle, server):
    """The model's name, and for each image the mask that the bundle's own inference draws."""
    folder, _ = server
    bundle = {DENTAL_MODEL: BUNDLE, MODEL: tiny_bundle}[request.param]
    knobs = {"bundle_root": str(bundle), "dataset_dir": str(folder / "studies"), "overlay": False, "sheet_rows": 0}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.yaml"),
        workflow_type="infer",
        logging_file=False,
        output_dir=str(folder / request.param),
        **knobs,
    )
    workflow.initialize()
    workflow.run()
    names = [path.name for path in sorted((folder / "studies").iterdir()) if path.suffix in (".png", ".gz")]
    masks = {name: read_mask(folder / request.param / f"{name.replace('.', '_')}_mask.png") for name in names}
    return request.param, masks


def test_masks_are_those_of_the_bundles_own_inference(server, own_masks):
    _, client = server
    model, expected = own_masks
    assert len(expected) == 9
    assert client.info()["models"][model]["dimension"] == 2
    for name, mask in expected.items():
        path, params = client.infer(model, name.split(".")[0], {})
        found = read_mask(path)
        assert Path(path).suffixes == Path(name).suffixes and np.array_equal(found, mask), name
        assert set(np.unique(found).tolist()) <= {0, *params["label_names"].values()}
    assert len({label for mask in expected.values() for label in np.unique(mask).tolist()}) > 1


def test_masks_of_nifti_have_its_axes_and_affine(server):
    folder, client = server
    for name, affine in AFFINES.items():
        image = nibabel.load(folder / "studies" / f"{name}.nii.gz")
        mask = nibabel.load(client.infer(MODEL, name, {})[0])
        assert mask.shape == (*image.shape, 1) and mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, affine, atol=1e-6)


def test_training_twice_leaves_the_weights_that_are_served_and_learns_the_labels(server):
    folder, client = server
    truth = truth_folder(folder / "studies")
    bundle = folder / "apps" / "monaibundle" / "model" / MODEL
    shipped = (bundle / "models" / "model.pt").read_bytes()
    before = mean_dice(client, truth)
    for count in (4, 6):  # a second training has more labels, and starts from the served weights again
        for number in range(count):
            client.save_label(f"tooth_{number}", str(truth / f"tooth_{number}.png"))
        client.train_start(MODEL, {"max_epochs": 1})
        status = wait_for_training(client)
        assert status["status"] == "DONE", status
    assert (bundle / "models" / "model.pt").read_bytes() == shipped
    assert mean_dice(client, truth) == before
    runs = json.loads((bundle / "outputs" / "train" / "run_record.json").read_text())["runs"]
    assert [run["run_id"] for run in runs] == ["run", "run"]

    shutil.copy(bundle / "outputs" / "train" / "model.pt", bundle / "models" / "fine_tuned.pt")
    after = mean_dice(client, truth, model_filename="fine_tuned.pt")
    assert after > before + 0.1, (before, after)


def mean_dice(client, truth, **params):
    masks = {path: read_mask(client.infer(MODEL, path.stem, params)[0]) for path in sorted(truth.iterdir())}
    return np.mean([dice(mask, np.asarray(Image.open(path))) for path, mask in masks.items()])
