"""The prior's components lose nothing but what they leave out, and its network says nothing before it is trained."""

import pytest
import torch
from conftest import randomise

from common.errors import SettingsError, WeightsError
from common.networks.embedding_prior import EmbeddingPrior, PriorPass, TokenComponents, start_prior
from common.networks.weights import half_precision, load_weights


def make_tiny_prior(num_components=4, num_tokens=2, token_dim=6, labels=("a", "b"), dropout=0.0):
    """A real prior of two blocks for tokens 2×6."""
    return EmbeddingPrior(num_components, num_tokens, token_dim, 16, 2, dropout, list(labels))


def correlated_tokens(count, num_tokens=2, token_dim=6, seed=0):
    """Tokens that fill few of their dimensions, far from zero and of unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    size = num_tokens * token_dim
    directions = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(7))).Q
    strength = 2.0 ** -torch.arange(size)
    flat = (torch.randn(count, size, generator=generator) * strength) @ directions.T
    return 5.0 + flat.view(count, num_tokens, token_dim) * torch.linspace(0.1, 10.0, token_dim)


def fitted(num_components, tokens):
    components = TokenComponents(num_components, *tokens.shape[1:])
    components.fit(tokens)
    return components


def test_all_components_lose_nothing():
    components, unseen = fitted(12, correlated_tokens(200)), correlated_tokens(20, seed=1)
    encoded = components.encode(unseen)
    assert encoded.shape == (20, 12)
    torch.testing.assert_close(components.decode(encoded), unseen, atol=1e-4, rtol=1e-4)


def test_components_are_uncorrelated_and_of_mean_variance_one():
    tokens = correlated_tokens(200)
    components = fitted(5, tokens)
    encoded = components.encode(tokens).double()
    covariance = encoded.T.cov()
    assert encoded.mean(0).abs().max() < 1e-4
    assert covariance.diag().mean() == pytest.approx(1.0, rel=1e-4)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4
    # Divided by the fourth root of the variance: its square root is left.
    flat = components.scaler.scale(tokens).flatten(1).double()
    expected = torch.linalg.svdvals(flat)[:5]
    torch.testing.assert_close(covariance.diag() / covariance[0, 0], expected / expected[0], rtol=1e-3, atol=0)


def test_more_components_leave_out_less_and_each_what_svd_says():
    tokens = correlated_tokens(200)
    errors = []
    for number in (1, 2, 4, 8):
        components = fitted(number, tokens)
        decoded = components.decode(components.encode(tokens))
        errors.append((components.scaler.scale(decoded) - components.scaler.scale(tokens)).square().sum().item())
        singular = torch.linalg.svdvals(components.scaler.scale(tokens).flatten(1).double())
        assert errors[-1] == pytest.approx(singular[number:].square().sum().item(), rel=1e-3)
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[2]


def test_images_that_are_in_the_data_twice_do_not_blow_up_others():
    few = correlated_tokens(4)
    components = fitted(8, few.repeat(3, 1, 1))  # 12 images, but only 3 directions
    encoded = components.encode(few + 0.1 * torch.randn(4, 2, 6))
    assert encoded.isfinite().all() and encoded.abs().max() < 100


@pytest.mark.parametrize(
    ("num_components", "tokens", "named"),
    [
        (8, correlated_tokens(8), "8"),
        (13, correlated_tokens(20), "13"),
        (37, correlated_tokens(20, num_tokens=3), "37"),
    ],
)
def test_what_does_not_fit_is_refused(num_components, tokens, named):
    with pytest.raises(SettingsError, match=named):
        fitted(num_components, tokens)
    with pytest.raises(SettingsError):
        TokenComponents(4, 2, 6).fit(correlated_tokens(20, num_tokens=3))


@pytest.mark.parametrize(("labels", "expected"), [(("a", "b"), [1, 2, 0, 2, 2]), ((), [0, 0, 0, 0, 0])])
def test_an_unknown_label_is_no_label(labels, expected):
    prior = make_tiny_prior(labels=labels)
    assert prior.label_indices(["b", "", "a", "c", "a|b"]).tolist() == expected
    assert torch.equal(prior.encode_labels(prior.label_indices(["c"])), prior.null_context)
    assert torch.equal(prior.null_context[0, 0], prior.label_embedding.weight[len(labels)])


def test_it_starts_at_predicting_nothing_and_with_blocks_that_do_nothing():
    prior = make_tiny_prior()
    noisy, timesteps = torch.randn(3, 4), torch.tensor([0.0, 500.0, 1000.0])
    assert torch.equal(prior(noisy, timesteps, prior.null_context.expand(3, -1, -1)), torch.zeros(3, 4))
    hidden = torch.randn(3, 16)
    for block in prior.blocks:
        assert torch.equal(block(hidden, torch.randn(3, 16)), hidden)


def test_the_output_depends_on_all_inputs_and_each_sample_on_its_own():
    prior = make_tiny_prior()
    randomise(prior, 0.3)
    noisy, timesteps, labels = torch.randn(3, 4), torch.tensor([10.0, 500.0, 990.0]), torch.tensor([0, 1, 2])
    network = PriorPass(prior)
    output = network(noisy, timesteps, labels)
    assert output.shape == (3, 4)
    others = network(noisy + 0.1, timesteps, labels), network(noisy, timesteps + 5, labels)
    for other in (*others, network(noisy, timesteps, labels.roll(1))):
        assert ((other - output).abs().amax(1) > 1e-3).all()
    for n in range(3):
        alone = network(noisy[n : n + 1], timesteps[n : n + 1], labels[n : n + 1])
        torch.testing.assert_close(alone[0], output[n], atol=1e-5, rtol=1e-5)


def test_a_start_knows_the_components_trains_and_comes_back_from_half_precision(tmp_path):
    prior = start_prior(make_tiny_prior().eval(), correlated_tokens(30))
    assert prior.components.scaler.tokens_num_images > 0 and prior.training
    assert prior.components.directions.norm(dim=0) == pytest.approx(torch.ones(4))
    randomise(prior, 0.3)
    torch.save(half_precision(prior.state_dict()), tmp_path / "prior.pt")
    loaded = load_weights(make_tiny_prior(), tmp_path / "prior.pt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32} and not loaded.training
    assert loaded.components.scaler.tokens_num_images > 0
    tokens = correlated_tokens(5, seed=1)
    torch.testing.assert_close(loaded.components.encode(tokens), prior.components.encode(tokens), atol=0.1, rtol=0.02)
    noisy, timesteps, context = torch.randn(2, 4), torch.tensor([3.0, 800.0]), prior.null_context.expand(2, -1, -1)
    outputs = [network.eval()(noisy, timesteps, context) for network in (loaded, prior)]
    torch.testing.assert_close(*outputs, atol=0.05, rtol=0.05)
    with pytest.raises(WeightsError, match="label_embedding"):
        load_weights(make_tiny_prior(labels=("a",)), tmp_path / "prior.pt")
