"""What a bundle's code and weights do, asked in this process; test_zoo_check asks in one of its own."""

import json

import pytest
import torch
from tiny_bundles import codec_bundle, diffusion_bundle

from common.errors import RunError
from common.packaging.bundle import Bundle
from common.packaging.torchscript import trace_bundle
from common.packaging.zoo_code import answers, network


def problems(root):
    return {name for name, found in answers(Bundle(root)).items() if found}


def change(root, name, old, new):
    path = root / "configs" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def declare(root, kind, **changes):
    """Other values for the tensor `image` of the inputs, or `pred` of the outputs."""
    metadata = Bundle(root).metadata
    metadata["network_data_format"][kind][{"inputs": "image", "outputs": "pred"}[kind]] |= changes
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture
def root(tmp_path):
    return codec_bundle(tmp_path / "codec")


@pytest.mark.parametrize("make", [codec_bundle, diffusion_bundle])
def test_a_good_bundle_has_no_problems(tmp_path, make):
    root = make(tmp_path / "good")
    trace_bundle(Bundle(root), root / "models" / "model.ts")
    assert answers(Bundle(root)) == {"targets": [], "weights": [], "network": [], "torchscript": []}


def test_targets_that_do_not_exist_are_found_in_any_config(root):
    (root / "configs" / "other.json").write_text('{"x": {"_target_": "torch.pi"}, "y": {"_target_": "torch.no_such"}}')
    assert problems(root) == {"targets"} and len(answers(Bundle(root))["targets"]) == 2


def test_missing_and_other_weights_are_found(root):
    path = root / "models" / "model.pt"
    torch.save({**torch.load(path, weights_only=True), "extra": torch.zeros(1)}, path)
    assert "weights" in problems(root)
    path.unlink()
    assert problems(root) == {"weights", "torchscript"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("outputs", {"num_channels": 2}),
        ("outputs", {"spatial_shape": ["4*n", "8*n"]}),
        ("outputs", {"dtype": "float64"}),
        ("inputs", {"num_channels": 3}),
    ],
)
def test_a_network_that_is_not_as_declared_is_found(root, kind, changes):
    declare(root, kind, **changes)
    assert "network" in problems(root)


def test_the_network_may_be_asked_at_another_size(root):
    assert list(network(Bundle(root), n=3)) == []


def test_names_that_monai_does_not_look_for_are_told(root):
    change(root, "metadata.json", '"image": {', '"latents": {')
    assert "verify_net_in_out" in answers(Bundle(root))["network"][0]


def test_no_network_is_an_error_of_the_bundle(root):
    change(root, "inference.yaml", "LatentCodec", "NoSuchClass")
    with pytest.raises(RunError):
        list(network(Bundle(root)))
    assert problems(root) == {"targets", "weights", "network", "torchscript"}


def test_another_torchscript_is_found(root):
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1, 1, 8, 8)), root / "models" / "model.ts")
    assert problems(root) == {"torchscript"}
