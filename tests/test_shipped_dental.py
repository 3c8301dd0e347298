"""The dental weights in the repository are the trained ones: denoiser and segmenter do what they are for."""

import json

import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from common.data.label_budget import labelled_radiographs
from common.data.mask_transforms import PadResized
from common.evaluation.segmentation_evaluation import segment_and_score
from common.evaluation.segmentation_metrics import summarise_scores
from common.fingerprint import network_sha256
from common.io import read_radiograph
from common.io.mask_files import read_mask
from common.networks.diffusion_segmenter import FINAL_CONVOLUTION
from common.networks.weights import read_weights
from common.seeding import seeded_normal

BUNDLE = "bundles/dental_radiograph_segmentation"


def parse(repository, name):
    parser = ConfigParser()
    parser.read_config(str(repository / BUNDLE / "configs" / f"{name}.yaml"))
    parser["bundle_root"] = str(repository / BUNDLE)
    parser["device"] = "$torch.device('cpu')"
    return parser


@pytest.fixture
def sample(repository):
    return sorted((repository / BUNDLE / "samples" / "images").glob("*.png"))[0]


def test_denoiser_takes_noise_off_a_radiograph(repository, sample):
    """At a quarter of the schedule it leaves less than a tenth of the squared error that guessing zero noise leaves."""
    parser = parse(repository, "generate")
    denoiser, schedule = parser.get_parsed_content("network"), parser.get_parsed_content("schedule")
    image = PadResized(["image"], parser.get_parsed_content("image_size"))({"image": read_radiograph(sample).pixels})[
        "image"
    ]
    x0 = image[None].as_subclass(torch.Tensor) * 2 - 1
    noise, timesteps = seeded_normal([0], tuple(x0.shape[1:])), torch.tensor([1000])
    with torch.inference_mode():
        found = denoiser(schedule.add_noise(x0, noise, timesteps), timesteps)
    assert (found - noise).square().mean() < 0.1 * noise.square().mean()


def test_segmenter_was_pretrained_and_then_trained(repository):
    """Fine-tuning moves every weight a little: from this denoiser, its weights are nearer than from any other."""
    denoiser, segmenter = (read_weights(repository / BUNDLE / "models" / name) for name in ("denoiser.pt", "model.pt"))
    assert denoiser.keys() == segmenter.keys()
    shared = [key for key in denoiser if not key.startswith(FINAL_CONVOLUTION)]
    first, second = (torch.cat([weights[key].float().flatten() for key in shared]) for weights in (denoiser, segmenter))
    assert not torch.equal(first, second)
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.5


def test_samples_are_a_labelled_data_set_of_the_generators(repository, sample, tmp_path):
    folder = repository / BUNDLE / "samples"
    items = labelled_radiographs(folder, "all", 0.0, 0, tmp_path, 0.0)
    assert len(items) >= 8 and {item["mask_values"] for item in items} == {"labels"}
    for item in items:
        assert read_mask(item["label"]).shape == tuple(read_radiograph(item["image"]).pixels.shape[-2:])
    with Image.open(sample) as image:
        assert image.text["Synthetic"] == "true"
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total < 2 * 2**20


def test_the_bundle_carries_the_weights_that_its_figures_are_of(repository):
    report = json.loads((repository / BUNDLE / "docs" / "evaluation.json").read_text())
    network = parse(repository, "inference").get_parsed_content("network")
    assert report["provenance"]["weights_sha256"] == network_sha256(network)


def test_bundle_is_small_enough(repository):
    total = sum(path.stat().st_size for path in (repository / BUNDLE / "models").rglob("*") if path.is_file())
    assert total < 100 * 2**20


@pytest.mark.shared
def test_held_out_radiographs_are_segmented_as_reported(repository, shared_data, tmp_path):
    parser = parse(repository, "evaluate")
    parser["dataset_dir"], parser["output_dir"] = str(shared_data / "dental"), str(tmp_path)
    parser["where"] = {"set": "periapical"}
    network, inferer, dataset = (parser.get_parsed_content(key) for key in ("network", "inferer", "dataset"))
    classes = parser.get_parsed_content("classes")
    items = [dataset[index] for index in range(0, len(dataset), 4)]
    scored = segment_and_score(network, inferer, items, classes, "cpu", with_hd95=False)
    found = summarise_scores([score for _, score in scored], classes)
    report = json.loads((repository / BUNDLE / "docs" / "evaluation.json").read_text())
    assert found["mean_pooled_iou"] == pytest.approx(report["mean_pooled_iou"], abs=0.08)
    assert found["classes"]["root"]["pooled_iou"] == pytest.approx(report["classes"]["root"]["pooled_iou"], abs=0.05)
