"""Tokens drawn from the prior: of the label that was asked for, and a function of their seed."""

import pytest
import torch
from conftest import randomise
from test_embedding_prior import correlated_tokens, make_tiny_prior
from test_prior_step import SCHEDULE, make_engine, make_step

from common.diffusion.samplers import Sampler
from common.diffusion.token_sampler import TokenSampler
from common.errors import SettingsError
from common.networks.embedding_prior import PriorPass, start_prior

CPU = torch.device("cpu")
SEEDS = [11, 5, 8, 2, 99, 2**32 - 1, 7, 0]


def make_token_sampler(prior=None, steps=4, guidance_scale=1.0, labels=("a", "b")):
    """A sampler of an untrained prior, no weight zero, for tokens 2×6."""
    if prior is None:
        prior = make_tiny_prior(labels=labels, dropout=0.5)
        randomise(prior, 0.3)
        prior.components.fit(correlated_tokens(50))
    return TokenSampler(prior, Sampler(SCHEDULE, "dpm_solver++_2m", steps, guidance_scale=guidance_scale), CPU)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_tokens_depend_on_seed_and_label_but_not_on_the_batch(guidance_scale):
    sampler = make_token_sampler(guidance_scale=guidance_scale)
    together = sampler.sample(SEEDS, "a")
    assert together.shape == (8, 2, 6) and together.dtype == torch.float32
    assert torch.equal(together, sampler.sample(SEEDS, "a"))
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    parts = [sampler.sample([SEEDS[n] for n in part], "a") for part in (order[:1], order[1:4], order[4:])]
    torch.testing.assert_close(torch.cat(parts), together[order], atol=1e-4, rtol=1e-4)
    assert torch.pdist(sampler.prior.components.encode(together)).min() > 0.01
    for label in ("b", None):
        assert (sampler.sample(SEEDS, label) - together).abs().mean() > 0.01


def test_a_prior_in_training_mode_samples_without_dropout():
    sampler = make_token_sampler()
    sampler.prior.train()
    assert torch.equal(sampler.sample([3]), sampler.sample([3]))
    assert not sampler.prior.training


def test_an_unknown_label_is_refused_with_those_that_are_known():
    with pytest.raises(SettingsError, match=r"prior knows \(a, b\) or null, found 'c'"):
        make_token_sampler().sample([0], "c")
    with pytest.raises(SettingsError, match=r"prior knows \(none\) or null, found 'a'"):
        make_token_sampler(labels=()).check_label("a")
    make_token_sampler().check_label(None)


# ---- a trained prior -----------------------------------------------------------------------------------------------

CENTRES = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(3)) * 4 + 10  # of "a" and "b"


def cluster_tokens(labels, seed):
    return CENTRES[labels] + 0.5 * torch.randn(len(labels), 2, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained():
    """A prior that saw two clusters of tokens, each with its label."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    tokens = cluster_tokens(labels, seed=0)
    prior = start_prior(make_tiny_prior(num_components=3), tokens)
    step, engine = make_step(prior), make_engine(PriorPass(prior), lr=1e-2)
    for number in range(120):
        rows = torch.arange(16) + 16 * (number % 4)
        draw = torch.arange(16 * number, 16 * number + 16)
        step(engine, {"tokens": tokens[rows], "label": labels[rows], "draw": draw, "index": rows})
    return step.ema.network


def clusters_of(tokens):
    """0 or 1, the nearer centre, and the distance to it per distance of the centres."""
    distances = torch.cdist(tokens.flatten(1), CENTRES.flatten(1))
    return distances.argmin(1), distances.amin(1) / (CENTRES[0] - CENTRES[1]).norm()


@pytest.mark.parametrize(("label", "cluster"), [("a", 0), ("b", 1)])
def test_a_trained_prior_gives_tokens_of_the_label(trained, label, cluster):
    nearest, distance = clusters_of(make_token_sampler(trained, steps=20).sample(list(range(64)), label))
    assert (nearest == cluster).float().mean() > 0.95
    assert distance.median() < 0.2


def test_without_label_a_trained_prior_gives_both(trained):
    nearest, distance = clusters_of(make_token_sampler(trained, steps=20).sample(list(range(64))))
    assert 0.25 < nearest.float().mean() < 0.75
    assert distance.median() < 0.25
