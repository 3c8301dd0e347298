import pytest
import torch
from conftest import randomise
from monai.networks.blocks import SABlock
from torch import nn

from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Sampler
from common.networks.pixel_denoiser import PixelDenoiser, start_pixel_denoiser

TINY = {
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
PAPER_SCALE = {
    "channels": [128, 128, 256, 256, 512, 512],
    "num_res_blocks": 2,
    "attention_levels": [False, False, False, True, True, True],
    "num_head_channels": 64,
}


def make_tiny_pixel_denoiser(**changes):
    """A real denoiser of two levels, no weight zero."""
    denoiser = PixelDenoiser(**{**TINY, **changes})
    randomise(denoiser, 0.2)
    return denoiser


def test_every_weight_learns_which_distributed_training_would_wait_for():
    denoiser = make_tiny_pixel_denoiser()
    denoiser(torch.randn(2, 1, 8, 8), torch.tensor([1, 500])).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in denoiser.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # A bias of all keys alike changes no softmax: the gradient is zero but for rounding, and never None.
    silent = [name for name, gradient in gradients.items() if not gradient.any() and ".to_k.bias" not in name]
    assert silent == []
    assert any(".attn.out_proj.weight" in name for name in gradients), "attention ends in a projection, as in ADM"


def test_image_and_timestep_matter_and_images_of_a_batch_do_not_see_each_other():
    denoiser = make_tiny_pixel_denoiser().eval()
    noisy, timesteps = torch.randn(2, 1, 8, 12), torch.tensor([3, 700])
    output = denoiser(noisy, timesteps)
    assert output.shape == noisy.shape
    assert (denoiser(noisy, timesteps.flip(0)) - output).abs().max() > 0.01
    alone = torch.cat([denoiser(noisy[n : n + 1], timesteps[n : n + 1]) for n in range(2)])
    torch.testing.assert_close(alone, output, atol=1e-5, rtol=1e-5)


def test_a_new_denoiser_predicts_zero_and_its_attention_changes_nothing_yet():
    denoiser = PixelDenoiser(**TINY)
    assert not denoiser(torch.randn(1, 1, 8, 8), torch.tensor([5])).any()
    attention = [module for module in denoiser.modules() if isinstance(module, SABlock)]
    assert attention and not any(block(torch.randn(1, 4, block.hidden_input_size)).any() for block in attention)


def test_dropout_acts_in_training_only_and_leaves_the_names_of_the_weights_as_they_are():
    plain, dropping = make_tiny_pixel_denoiser(), make_tiny_pixel_denoiser(dropout=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    dropping.load_state_dict(plain.state_dict())
    noisy, timesteps = torch.randn(1, 1, 8, 8), torch.tensor([5])
    torch.testing.assert_close(dropping.eval()(noisy, timesteps), plain.eval()(noisy, timesteps))
    dropping.train()
    assert (dropping(noisy, timesteps) - dropping(noisy, timesteps)).abs().max() > 0.01
    num_dropouts = sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in dropping.modules())
    assert num_dropouts == 2 + 1 + 2 + 4 + 1, "one per residual block: down, its resampling, middle, up, its resampling"


@pytest.mark.parametrize("shape", [(1, 1, 8, 9), (1, 1, 7, 8), (1, 3, 8, 8), (1, 8, 8)])
def test_sizes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 2"):
        make_tiny_pixel_denoiser()(torch.randn(shape), torch.tensor([5]))


@pytest.mark.parametrize("wrong", [{"dropout": -0.1}, {"dropout": 1.0}, {"patch_size": 0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        PixelDenoiser(**TINY, **wrong)


@pytest.mark.parametrize("num_train_timesteps", [1000, 4000])
def test_the_sampler_draws_with_it(num_train_timesteps):
    schedule = NoiseSchedule("cosine", "epsilon", num_train_timesteps)
    sampler = Sampler(schedule, "ddim", 4, spacing="leading", eta=1.0)
    samples = sampler.sample(make_tiny_pixel_denoiser().eval(), (1, 8, 8), seeds=[1, 2])
    assert samples.shape == (2, 1, 8, 8) and samples.isfinite().all() and not torch.equal(*samples)


def test_paper_scale_has_the_width_depth_and_attention_of_adm():
    with torch.device("meta"):
        denoiser = PixelDenoiser(**PAPER_SCALE)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 131_649_793
    attention = {name.split(".attentions")[0] for name, m in denoiser.named_modules() if isinstance(m, SABlock)}
    down = {f"unet.down_blocks.{level}" for level in (3, 4, 5)}
    up = {f"unet.up_blocks.{level}" for level in (0, 1, 2)}
    assert attention == down | up | {"unet.middle_block.attention.attn"}, "at 32, 16 and 8 of 256 px"


def test_a_training_starts_from_weights_or_from_nothing(tmp_path):
    denoiser = make_tiny_pixel_denoiser().eval()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    torch.save({name: value.half() for name, value in before.items()}, tmp_path / "model.pt")
    assert start_pixel_denoiser(denoiser, None) is denoiser and denoiser.training
    loaded = start_pixel_denoiser(PixelDenoiser(**TINY), tmp_path / "model.pt")
    assert loaded.training
    for name, value in before.items():
        assert torch.equal(denoiser.state_dict()[name], value) and loaded.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_patches_are_folded_in_space_and_back():
    """Each square of 2 × 2 px is one position of the U-Net, in the order in which it is unfolded again."""
    denoiser = make_tiny_pixel_denoiser(patch_size=2).eval()
    assert denoiser.downsampling_factor == 2 * make_tiny_pixel_denoiser().downsampling_factor
    noisy, timesteps = torch.randn(1, 1, 16, 24), torch.tensor([3])
    seen = {}
    denoiser.unet.register_forward_hook(lambda _, inputs, output: seen.update(input=inputs[0], output=output))
    with torch.no_grad():
        output = denoiser(noisy, timesteps)
    assert output.shape == noisy.shape and seen["input"].shape == (1, 4, 8, 12)
    for row in range(2):
        for column in range(2):
            assert torch.equal(seen["input"][0, 2 * row + column], noisy[0, 0, row::2, column::2])
            assert torch.equal(seen["output"][0, 2 * row + column], output[0, 0, row::2, column::2])
    with pytest.raises(ValueError):
        denoiser(torch.randn(1, 1, 17, 24), timesteps)
