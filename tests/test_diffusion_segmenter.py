import logging

import pytest
import torch
from conftest import randomise
from test_pixel_denoiser import TINY, make_tiny_pixel_denoiser

from common.errors import WeightsError
from common.intensity import to_signed
from common.networks.diffusion_segmenter import DiffusionSegmenter, start_segmenter, take_pretrained
from common.networks.weights import load_weights

HEAD = ("unet.out.2.conv.weight", "unet.out.2.conv.bias")


def make_tiny_segmenter(seed=0, num_classes=3, **changes):
    """A real segmenter of three classes on the U-Net of `make_tiny_pixel_denoiser`, as it is initialised."""
    torch.manual_seed(seed)
    return DiffusionSegmenter(num_classes, **{**TINY, **changes})


@pytest.fixture
def random_segmenter():
    segmenter = make_tiny_segmenter()
    randomise(segmenter, 0.2)
    return segmenter.eval()


@pytest.fixture
def pretrained(tmp_path):
    """Path of a denoiser's weights, none of them zero."""
    torch.save(make_tiny_pixel_denoiser().state_dict(), tmp_path / "denoiser.pt")
    return tmp_path / "denoiser.pt"


def test_it_is_the_unet_on_the_signed_image_at_the_fixed_timestep(random_segmenter):
    image = torch.rand(2, 1, 8, 12)
    expected = random_segmenter.unet(to_signed(image), torch.tensor([1, 1]))
    assert torch.equal(random_segmenter(image), expected)
    late = make_tiny_segmenter(timestep=500).eval()
    late.load_state_dict(random_segmenter.state_dict())
    torch.testing.assert_close(late(image), late.unet(to_signed(image), torch.tensor([500, 500])))
    assert (late(image) - expected).abs().max() > 0.01


def test_odd_sizes_are_padded_with_their_border_and_cut_back(random_segmenter):
    image = torch.rand(1, 1, 9, 13)
    padded = torch.cat([image, image[:, :, -1:]], dim=2)
    padded = torch.cat([padded, padded[..., -1:]], dim=3)
    logits = random_segmenter(image)
    assert logits.shape == (1, 3, 9, 13)
    torch.testing.assert_close(logits, random_segmenter(padded)[..., :9, :13])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda segmenter: segmenter(torch.rand(1, 3, 8, 8)),
        lambda segmenter: segmenter(torch.rand(1, 8, 8)),
        lambda _: make_tiny_segmenter(num_classes=1),
        lambda _: make_tiny_segmenter(timestep=-1),
    ],
)
def test_what_cannot_be_is_refused(random_segmenter, wrong):
    with pytest.raises(ValueError):
        wrong(random_segmenter)


def test_every_weight_learns_from_the_first_step_as_a_denoiser_was_left(pretrained):
    segmenter = start_segmenter(make_tiny_segmenter(), pretrained)
    segmenter(torch.rand(2, 1, 8, 8)).log_softmax(1)[:, 0].mean().backward()
    gradients = {name: parameter.grad for name, parameter in segmenter.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.any() and ".to_k.bias" not in name] == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_and_an_export_give_the_same_also_for_another_batch_and_an_odd_size(random_segmenter):
    traced = torch.jit.trace(random_segmenter, torch.rand(1, 1, 8, 8), check_trace=False)
    for shape in [(1, 1, 8, 8), (3, 1, 12, 8), (2, 1, 9, 13)]:
        image = torch.rand(shape)
        expected = random_segmenter(image)
        torch.testing.assert_close(traced(image), expected, atol=1e-5, rtol=1e-5)
    exported = torch.export.export(random_segmenter, (image,)).module()
    torch.testing.assert_close(exported(image), expected, atol=1e-5, rtol=1e-5)


def equal(segmenter, expected):
    return all(torch.equal(segmenter.state_dict()[name], value) for name, value in expected.items())


