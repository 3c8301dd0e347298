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


def test_every_input_matters_and_samples_of_a_batch_do_not_see_each_other():
    denoiser = make_tiny_denoiser().eval()
    noisy, timesteps, tokens = inputs()
    given = {"noisy": noisy, "timesteps": timesteps, "context": denoiser.encode_tokens(tokens)}
    output = denoiser(**given)
    assert output.shape == noisy.shape
    assert denoiser.null_context.shape == (1, *given["context"].shape[1:])
    assert changed_by(denoiser, given, noisy=noisy + 1) > 0.01
    assert changed_by(denoiser, given, timesteps=timesteps / 2) > 0.01
    assert changed_by(denoiser, given, context=denoiser.null_context.expand(3, -1, -1)) > 0.01
    swapped = denoiser.encode_tokens(tokens.flip(1))  # a token says something else at another position
    assert changed_by(denoiser, given, context=swapped) > 0.001
    alone = torch.cat([denoiser(**{name: value[n : n + 1] for name, value in given.items()}) for n in range(3)])
    torch.testing.assert_close(output, alone, atol=1e-5, rtol=1e-5)


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


def test_no_weight_of_the_config_is_unused_which_distributed_training_would_wait_for():
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser["network_def"]["channels"] = [32, 32, 32]
    denoiser = parser.get_parsed_content("network_def")
    randomise(denoiser, 0.1)
    drop = torch.tensor([False, True, False, True])
    output, _ = DenoisingPass(denoiser)(torch.randn(4, 4, 8, 8), torch.rand(4) * 1000, torch.randn(4, 5, 384), drop)
    output.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in denoiser.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    assert len(gradients) > 100


def test_tokens_of_another_encoder_are_refused():
    denoiser = make_tiny_denoiser(num_tokens=2, token_dim=6)
    noisy, timesteps, _ = inputs()
    for tokens in (torch.randn(3, 5, 6), torch.randn(3, 2, 8)):
        with pytest.raises(SettingsError):
            DenoisingPass(denoiser)(noisy, timesteps, tokens, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(SettingsError, match="20, 5, 6"):
        start_denoiser(denoiser, None, torch.randn(20, 5, 6))


def test_a_training_starts_with_the_statistics_of_its_tokens_or_with_weights_and_theirs(tmp_path):
    tokens = torch.randn(20, 2, 6) * 3 + 1
    denoiser = make_tiny_denoiser().eval()
    weights = denoiser.unet.state_dict()
    started = start_denoiser(denoiser, None, tokens)
    assert started is denoiser and started.training
    torch.testing.assert_close(started.context_encoder.scaler.tokens_mean, tokens.mean(0))
    torch.testing.assert_close(started.context_encoder.scaler.tokens_std, tokens.std(0))
    assert all(torch.equal(value, weights[name]) for name, value in started.unet.state_dict().items())
    torch.save(denoiser.state_dict(), tmp_path / "model.pt")
    other = make_tiny_denoiser()
    randomise(other, 1.0)
    started = start_denoiser(other, tmp_path / "model.pt", torch.randn(20, 2, 6) * 100)
    assert started.training and started.context_encoder.scaler.tokens_num_images == 20
    assert all(torch.equal(started.state_dict()[name], value) for name, value in denoiser.state_dict().items())
    with pytest.raises(WeightsError, match="context_encoder"):
        load_weights(make_tiny_denoiser(num_tokens=5), tmp_path / "model.pt")


def test_compiling_keeps_the_names_of_the_weights():
    plain, compiled = (DenoisingPass(make_tiny_denoiser(), is_compiled=each) for each in (False, True))
    assert plain._compiled_call_impl is None and compiled._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(plain.state_dict())
