import pytest
import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from common.training.losses import AdversarialTerm, LocalPower, ReconstructionLoss, kl_divergence


def make_critic():
    return PatchDiscriminator(spatial_dims=2, in_channels=1, channels=8, num_layers_d=2, norm="INSTANCE")


class MeanDifference(nn.Module):
    def forward(self, image, reference):
        return (image - reference).flatten(1).mean(1).abs()


def test_kl_equals_torchs():
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    expected = torch_kl(Normal(mean, std), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(mean, std), expected)


def test_kl_of_the_prior_is_zero_and_of_a_point_is_finite():
    assert kl_divergence(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)) == 0
    assert kl_divergence(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).isfinite()


def test_terms_are_per_image_weighted_and_summed():
    image = torch.full((2, 1, 4, 4), 0.5)
    reconstruction = image + torch.tensor([0.1, 0.0]).view(2, 1, 1, 1)
    loss = ReconstructionLoss(MeanDifference(), perceptual_weight=3.0)
    terms = loss.terms(reconstruction, image)
    torch.testing.assert_close(terms["l1"], torch.tensor([0.2, 0.0]))  # on [-1, 1] a step of 0.1 counts 0.2
    torch.testing.assert_close(terms["perceptual"], torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(loss(reconstruction, image), torch.tensor([[0.5], [0.0]]))
    assert set(ReconstructionLoss(None, 1.0).terms(reconstruction, image)) == {"l1"}


def test_adversarial_term_waits_for_its_start_and_for_a_weight():
    term = AdversarialTerm(make_critic(), weight=0.1, start_step=5)
    assert [term.is_active(step) for step in (1, 4, 5, 6)] == [False, False, True, True]
    assert not AdversarialTerm(make_critic(), weight=0.0, start_step=1).is_active(10)


def test_each_side_reaches_its_own_network_only():
    critic = make_critic()
    term = AdversarialTerm(critic, weight=0.1, start_step=1)
    reconstruction = torch.rand(2, 1, 32, 32, requires_grad=True)
    term.generator_loss(reconstruction).backward()
    assert reconstruction.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    reconstruction.grad = None
    term.discriminator_loss(reconstruction, torch.rand(2, 1, 32, 32)).backward()
    assert reconstruction.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_a_critic_that_learns_makes_its_loss_fall_and_the_generators_rise():
    critic = make_critic()
    term = AdversarialTerm(critic, weight=1.0, start_step=1)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    real, fake = torch.rand(4, 1, 32, 32), torch.full((4, 1, 32, 32), 0.5)
    before = term.discriminator_loss(fake, real).item(), term.generator_loss(fake).item()
    for _ in range(30):
        optimizer.zero_grad()
        term.discriminator_loss(fake, real).backward()
        optimizer.step()
    assert term.discriminator_loss(fake, real).item() < before[0] / 3
    assert term.generator_loss(fake).item() > before[1] * 0.8
    assert term.generator_loss(fake).item() > term.generator_loss(real).item()


def test_generator_weight_scales_the_term():
    critic = make_critic().eval()
    image = torch.rand(1, 1, 32, 32)
    one, tenth = (AdversarialTerm(critic, weight, 1).generator_loss(image).item() for weight in (1.0, 0.1))
    assert tenth == pytest.approx(one / 10, rel=1e-5)


def test_local_power_is_nothing_for_itself_and_sees_missing_and_added_texture():
    image = (0.5 + 0.05 * torch.randn(2, 1, 64, 64)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1)
    local_power = LocalPower()
    assert torch.equal(local_power(image, image), torch.zeros(2))
    assert (local_power(blurred, image) > 0.5).all()
    assert (local_power(image, blurred) > 0.5).all()


def test_local_power_asks_for_as_much_texture_not_for_the_same():
    first, second = (0.5 + 0.05 * torch.randn(2, 1, 128, 128) for _ in range(2))
    assert (LocalPower()(first, second) < 0.3).all()


def test_local_power_counts_in_the_loss_where_it_has_a_weight():
    image, other = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)
    terms = ReconstructionLoss(None, 0.0, 0.5).terms(image, other)
    torch.testing.assert_close(terms["local_power"], 0.5 * LocalPower()(image, other))
    assert "local_power" not in ReconstructionLoss(None, 0.0).terms(image, other)


def test_the_gradient_penalty_of_a_linear_discriminator_is_its_squared_weight():
    weights = torch.randn(1, 1, 4, 4)
    convolution = nn.Conv2d(1, 1, 4, stride=4, bias=False)
    convolution.weight.data = weights
    term = AdversarialTerm(
        lambda image: [convolution(image)], 1.0, 1, "hinge", gradient_penalty=3.0, penalty_interval=4
    )
    images = torch.rand(2, 1, 16, 16)
    assert term.penalty(images, step=3) is None
    assert term.penalty(images, step=4).item() == pytest.approx(0.5 * 3.0 * 4 * weights.square().sum().item(), rel=1e-5)