def test_everything_but_the_final_convolution_is_taken_and_named(pretrained, caplog):
    source, untouched = torch.load(pretrained, weights_only=True), make_tiny_segmenter().state_dict()
    expected = {name: untouched[name] if name in HEAD else value for name, value in source.items()}
    segmenter = make_tiny_segmenter()
    with caplog.at_level(logging.INFO):
        assert take_pretrained(segmenter, pretrained) == list(HEAD)
    assert source.keys() == untouched.keys() and equal(segmenter, expected)
    assert f"{len(source) - 2} of {len(source)}" in caplog.text and ", ".join(HEAD) in caplog.text
    assert equal(start_segmenter(make_tiny_segmenter(), "ddpm", ddpm_path=pretrained), expected)


def test_the_features_are_those_of_the_denoiser(pretrained):
    denoiser, segmenter = make_tiny_pixel_denoiser().eval(), make_tiny_segmenter().eval()
    take_pretrained(segmenter, pretrained)
    features = []
    for network in (denoiser, segmenter):
        network.unet.out[1].register_forward_hook(lambda _module, _input, output: features.append(output))
    image = torch.rand(1, 1, 8, 8)
    denoiser(to_signed(image), torch.tensor([1]))
    segmenter(image)
    assert torch.equal(*features)


def test_starting_from_nothing_keeps_the_initial_weights_and_says_so(caplog):
    segmenter = make_tiny_segmenter(seed=4).eval()
    with caplog.at_level(logging.INFO):
        assert start_segmenter(segmenter, "none") is segmenter
    assert segmenter.training and "no pre-trained weights" in caplog.text
    assert equal(segmenter, make_tiny_segmenter(seed=4).state_dict())


def test_a_segmenter_with_other_classes_and_dropout_passes_on_its_weights_too(tmp_path):
    eleven = make_tiny_segmenter(seed=1, num_classes=12)
    torch.save(eleven.state_dict(), tmp_path / "model.pt")
    segmenter = start_segmenter(make_tiny_segmenter(dropout=0.3), tmp_path / "model.pt")
    assert equal(segmenter, {name: value for name, value in eleven.state_dict().items() if name not in HEAD})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: {name: value for name, value in state.items() if "conv_in" not in name}, r"unet\.conv_in"),
        (lambda state: {**state, "more": torch.zeros(1)}, "more"),
        (lambda state: {**state, "unet.time_embed.0.bias": torch.zeros(7)}, r"unet\.time_embed\.0\.bias"),
    ],
)
def test_weights_of_another_unet_are_refused_and_nothing_is_loaded(tmp_path, pretrained, change, named):
    path = tmp_path / "other.pt"
    torch.save(change(torch.load(pretrained, weights_only=True)), path)
    segmenter = make_tiny_segmenter()
    with pytest.raises(WeightsError, match=rf"other\.pt.*{named}"):
        start_segmenter(segmenter, path)
    assert equal(segmenter, make_tiny_segmenter().state_dict())


def test_a_fine_tuned_segmenter_comes_back_and_trains_on_final_convolution_included(
    tmp_path, pretrained, random_segmenter, caplog
):
    path = tmp_path / "model.pt"
    torch.save(random_segmenter.state_dict(), path)
    loaded = load_weights(make_tiny_segmenter(), path)
    assert not loaded.training and equal(loaded, random_segmenter.state_dict())
    with caplog.at_level(logging.INFO):
        segmenter = start_segmenter(make_tiny_segmenter(seed=5), "none", init_weights=path)
    assert segmenter.training and "took all" in caplog.text and equal(segmenter, random_segmenter.state_dict())
    with pytest.raises(WeightsError, match=r"unet\.out\.2\.conv"):
        load_weights(make_tiny_segmenter(), pretrained)


def test_logits_of_folded_patches_lie_where_their_pixels_do():
    """With a final convolution that passes its input's place on, each class map is unfolded like the image."""
    segmenter = make_tiny_segmenter(patch_size=3).eval()
    image = torch.rand(1, 1, 20, 31)
    seen = {}
    segmenter.unet.register_forward_hook(lambda _module, inputs, output: seen.update(output=output))
    with torch.no_grad():
        logits = segmenter(image)
    assert logits.shape == (1, 3, 20, 31)
    folded = seen["output"][0].unflatten(0, (3, 9))
    for row in range(3):
        for column in range(3):
            part = logits[0, :, row::3, column::3]
            assert torch.equal(part, folded[:, 3 * row + column, : part.shape[1], : part.shape[2]])
