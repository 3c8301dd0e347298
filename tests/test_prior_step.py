"""Training and validation of the prior: randomness is a function of draw and step, and a resumed run is the same."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_tiny_store, randomise
from monai.engines import SupervisedEvaluator
from resuming import assert_resumes, killable_trainer, whole_run
from test_embedding_prior import correlated_tokens, make_tiny_prior
from torch.utils.data import DataLoader, default_collate

from common.data.dataset import StepBatchSampler
from common.data.latent_store import LatentDataset
from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import NonFiniteLossError
from common.networks.conditioning import TokenSelection
from common.networks.embedding_prior import EmbeddingPrior, PriorPass, start_prior
from common.seeding import Purpose, derive_seed, seeded_normal
from common.training.denoising_step import MeanError
from common.training.ema import ExponentialMovingAverage
from common.training.lr_schedule import WarmupConstantDecay
from common.training.prior_step import PriorStep, PriorValidation, TokenDataset

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule("rectified_flow", "flow")
SELECTION = TokenSelection(use_registers=True, patch_grid=0)  # two tokens
LABELS = ["a", "b", "", "c", "a|b"]


class RecordingPass(PriorPass):
    """Keeps what it was given."""

    def __init__(self, prior):
        super().__init__(prior)
        self.given = []

    def forward(self, noisy, timesteps, labels):
        self.given.append(SimpleNamespace(noisy=noisy, timesteps=timesteps, labels=labels))
        return super().forward(noisy, timesteps, labels)


class RecordingPrior(EmbeddingPrior):
    """Keeps what it was given."""

    def forward(self, noisy, timesteps, context):
        self.given.append((timesteps, context))
        return super().forward(noisy, timesteps, context)


class PerfectPrior(EmbeddingPrior):
    """Knows that every image is x0."""

    def forward(self, noisy, timesteps, context):
        alpha, sigma = (part.view(-1, 1) for part in SCHEDULE.alpha_sigma(timesteps))
        return SCHEDULE.target(self.x0.expand_as(noisy), (noisy - alpha * self.x0) / sigma, timesteps)


def make_prior(dropout=0.0):
    return start_prior(make_tiny_prior(dropout=dropout), correlated_tokens(50))


def make_step(prior, uncond_prob=0.2):
    return PriorStep(schedule=SCHEDULE, uncond_prob=uncond_prob, ema=ExponentialMovingAverage(prior, 0.9))


def make_engine(network, lr=0.0, iteration=1):
    optimizer = torch.optim.Adam(network.parameters(), lr)
    state = SimpleNamespace(device=CPU, iteration=iteration)
    return SimpleNamespace(state=state, network=network, optimizer=optimizer)


def batch_of(tokens, draws=None, label=0):
    count = len(tokens)
    draws = torch.arange(count) if draws is None else torch.as_tensor(draws)
    return {"tokens": tokens, "label": torch.full((count,), label), "draw": draws, "index": draws}


# ---- what is random ------------------------------------------------------------------------------------------------


def test_a_sample_is_treated_alike_whatever_batch_it_is_in():
    prior, tokens, draws = make_prior(), correlated_tokens(5), [4, 9, 2, 7, 10**6]
    together, alone = RecordingPass(prior), RecordingPass(prior)
    make_step(prior, 0.5)(make_engine(together), batch_of(tokens, draws))
    for number, draw in enumerate(draws):
        engine = make_engine(alone, iteration=5 + number)
        make_step(prior, 0.5)(engine, batch_of(tokens[number : number + 1], [draw]))
        for name in ("timesteps", "labels"):
            assert getattr(alone.given[-1], name)[0] == getattr(together.given[0], name)[number]
        torch.testing.assert_close(alone.given[-1].noisy[0], together.given[0].noisy[number], atol=1e-5, rtol=0)
    assert len(together.given[0].timesteps.unique()) == 5 and len(together.given[0].labels.unique()) == 2


def test_labels_are_dropped_as_often_as_said_and_at_any_noise_level():
    network = RecordingPass(make_prior())
    make_step(network.prior, 0.2)(make_engine(network), batch_of(correlated_tokens(4000), label=1))
    labels, timesteps = network.given[0].labels, network.given[0].timesteps
    dropped = labels == 2
    assert set(labels.tolist()) == {1, 2}
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.02)  # three standard deviations
    assert timesteps[dropped].mean() == pytest.approx(float(timesteps.mean()), abs=25)
    make_step(network.prior, 0.0)(make_engine(network), batch_of(correlated_tokens(1000), label=1))
    assert (network.given[1].labels == 1).all()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_dropping_all_labels_or_less_than_none_is_refused(share):
    with pytest.raises(ValueError, match="uncond_prob: expected a share in"):
        make_step(make_prior(), share)


def test_dropout_is_on_a_function_of_the_step_and_touches_no_other_randomness():
    prior = make_prior(dropout=0.5)
    randomise(prior, 0.3)
    network, step, batch = PriorPass(prior), make_step(prior), batch_of(correlated_tokens(8))
    losses = []
    for iteration, global_seed in [(1, 3), (1, 4), (2, 4)]:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        losses.append(step(make_engine(network, iteration=iteration), batch)["loss"])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


# ---- learning ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_error_of_the_velocity():
    prior, tokens = make_prior(), correlated_tokens(6)
    logged = make_step(prior)(make_engine(PriorPass(prior), lr=0.25), batch_of(tokens))  # at its start it predicts 0
    noise = seeded_normal([derive_seed(0, Purpose.NOISE, draw) for draw in range(6)], (4,))
    expected = (noise - prior.components.encode(tokens)).square().mean()
    assert logged["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert logged["learning_rate"] == 0.25


def test_one_batch_is_learnt_by_heart():
    prior = make_prior()
    step, engine = make_step(prior), make_engine(PriorPass(prior), lr=1e-2)
    batch = batch_of(correlated_tokens(6))
    losses = [step(engine, batch)["loss"] for _ in range(50)]
    assert losses[-1] < losses[0] / 10
    assert step.ema.num_updates == 50


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    prior = make_prior()
    step, engine = make_step(prior), make_engine(PriorPass(prior), lr=1e-2, iteration=7)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    batch = batch_of(correlated_tokens(6))
    batch["tokens"][1, 0, 2] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 7: expected finite losses"):
        step(engine, batch)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    assert step.ema.num_updates == 0


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


def make_trainer(store, folder, kill_at=None):
    """A whole training as train_prior.yaml puts it together: 3 steps an epoch, three epochs, with dropout."""
    torch.manual_seed(0)
    selected = SELECTION.select(LatentDataset(store, "train").all_tokens())
    prior = start_prior(make_tiny_prior(dropout=0.3), selected)
    network = PriorPass(prior)
    train, val = (TokenDataset(LatentDataset(store, split), SELECTION, prior) for split in ("train", "val"))
    sampler = StepBatchSampler(len(train), batch_size=3, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, fused=True)
    step = make_step(prior)
    evaluator = SupervisedEvaluator(
        CPU,
        DataLoader(val, batch_size=2),
        step.ema.network,
        iteration_update=PriorValidation(schedule=SCHEDULE, num_levels=2, seed=0),
        key_val_metric={"val_loss": MeanError()},
        decollate=False,
    )
    return killable_trainer(
        folder,
        step,
        kill_at,
        network=network,
        optimizer=optimizer,
        lr_scheduler=WarmupConstantDecay(optimizer, warmup_steps=2, total_steps=9),
        sampler=sampler,
        train_data_loader=DataLoader(train, batch_sampler=sampler),
        validator=evaluator,
        best_metric="val_loss",
        weights_name="prior.pt",
        max_epochs=3,
        checkpoint_every_steps=2,
    )


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    trainer, losses = make_trainer(store, tmp_path_factory.mktemp("uninterrupted"))
    return whole_run(trainer, losses)


@pytest.mark.parametrize("kill_at", [2, 6, 9])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(store, uninterrupted, tmp_path, kill_at):
    assert_resumes(lambda kill: make_trainer(store, tmp_path, kill), kill_at, uninterrupted)


# ---- validation ----------------------------------------------------------------------------------------------------


def errors_of(prior, batch, num_levels=4):
    return PriorValidation(schedule=SCHEDULE, num_levels=num_levels, seed=0)(make_engine(prior), batch)["errors"]


def test_validation_is_the_same_each_time_and_in_any_batches(store):
    prior = make_prior(dropout=0.5).eval()
    randomise(prior, 0.3)
    dataset = TokenDataset(LatentDataset(store, "val"), SELECTION, prior)
    whole = default_collate([dataset[index] for index in range(5)])
    together = errors_of(prior, whole)
    assert together.shape == (5, 4) and len(together.unique()) == 20 and not together.requires_grad
    torch.manual_seed(5)
    assert torch.equal(errors_of(prior, whole), together)
    for part in ([3, 1], [0, 2, 4]):
        alone = errors_of(prior, default_collate([dataset[index] for index in part]))
        torch.testing.assert_close(alone, together[part], atol=1e-4, rtol=1e-4)


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
