import pytest
import torch
from conftest import make_tiny_codec

from common.networks.latent_codec import VariationalPass, start_codec
from common.networks.weights import trainable_parameters

MEAN, STD = torch.tensor([3.0, -2.0]), torch.tensor([0.5, 4.0])


@pytest.fixture
def codec(tiny_codec):
    tiny_codec.set_statistics(MEAN, STD, num_images=7)
    return tiny_codec


def test_scaled_latents_have_the_stated_statistics_and_scaling_is_undone_after_a_round_trip_too(codec):
    restored = make_tiny_codec(seed=1)
    restored.load_state_dict(codec.state_dict(), strict=True)
    assert restored.latents_num_images == 7
    raw = torch.randn(64, 2, 16, 16) * STD.view(1, 2, 1, 1) + MEAN.view(1, 2, 1, 1)
    latents = restored.scale(raw)
    assert torch.equal(latents, codec.scale(raw))
    torch.testing.assert_close(restored.unscale(latents), raw)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), atol=0.03, rtol=0)


def test_decode_of_encode_is_the_reconstruction(codec):
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(codec.encode(image)), codec(image))
    _, std = codec.posterior(image)
    assert 0.02 < std.median() < 0.12  # it starts narrow: exp(-6 / 2) = 0.05


def test_without_statistics_latents_are_refused_but_reconstruction_works(tiny_codec):
    image = torch.rand(1, 1, 32, 32)
    for use in (lambda: tiny_codec.encode(image), lambda: tiny_codec.decode(torch.zeros(1, 2, 4, 4))):
        with pytest.raises(RuntimeError, match="latents_num_images"):
            use()
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


def test_the_training_pass_is_not_clipped_and_reaches_every_parameter(tiny_codec):
    torch.nn.init.constant_(tiny_codec.autoencoder.decoder.blocks[-1].conv.bias, 9.0)
    image = torch.rand(1, 1, 32, 32)
    assert tiny_codec(image).max() <= 1.0 < VariationalPass(tiny_codec)(image, None)[0].max()
    reconstruction, mean, std = VariationalPass(tiny_codec)(image, torch.randn(1, 2, 4, 4))
    (reconstruction.sum() + mean.sum() + std.sum()).backward()
    assert all(parameter.grad is not None for parameter in tiny_codec.parameters())


def test_noise_on_the_latents_is_in_units_of_their_deviation(tiny_codec):
    tiny_codec.set_statistics(torch.ones(2), torch.full((2,), 3.0), num_images=1)
    image, noise = torch.rand(1, 1, 32, 32), torch.randn(1, 2, 4, 4)
    reconstruction, mean, _ = VariationalPass(tiny_codec)(image, None, noise)
    torch.testing.assert_close(reconstruction, tiny_codec.reconstruct(mean + 3.0 * noise))


@pytest.fixture
def weights(codec, tmp_path):
    torch.save(codec.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_training_starts_from_given_weights_and_measures_statistics_anew(codec, weights):
    started = start_codec(make_tiny_codec(seed=1), weights)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(started(image), codec(image))
    assert started.training and started.latents_num_images == 0
    assert torch.equal(start_codec(make_tiny_codec(seed=1), None)(image), make_tiny_codec(seed=1)(image))


def test_training_of_the_decoder_leaves_encoder_and_statistics(weights):
    codec = start_codec(make_tiny_codec(seed=1), weights, "decoder")
    image = torch.rand(1, 1, 32, 32)
    latents, reconstruction = codec.encode(image), codec(image)
    optimizer = torch.optim.SGD(trainable_parameters(codec), 1.0)
    VariationalPass(codec)(image, None)[0].sum().backward()
    optimizer.step()
    assert torch.equal(codec.encode(image), latents)
    assert not torch.equal(codec(image), reconstruction)
    with pytest.raises(ValueError):
        start_codec(make_tiny_codec(), None, "decoder")
