import pytest
import torch
from conftest import REPOSITORY, make_tiny_denoiser, randomise
from monai.bundle import ConfigParser

from common.networks.conditioning import ConditioningError
from common.networks.latent_denoiser import DenoisingPass, maybe_compiled, start_denoiser
from common.networks.weights import MissingWeightsError, load_weights

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
    tokens = torch.randn(4, parser["num_tokens"], parser["token_dim"])
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
        with pytest.raises(ConditioningError, match=r"expected \[B, 2, 6\].*another encoder"):
            denoiser.encode_tokens(tokens)
        with pytest.raises(ConditioningError, match="another encoder"):
            DenoisingPass(denoiser)(noisy, timesteps, tokens, torch.zeros(3, dtype=torch.bool))


def save(denoiser, path, change=lambda state: state):
    torch.save(change(denoiser.state_dict()), path)
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


def test_a_half_precision_file_becomes_float32(tmp_path):
    denoiser = make_fitted()

    def halve(state):
        return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}

    loaded = load_weights(make_tiny_denoiser(), save(denoiser, tmp_path / "model.pt", halve))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    for name, value in denoiser.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    noisy, timesteps, tokens = inputs()
    assert loaded(noisy, timesteps, loaded.encode_tokens(tokens)).dtype == torch.float32


def without_null(state):
    return {name: value for name, value in state.items() if "null_context" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_null, r"Missing key.*null_context"),
        (lambda state: {**state, "more": torch.zeros(1)}, r"Unexpected key.*more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    path = save(make_tiny_denoiser(), tmp_path / "model.pt", change)
    with pytest.raises(RuntimeError, match=rf"(?s){message}"):
        load_weights(make_tiny_denoiser(), path)


def test_weights_for_other_tokens_are_refused(tmp_path):
    path = save(make_tiny_denoiser(num_tokens=2), tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="size mismatch for context_encoder"):
        load_weights(make_tiny_denoiser(num_tokens=5), path)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"none\.pt: no weights there; expected the file that"):
        load_weights(make_tiny_denoiser(), tmp_path / "none.pt")


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
    with pytest.raises(ConditioningError, match=r"expected at least 2 × \(2, 6\), found \(20, 5, 6\)"):
        start_denoiser(make_tiny_denoiser(), None, torch.randn(20, 5, 6))


def test_compiling_keeps_the_names_of_the_weights():
    network = DenoisingPass(make_tiny_denoiser())
    names = list(network.state_dict())
    assert maybe_compiled(network, enabled=False) is network
    assert network._compiled_call_impl is None
    assert maybe_compiled(network, enabled=True) is network
    assert network._compiled_call_impl is not None
    assert list(network.state_dict()) == names
