import json

import pytest
import torch
from torch import nn

from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import WeightsError
from common.networks.conditioning import TokenSelection
from common.networks.latent_codec import LatentCodec
from common.networks.weights import (
    build,
    describe,
    described,
    description_path,
    load_weights,
    other_parts,
    read_description,
    read_weights,
    save_weights,
)

SIZES = {"channels": [8, 8, 16], "num_res_blocks": 1, "latent_channels": 2, "norm_num_groups": 8}


@pytest.fixture
def saved(tmp_path):
    codec = LatentCodec(**SIZES)
    parts = {"schedule": NoiseSchedule("rectified_flow", "flow"), "image_size": 64}
    save_weights(codec, tmp_path / "model.pt", parts)
    return codec, tmp_path / "model.pt"


def test_weights_bring_their_network_and_what_goes_with_it(saved):
    codec, path = saved
    network = load_weights(described(path), path)
    assert network.arguments == codec.arguments and network.arguments["channels"] == [8, 8, 16]
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(network(image), codec.eval()(image))
    assert described(path, "schedule").prediction_type == "flow" and described(path, "image_size") == 64
    assert other_parts(path).keys() == {"schedule", "image_size"}
    with pytest.raises(WeightsError):
        described(path, "classes")


@pytest.mark.parametrize(
    "item", [LatentCodec(**SIZES), NoiseSchedule("cosine", "v_prediction", 50), TokenSelection(True, 2)]
)
def test_a_description_builds_what_it_describes(item):
    found = build(json.loads(json.dumps(describe(item))))
    assert type(found) is type(item) and found.arguments == item.arguments


@pytest.mark.parametrize("target", ["os.system", ".networks.weights.Nobody", ".nowhere.Thing", None])
def test_only_classes_of_this_package_are_built(target):
    with pytest.raises(WeightsError):
        build({"_target_": target})


def test_shipped_weights_are_half_as_large_and_load_as_float32(saved, tmp_path):
    codec, path = saved
    save_weights(codec, tmp_path / "half.pt", half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * path.stat().st_size
    network = load_weights(described(tmp_path / "half.pt"), tmp_path / "half.pt")
    for key, value in network.state_dict().items():
        expected = codec.state_dict()[key]
        assert value.dtype == expected.dtype and not network.training
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (LatentCodec(**{**SIZES, "latent_channels": 3}), "latents_mean"),
        (nn.Linear(3, 2), "weight"),
        (nn.Sequential(LatentCodec(**SIZES)), "0.latents_mean"),
    ],
)
def test_weights_of_another_network_are_refused_by_name_of_the_first_difference(saved, other, name):
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(other, saved[1])
    assert str(saved[1]) in str(caught.value) and name in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("has_description", [True, False])
def test_no_cut_of_the_file_loads(saved, has_description):
    _, path = saved
    if not has_description:
        description_path(path).unlink()
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 12):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)


def test_no_flipped_bit_loads(saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    for place in range(100, len(content), len(content) // 40):
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            read_weights(path)
        content[place] ^= 4
    path.write_bytes(content)
    read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2)])
def test_other_things_than_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(saved, number):
    codec, path = saved
    codec.latents_mean[1] = number
    save_weights(codec, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(LatentCodec(**SIZES), path)
    assert "latents_mean" in str(caught.value)


def test_a_kill_between_description_and_weights_leaves_a_pair_that_loads(saved):
    codec, path = saved
    old = path.read_bytes()
    codec.latents_num_images.fill_(3)
    save_weights(codec, path)
    path.write_bytes(old)  # as if the new file had not come to its place
    assert read_weights(path)["latents_num_images"] == 0


def test_weights_without_a_description_take_the_default_one_and_fail_without(saved, tmp_path):
    codec, path = saved
    torch.save(codec.state_dict(), tmp_path / "old.pt")
    assert described(tmp_path / "old.pt", default=path).arguments == codec.arguments
    for missing in (tmp_path / "old.pt", tmp_path / "none.pt"):
        with pytest.raises(WeightsError):
            described(missing)
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "none.pt")


def test_a_damaged_description_is_named(saved):
    path = saved[1]
    description_path(path).write_text("{")
    with pytest.raises(WeightsError) as caught:
        read_description(path)
    assert str(description_path(path)) in str(caught.value)
