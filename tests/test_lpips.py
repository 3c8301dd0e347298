import pytest
import torch
from torch.nn import functional as F

from common.errors import WeightsError
from common.networks.lpips import CHANNELS, LPIPS

CONVS = ((0, 3, 11, 4, 2), (3, 64, 5, 1, 2), (6, 192, 3, 1, 1), (8, 384, 3, 1, 1), (10, 256, 3, 1, 1))


def random_weights():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for (index, channels_in, kernel, _, _), channels_out in zip(CONVS, CHANNELS, strict=True):
        shape = (channels_out, channels_in, kernel, kernel)
        state[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * (channels_in * kernel**2) ** -0.5
        state[f"features.{index}.bias"] = torch.randn(channels_out, generator=generator) * 0.1
    for k, channels in enumerate(CHANNELS):
        state[f"lin{k}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return state


def reference_distance(state, image, reference):
    """Eq. 1 of arXiv:1801.03924 in plain functions, with AlexNet's layers written out."""

    def features(x):
        mean = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
        x = (torch.cat([2 * x - 1] * 3, dim=1) - mean) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        found = []
        for index, _, _, stride, padding in CONVS:
            if index in (3, 6):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], stride, padding)
            x = torch.clamp(x, min=0)
            found.append(x)
        return found

    total = 0.0
    for k, (a, b) in enumerate(zip(features(image), features(reference), strict=True)):
        a, b = a / (a.pow(2).sum(1, keepdim=True).sqrt() + 1e-10), b / (b.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        weight = state[f"lin{k}.model.1.weight"].flatten()
        total = total + torch.einsum("c,bchw->b", weight, (a - b) ** 2) / (a.shape[2] * a.shape[3])
    return total


def save(state, path):
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return LPIPS(save(random_weights(), tmp_path_factory.mktemp("weights") / "lpips.pt"))


@pytest.mark.parametrize("size", [(31, 31), (67, 93)])
def test_equals_the_papers_formula(network, size):
    image, reference = torch.rand(3, 1, *size), torch.rand(3, 1, *size)
    distance = network(image, reference)
    assert distance.shape == (3,)
    torch.testing.assert_close(distance, reference_distance(random_weights(), image, reference), atol=1e-5, rtol=1e-5)


def test_identical_images_are_at_zero_it_is_symmetric_and_images_of_a_batch_do_not_mix(network):
    image, other = torch.rand(2, 1, 48, 48), torch.rand(2, 1, 48, 48)
    assert network(image, image).tolist() == [0.0, 0.0]
    distance = network(image, other)
    torch.testing.assert_close(distance, network(other, image))
    torch.testing.assert_close(distance[1:], network(image[1:], other[1:]))


def test_gradients_reach_the_inputs_and_it_stays_frozen_and_in_evaluation_mode(network):
    torch.nn.ModuleList([network]).train()
    image, reference = torch.rand(1, 1, 40, 40, requires_grad=True), torch.rand(1, 1, 40, 40)
    network(image, reference).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(m.training for m in network.modules())


def test_is_finite_where_all_features_are_zero(tmp_path):
    state = random_weights()
    state["features.0.bias"] = state["features.0.bias"] * 0 - 100.0  # every feature of the first layer off
    torch.save(state, tmp_path / "off.pt")
    image = torch.zeros(1, 1, 40, 40, requires_grad=True)
    network = LPIPS(tmp_path / "off.pt")
    network(image, torch.ones(1, 1, 40, 40)).sum().backward()
    assert torch.isfinite(image.grad).all()
    with torch.autocast("cpu", torch.float16):
        assert torch.isfinite(network(image, torch.ones(1, 1, 40, 40))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_works_in_autocast(network, dtype):
    image, reference = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)
    with torch.autocast("cpu", dtype):
        distance = network(image, reference)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, network(image, reference), rtol=0.05, atol=0)


def test_missing_or_partial_weights_are_refused(tmp_path):
    state = random_weights()
    assert set(LPIPS(save(state, tmp_path / "whole.pt")).state_dict()) == set(state)
    del state["lin3.model.1.weight"]
    save(state, tmp_path / "part.pt")
    for name, named in (("none.pt", "none"), ("part.pt", r"lin3\.model\.1\.weight")):
        with pytest.raises(WeightsError, match=named):
            LPIPS(tmp_path / name)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 1, 30, 64), (1, 1, 30, 64)), ((2, 1, 64, 64), (1, 1, 64, 64)), ((1, 3, 64, 64), (1, 3, 64, 64))],
)
def test_too_small_or_mismatched_images_are_refused(network, one, other):
    with pytest.raises(ValueError, match=str(one[2])):
        network(torch.rand(one), torch.rand(other))
