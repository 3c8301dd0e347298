import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser

from common.diffusion.noise_schedule import NoiseSchedule
from common.experiments.attention_maps import AttentionMapsError, SelfAttention, aggregate, fitted_size, saved_attention


@pytest.fixture
def attention():
    codec = make_tiny_codec()
    codec.set_statistics(torch.zeros(2), torch.ones(2), 1)
    schedule = NoiseSchedule("rectified_flow", "flow")
    return SelfAttention(make_tiny_denoiser(), codec.eval(), schedule, torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 256), (256, 256)), ((2000, 2000), (256, 256)), ((1000, 2000), (192, 352))]
)
def test_the_fitted_size_keeps_area_and_aspect(size, expected):
    assert fitted_size(*size, side=256, multiple=32) == expected


def test_a_side_that_the_networks_cannot_divide_is_refused():
    with pytest.raises(AttentionMapsError, match="at least 32"):
        fitted_size(100, 100, side=16, multiple=32)


def test_layers_are_distributions_over_an_image_that_need_not_be_square(attention):
    layers = attention.layers(torch.rand(1, 32, 64), timestep=300, seed=0, tokens=torch.randn(1, 2, 6))
    assert layers and all(layer.shape == (2, 4, 2, 4) for layer in layers)
    for layer in layers:
        torch.testing.assert_close(layer.sum((2, 3)), torch.ones(2, 4))


def test_layers_depend_on_image_context_noise_and_timestep_alone(attention):
    image, tokens = torch.rand(1, 32, 32), torch.randn(1, 2, 6)
    one = torch.stack(attention.layers(image, 300, 0, tokens))
    assert torch.equal(one, torch.stack(attention.layers(image, 300, 0, tokens)))
    for other in (
        attention.layers(image.flip(2), 300, 0, tokens),
        attention.layers(image, 300, 1, tokens),
        attention.layers(image, 700, 0, tokens),
        attention.layers(image, 300, 0, None),
    ):
        assert not torch.allclose(one, torch.stack(other))


def test_several_noises_are_averaged(attention):
    image = torch.rand(1, 32, 32)
    both = attention.layers(image, 300, 0, num_noises=2)[0]
    assert not torch.allclose(both, attention.layers(image, 300, 0)[0])
    torch.testing.assert_close(both.sum((2, 3)), torch.ones(2, 2))


def test_nothing_stays_behind_in_the_network(attention):
    attention.layers(torch.rand(1, 32, 32), 300, 0)
    with saved_attention(attention.denoiser.unet) as blocks:
        assert all(block.att_mat.numel() == 0 for block in blocks)
    assert not any(block.save_attn for block in blocks)


def test_a_network_without_self_attention_is_refused():
    with pytest.raises(AttentionMapsError, match="0 blocks"), saved_attention(torch.nn.Linear(2, 2)):
        pass


def test_one_layer_at_its_own_resolution_comes_back():
    layer = torch.rand(2, 4, 2, 4)
    layer = layer / layer.sum((2, 3), keepdim=True)
    torch.testing.assert_close(aggregate([layer], (2, 4)), layer)


def test_queries_are_repeated_and_maps_sum_to_one():
    layers = [torch.rand(2, 2, 2, 2), torch.rand(4, 4, 4, 4)]
    maps = aggregate(layers[:1], (8, 8))
    assert torch.equal(maps[0, 0], maps[3, 3]) and not torch.equal(maps[3, 3], maps[4, 3])
    torch.testing.assert_close(aggregate(layers, (8, 8)).sum((2, 3)), torch.ones(8, 8))


def test_layers_weigh_as_their_resolution():
    flat, peaked = torch.full((2, 2, 2, 2), 0.25), torch.zeros(4, 4, 4, 4)
    peaked[..., 0, 0] = 1
    maps = aggregate([flat, peaked], (4, 4), exponent=1)
    assert maps[2, 2, 0, 0].item() == pytest.approx(2 / 6 / 16 + 4 / 6)
    assert aggregate([flat, peaked], (4, 4), exponent=0)[2, 2, 0, 0].item() == pytest.approx(0.5 / 16 + 0.5)
