"""Training and validation of the prior: dropped labels, the loss, oracles; see also test_training_steps."""

import pytest
import torch
from conftest import make_tiny_store
from test_embedding_prior import correlated_tokens, make_tiny_prior
from trainings import make_engine, perfect

from common.data.latent_store import LatentDataset
from common.diffusion.noise_schedule import NoiseSchedule
from common.networks.conditioning import TokenSelection
from common.networks.embedding_prior import EmbeddingPrior, PriorPass, start_prior
from common.seeding import Purpose, derive_seed, seeded_normal
from common.training.ema import ExponentialMovingAverage
from common.training.prior_step import PriorStep, PriorValidation, TokenDataset

SCHEDULE = NoiseSchedule("rectified_flow", "flow")
SELECTION = TokenSelection(use_registers=True, patch_grid=0)  # two tokens
LABELS = ["a", "b", "", "c", "a|b"]


class RecordingPrior(EmbeddingPrior):
    """Keeps what it was given."""

    def forward(self, noisy, timesteps, context):
        self.given.append((timesteps, context))
        return super().forward(noisy, timesteps, context)


class PerfectPrior(EmbeddingPrior):
    """Knows that every image is x0."""

    def forward(self, noisy, timesteps, context):
        return perfect(SCHEDULE, self.x0)(noisy, timesteps)


def make_prior(dropout=0.0):
    return start_prior(make_tiny_prior(dropout=dropout), correlated_tokens(50))


def make_step(prior, uncond_prob=0.2):
    return PriorStep(schedule=SCHEDULE, uncond_prob=uncond_prob, ema=ExponentialMovingAverage(prior, 0.9))


def batch_of(tokens, draws=None, label=0):
    count = len(tokens)
    draws = torch.arange(count) if draws is None else torch.as_tensor(draws)
    return {"tokens": tokens, "label": torch.full((count,), label), "draw": draws, "index": draws}


# ---- what is random ------------------------------------------------------------------------------------------------


def test_labels_are_dropped_as_often_as_said_and_at_any_noise_level():
    network, given = PriorPass(make_prior()), []
    network.register_forward_pre_hook(lambda network, inputs: given.append(inputs))
    make_step(network.prior, 0.2)(make_engine(network), batch_of(correlated_tokens(4000), label=1))
    _, timesteps, labels = given[0]
    dropped = labels == 2
    assert set(labels.tolist()) == {1, 2}
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.02)  # three standard deviations
    assert timesteps[dropped].mean() == pytest.approx(float(timesteps.mean()), abs=25)
    make_step(network.prior, 0.0)(make_engine(network), batch_of(correlated_tokens(1000), label=1))
    assert (given[1][2] == 1).all()


# ---- learning ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_error_of_the_velocity():
    prior, tokens = make_prior(), correlated_tokens(6)
    logged = make_step(prior)(make_engine(PriorPass(prior), lr=0.25), batch_of(tokens))  # at its start it predicts 0
    noise = seeded_normal([derive_seed(0, Purpose.NOISE, draw) for draw in range(6)], (4,))
    expected = (noise - prior.components.encode(tokens)).square().mean()
    assert logged["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert logged["learning_rate"] == 0.25


# ---- data and resuming ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = make_tiny_store(tmp_path_factory.mktemp("store"), num_train=9, num_val=5)
    items = list(store.items)
    store.items = [{**item, "label": LABELS[n % len(LABELS)]} for n, item in enumerate(items[:-1])] + items[-1:]
    return store


def test_the_data_are_the_tokens_and_labels_of_one_split(store):
    dataset = TokenDataset(LatentDataset(store, "val"), SELECTION, make_tiny_prior())
    assert len(dataset) == 5
    rows = range(9, 14)
    assert dataset.labels.tolist() == [{"a": 0, "b": 1}.get(LABELS[row % 5], 2) for row in rows[:-1]] + [2]
    item = dataset[3, 17]
    assert (item["index"], item["draw"], item["label"]) == (3, 17, dataset.labels[3])
    expected = torch.stack([torch.from_numpy(store.arrays["cls_token"][12, 0].astype("float32")), item["tokens"][1]])
    assert torch.equal(item["tokens"], expected) and item["tokens"].shape == (2, 6)
    assert dataset[3]["draw"] == 0


# ---- validation ----------------------------------------------------------------------------------------------------


def errors_of(prior, batch, num_levels=4):
    return PriorValidation(schedule=SCHEDULE, num_levels=num_levels, seed=0)(make_engine(prior), batch)["errors"]


def test_a_perfect_prediction_has_no_error_and_none_at_all_has_that_of_the_velocity():
    tokens = correlated_tokens(1).repeat(40, 1, 1)
    prior = PerfectPrior(4, 2, 6, 16, 2, 0.0, ["a"])
    prior.components.fit(correlated_tokens(50))
    prior.x0 = prior.components.encode(tokens[:1])
    assert errors_of(prior, batch_of(tokens)).max() < 1e-4
    silent = errors_of(make_prior(), batch_of(tokens)).mean()
    assert silent == pytest.approx(float(1 + prior.x0.square().mean()), rel=0.15)  # E|ε - x0|²


def test_strata_are_ordered_by_noise_and_labels_are_used():
    prior = RecordingPrior(4, 2, 6, 16, 2, 0.0, ["a", "b"])
    prior.given = []
    errors_of(prior, batch_of(correlated_tokens(50), label=1))
    edges = SCHEDULE.sample_timesteps(torch.linspace(0, 1, 5).clamp(1e-9, 1 - 1e-9))
    for level, (timesteps, context) in enumerate(prior.given):
        assert edges[level] <= timesteps.min() and timesteps.max() <= edges[level + 1]
        assert torch.equal(context, prior.encode_labels(torch.ones(50, dtype=torch.int64)))
