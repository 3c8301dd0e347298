import pytest
import torch
from conftest import make_tiny_codec

from common.networks.latent_codec import VariationalPass, start_codec
from common.networks.weights import load_weights

MEAN, STD = torch.tensor([3.0, -2.0]), torch.tensor([0.5, 4.0])


def test_scaling_is_undone_exactly_before_and_after_a_state_dict_round_trip(tiny_codec):
    tiny_codec.set_statistics(MEAN, STD, num_images=7)
    restored = make_tiny_codec(seed=1)
    restored.load_state_dict(tiny_codec.state_dict(), strict=True)
    raw = torch.randn(3, 2, 4, 4) * 10
    for codec in (tiny_codec, restored):
        torch.testing.assert_close(codec.unscale(codec.scale(raw)), raw)
    assert torch.equal(restored.scale(raw), tiny_codec.scale(raw))
    assert restored.latents_num_images == 7


def test_scaled_latents_have_the_stated_statistics(tiny_codec):
    tiny_codec.set_statistics(MEAN, STD, num_images=1)
    raw = torch.randn(64, 2, 16, 16) * STD.view(1, 2, 1, 1) + MEAN.view(1, 2, 1, 1)
    latents = tiny_codec.scale(raw)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), atol=0.03, rtol=0)


def test_decode_of_encode_is_the_reconstruction(tiny_codec):
    tiny_codec.set_statistics(MEAN, STD, num_images=1)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tiny_codec.decode(tiny_codec.encode(image)), tiny_codec(image))


def test_encode_draws_from_the_posterior_only_with_a_generator(tiny_codec):
    tiny_codec.set_statistics(MEAN, STD, num_images=1)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(tiny_codec.encode(image), tiny_codec.encode(image))
    drawn = tiny_codec.encode(image, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, tiny_codec.encode(image, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, tiny_codec.encode(image))


def test_without_statistics_latents_are_refused_but_reconstruction_works(tiny_codec):
    image = torch.rand(1, 1, 32, 32)
    with pytest.raises(RuntimeError, match="no latent statistics"):
        tiny_codec.encode(image)
    with pytest.raises(RuntimeError, match="no latent statistics"):
        tiny_codec.decode(torch.zeros(1, 2, 4, 4))
    assert tiny_codec(image).shape == image.shape


@pytest.mark.parametrize(
    ("mean", "std", "num_images"),
    [
        (torch.zeros(3), torch.ones(3), 1),
        (torch.zeros(2), torch.zeros(2), 1),
        (torch.tensor([0.0, float("nan")]), torch.ones(2), 1),
        (torch.zeros(2), torch.ones(2), 0),
    ],
)
def test_impossible_statistics_are_refused(tiny_codec, mean, std, num_images):
    with pytest.raises(ValueError, match="latent statistics"):
        tiny_codec.set_statistics(mean, std, num_images)


@pytest.mark.parametrize("shape", [(1, 1, 30, 32), (1, 3, 32, 32), (1, 32, 32)])
def test_an_image_that_does_not_fit_is_named(tiny_codec, shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny_codec(torch.rand(shape))


def test_network_is_one_tensor_to_one_tensor_and_can_be_traced(tiny_codec):
    tiny_codec.eval()
    traced = torch.jit.trace(tiny_codec, torch.rand(1, 1, 32, 32))
    other = torch.rand(2, 1, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), tiny_codec(other), atol=1e-5, rtol=1e-5)


def test_reconstruction_is_clipped_but_the_training_pass_is_not(tiny_codec):
    torch.nn.init.constant_(tiny_codec.autoencoder.decoder.blocks[-1].conv.bias, 9.0)
    image = torch.rand(1, 1, 32, 32)
    assert tiny_codec(image).max() <= 1.0
    reconstruction, _, _ = VariationalPass(tiny_codec)(image, None)
    assert reconstruction.max() > 1.0


def test_training_pass_reaches_every_parameter(tiny_codec):
    reconstruction, mean, std = VariationalPass(tiny_codec)(torch.rand(1, 1, 32, 32), torch.randn(1, 2, 4, 4))
    (reconstruction.sum() + mean.sum() + std.sum()).backward()
    assert all(parameter.grad is not None for parameter in tiny_codec.parameters())


def test_posterior_starts_narrow(tiny_codec):
    _, std = tiny_codec.posterior(torch.rand(2, 1, 32, 32))
    assert 0.02 < std.median() < 0.12  # exp(-6 / 2) = 0.05


def test_half_precision_weights_widen(tiny_codec, tmp_path):
    torch.save({key: value.half() for key, value in tiny_codec.state_dict().items()}, tmp_path / "half.pt")
    loaded = load_weights(make_tiny_codec(seed=1), tmp_path / "half.pt")
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert not loaded.training


def test_training_starts_from_given_weights_and_measures_statistics_anew(tiny_codec, tmp_path):
    tiny_codec.set_statistics(MEAN, STD, num_images=7)
    torch.save(tiny_codec.state_dict(), tmp_path / "model.pt")
    other = make_tiny_codec(seed=1)
    started = start_codec(other, tmp_path / "model.pt")
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(started(image), tiny_codec(image))
    assert started.training and started.latents_num_images == 0
    untouched = make_tiny_codec(seed=1)
    assert torch.equal(start_codec(untouched, None)(image), make_tiny_codec(seed=1)(image))


def test_training_of_the_decoder_leaves_encoder_and_statistics(tiny_codec, tmp_path):
    tiny_codec.set_statistics(MEAN, STD, num_images=7)
    torch.save(tiny_codec.state_dict(), tmp_path / "model.pt")
    codec = start_codec(make_tiny_codec(seed=1), tmp_path / "model.pt", "decoder")
    image = torch.rand(1, 1, 32, 32)
    latents, reconstruction = codec.encode(image), codec(image)
    optimizer = torch.optim.SGD([each for each in codec.parameters() if each.requires_grad], 1.0)
    VariationalPass(codec)(image, None)[0].sum().backward()
    optimizer.step()
    assert torch.equal(codec.encode(image), latents)
    assert not torch.equal(codec(image), reconstruction)
    with pytest.raises(ValueError):
        start_codec(make_tiny_codec(), None, "decoder")
