import pytest
import torch
from conftest import REPOSITORY, make_tiny_denoiser, randomise
from monai.bundle import ConfigParser

from common.errors import SettingsError, WeightsError
from common.networks.latent_denoiser import DenoisingPass, start_denoiser
from common.networks.weights import load_weights

TRAIN = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "configs" / "train.yaml"


def inputs(batch=3, num_tokens=2, token_dim=6):
    """Noisy latents, timesteps as rectified flow gives them, tokens."""
    return torch.randn(batch, 2, 4, 4), torch.rand(batch) * 1000, torch.randn(batch, num_tokens, token_dim)


def changed_by(network, given, **other):
    """How far the output moves when one input is another."""
    return float((network(**given) - network(**{**given, **other})).detach().abs().max())


def test_every_input_matters():
    denoiser = make_tiny_denoiser().eval()
    noisy, timesteps, tokens = inputs()
    given = {"noisy": noisy, "timesteps": timesteps, "context": denoiser.encode_tokens(tokens)}
    assert denoiser(**given).shape == noisy.shape
    assert denoiser.null_context.shape == (1, *given["context"].shape[1:])
    assert changed_by(denoiser, given, noisy=noisy + 1) > 0.01
    assert changed_by(denoiser, given, timesteps=timesteps / 2) > 0.01
    assert changed_by(denoiser, given, context=denoiser.null_context.expand(3, -1, -1)) > 0.01
    swapped = denoiser.encode_tokens(tokens.flip(1))  # a token says something else at another position
    assert changed_by(denoiser, given, context=swapped) > 0.001


def test_samples_of_a_batch_do_not_see_each_other():
    denoiser = make_tiny_denoiser().eval()
    noisy, timesteps, tokens = inputs()
    together = denoiser(noisy, timesteps, denoiser.encode_tokens(tokens))
    for number in range(3):
        part = slice(number, number + 1)
        alone = denoiser(noisy[part], timesteps[part], denoiser.encode_tokens(tokens[part]))
        torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=1e-5)


def test_the_training_pass_is_the_denoiser_with_the_null_context_where_dropped():
    denoiser = make_tiny_denoiser()
    noisy, timesteps, tokens = inputs()
    network = DenoisingPass(denoiser)
    kept = denoiser(noisy, timesteps, denoiser.encode_tokens(tokens))
    dropped = denoiser(noisy, timesteps, denoiser.null_context.expand(3, -1, -1))
    output, projected = network(noisy, timesteps, tokens, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(output, kept) and projected is None
    mixed, _ = network(noisy, timesteps, tokens, torch.tensor([False, True, False]))
    torch.testing.assert_close(mixed, torch.stack([kept[0], dropped[1], kept[2]]))
    assert not torch.allclose(kept[1], dropped[1])


@pytest.fixture(scope="module")
def trained_by_config():
    """The denoiser of train.yaml in small, every weight drawn, after one backward pass."""
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser["network_def"]["channels"] = [32, 32, 32]
    denoiser = parser.get_parsed_content("network_def")
    randomise(denoiser, 0.1)
    tokens = torch.randn(4, 5, 384)
    drop = torch.tensor([False, True, False, True])
    output, _ = DenoisingPass(denoiser)(torch.randn(4, 4, 8, 8), torch.rand(4) * 1000, tokens, drop)
    output.square().mean().backward()
    return denoiser


def test_no_weight_is_unused_which_distributed_training_would_wait_for(trained_by_config):
    parameters = dict(trained_by_config.named_parameters())
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    assert [name for name, parameter in parameters.items() if not parameter.grad.any()] == []
    assert len(parameters) > 100


def test_tokens_of_another_encoder_are_refused():
    denoiser = make_tiny_denoiser(num_tokens=2, token_dim=6)
    noisy, timesteps, _ = inputs()
    for tokens in (torch.randn(3, 5, 6), torch.randn(3, 2, 8)):
        with pytest.raises(SettingsError):
            denoiser.encode_tokens(tokens)
        with pytest.raises(SettingsError):
            DenoisingPass(denoiser)(noisy, timesteps, tokens, torch.zeros(3, dtype=torch.bool))


def save(denoiser, path):
    torch.save(denoiser.state_dict(), path)
    return path


def make_fitted():
    denoiser = make_tiny_denoiser()
    denoiser.context_encoder.scaler.fit(torch.randn(10, 2, 6) * 3 + 1)
    return denoiser


def test_weights_come_back_with_their_statistics(tmp_path):
    denoiser, other = make_fitted(), make_tiny_denoiser()
    randomise(other, 1.0)
    loaded = load_weights(other, save(denoiser, tmp_path / "model.pt"))
    assert loaded is other and not loaded.training
    assert loaded.context_encoder.scaler.tokens_num_images > 0
    for name, value in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_weights_for_other_tokens_are_refused(tmp_path):
    path = save(make_tiny_denoiser(num_tokens=2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="context_encoder"):
        load_weights(make_tiny_denoiser(num_tokens=5), path)


def test_a_training_from_nothing_starts_with_the_statistics_of_its_tokens():
    tokens = torch.randn(20, 2, 6) * 3 + 1
    denoiser = make_tiny_denoiser().eval()
    weights = denoiser.unet.state_dict()
    started = start_denoiser(denoiser, None, tokens)
    assert started is denoiser and started.training
    torch.testing.assert_close(started.context_encoder.scaler.tokens_mean, tokens.mean(0))
    torch.testing.assert_close(started.context_encoder.scaler.tokens_std, tokens.std(0))
    assert all(torch.equal(value, weights[name]) for name, value in started.unet.state_dict().items())


def test_a_training_from_weights_keeps_their_statistics(tmp_path):
    denoiser = make_fitted()
    path = save(denoiser, tmp_path / "model.pt")
    started = start_denoiser(make_tiny_denoiser(), path, torch.randn(20, 2, 6) * 100)
    assert started.training
    assert torch.equal(started.context_encoder.scaler.tokens_mean, denoiser.context_encoder.scaler.tokens_mean)
    assert started.context_encoder.scaler.tokens_num_images == 10


def test_a_training_whose_tokens_do_not_fit_the_network_is_refused():
    with pytest.raises(SettingsError, match=r"\(20, 5, 6\)"):
        start_denoiser(make_tiny_denoiser(), None, torch.randn(20, 5, 6))


def test_compiling_keeps_the_names_of_the_weights():
    plain, compiled = (DenoisingPass(make_tiny_denoiser(), is_compiled=each) for each in (False, True))
    assert plain._compiled_call_impl is None and compiled._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(plain.state_dict())
