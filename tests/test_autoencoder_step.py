from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_codec
from monai.networks.nets import PatchDiscriminator
from trainings import CPU, make_engine, phantoms

from common.networks.latent_codec import VariationalPass
from common.seeding import Purpose, derive_seed, seeded_normal
from common.training.autoencoder_step import AutoencoderStep, image_as_label
from common.training.ema import ExponentialMovingAverage
from common.training.losses import AdversarialTerm, ReconstructionLoss


def make_step(codec, adv_start_step=1, patch_size=32, full_size_from_step=1, kl_weight=1e-6):
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=8, num_layers_d=2, norm="INSTANCE")
    return AutoencoderStep(
        reconstruction_loss=ReconstructionLoss(None, 0.0),
        kl_weight=kl_weight,
        ema=ExponentialMovingAverage(codec, ema_decay=0.9),
        max_grad_norm=1.0,
        amp=False,
        seed=0,
        patch_size=patch_size,
        full_size_from_step=full_size_from_step,
        adversarial=AdversarialTerm(discriminator, weight=0.01, start_step=adv_start_step),
        discriminator_optimizer=torch.optim.Adam(discriminator.parameters(), 1e-4),
    )


def phantom_batch():
    return {"image": phantoms(2, 32), "draw": torch.tensor([0, 1])}


def test_every_term_is_logged_and_the_discriminator_joins_at_its_step():
    codec = make_tiny_codec()
    step = make_step(codec, adv_start_step=2)
    before = step(make_engine(VariationalPass(codec), iteration=1), phantom_batch())
    after = step(make_engine(VariationalPass(codec), iteration=2), phantom_batch())
    assert {"l1", "kl", "grad_norm", "learning_rate"} <= before.keys()
    assert after.keys() - before.keys() == {"adversarial", "discriminator", "discriminator_grad_norm"}


def test_a_step_sees_patches_first_and_whole_images_later():
    codec = make_tiny_codec()
    step = make_step(codec, patch_size=16, full_size_from_step=2)
    engines = [make_engine(VariationalPass(codec), iteration=iteration) for iteration in (1, 2)]
    assert [step(engine, phantom_batch())["image"].shape[-1] for engine in engines] == [16, 32]


def test_noise_and_crops_have_seeds_of_their_own():
    codec, noises = make_tiny_codec(), []
    engine, step = make_engine(VariationalPass(codec)), make_step(codec)
    engine.network.register_forward_pre_hook(lambda network, inputs: noises.append(inputs[1]))
    step(engine, phantom_batch())
    shape = tuple(noises[0].shape[1:])
    for purpose in Purpose:
        drawn = seeded_normal([derive_seed(0, purpose, draw) for draw in (0, 1)], shape)
        assert torch.equal(drawn, noises[0]) == (purpose == Purpose.POSTERIOR)


def test_noise_on_the_latents_is_drawn_per_image_and_needs_statistics(tiny_codec):
    tiny_codec.latents_num_images.zero_()
    with pytest.raises(ValueError, match="latent_noise"):
        replace(make_step(tiny_codec), latent_noise=0.2)
    tiny_codec.set_statistics(torch.zeros(2), torch.ones(2), num_images=1)
    step, added = replace(make_step(tiny_codec), latent_noise=0.2), []
    engine = make_engine(VariationalPass(tiny_codec))
    engine.network.register_forward_pre_hook(lambda network, inputs: added.append(inputs[2]))
    batch = phantom_batch()
    for part in (batch, {name: values[1:] for name, values in batch.items()}):
        step(engine, part)
    assert torch.equal(added[0][1:], added[1])
    amounts = step._latent_noise(list(range(200)), (2, 8, 8)).std(dim=(1, 2, 3))
    assert amounts.max() < 0.5 and amounts.min() < 0.02 and 0.12 < amounts.mean() < 0.18


def test_gradients_of_a_huge_loss_are_clipped():
    codec = make_tiny_codec()
    engine = make_engine(VariationalPass(codec))
    logged = make_step(codec, kl_weight=1e9)(engine, phantom_batch())
    assert logged["grad_norm"] > 1.0
    norm = torch.stack([parameter.grad.norm() for parameter in codec.parameters()]).norm()
    assert norm <= 1.0 + 1e-4


def test_an_adversarial_term_without_optimiser_and_accumulation_are_refused(tiny_codec):
    for changes in ({"discriminator_optimizer": None}, {"accumulation_steps": 2}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            replace(make_step(tiny_codec), **changes)


def test_the_target_of_an_autoencoder_is_its_input():
    image, label = image_as_label({"image": torch.rand(1, 1, 4, 4), "source": ["a"]}, CPU)
    assert label is image
