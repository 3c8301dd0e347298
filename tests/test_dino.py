import pytest
import torch
from conftest import randomise
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from common.errors import SettingsError, WeightsError
from common.networks.dino import DinoEncoder

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
SMALL |= {"hidden_dropout_prob": 0.5}  # so that training mode would show
KINDS = ["dinov2", "dinov2_with_registers", "dinov3_vit", "vit"]


def build(kind):
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(**SMALL))
    if kind == "dinov2_with_registers":
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3))
    if kind == "dinov3_vit":
        return DINOv3ViTModel(DINOv3ViTConfig(**SMALL, intermediate_size=64, num_register_tokens=3))
    return ViTModel(ViTConfig(**SMALL, intermediate_size=64), add_pooling_layer=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        model = build(kind)
        randomise(model, 0.3)  # registers and biases start as zeros, which would hide a wrong slice
        model.save_pretrained(root / kind)
    return root


def normalised(image):
    """ImageNet normalisation, written out."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image.repeat(1, 3, 1, 1) - mean[None, :, None, None]) / std[None, :, None, None]


@pytest.mark.parametrize(("kind", "registers"), zip(KINDS, (0, 3, 3, 0), strict=True))
def test_tokens_are_those_of_the_model(folders, kind, registers):
    image = torch.rand(2, 1, 28, 28)
    tokens = DinoEncoder(folders / kind, image_size=28)(image)
    model = type(build(kind)).from_pretrained(folders / kind).eval()
    with torch.no_grad():
        expected = model(pixel_values=normalised(image)).last_hidden_state
    assert tokens.register_tokens.shape == (2, registers, 32)
    assert tokens.patch_tokens.shape == (2, 4, 32)
    torch.testing.assert_close(tokens.cls_token, expected[:, 0])
    torch.testing.assert_close(tokens.register_tokens, expected[:, 1 : 1 + registers])
    torch.testing.assert_close(tokens.patch_tokens, expected[:, 1 + registers :])


@pytest.mark.parametrize("kind", KINDS)
def test_resizes_to_other_sizes_than_the_config(folders, kind):
    encoder = DinoEncoder(folders / kind, image_size=42)
    assert encoder(torch.rand(1, 1, 50, 50)).patch_tokens.shape == (1, 9, 32)
    assert encoder.resized_size(100, 170) == (42, 70)  # 71.4 to the nearest multiple of 14
    assert encoder(torch.rand(1, 1, 100, 170)).patch_tokens.shape == (1, 15, 32)
    exact = DinoEncoder(folders / kind, image_size=(28, 56))
    assert exact.preprocess(torch.rand(1, 1, 90, 33)).shape == (1, 3, 28, 56)


def test_reduction_is_antialiased(folders):
    stripes = torch.arange(252).remainder(2).float().expand(1, 1, 252, 252)  # a plain bicubic would pick single pixels
    encoder = DinoEncoder(folders / "dinov2", image_size=28)
    expected = encoder.preprocess(torch.full((1, 1, 28, 28), 0.5))
    torch.testing.assert_close(encoder.preprocess(stripes)[..., 3:-3], expected[..., 3:-3], atol=0.02, rtol=0)


def test_is_frozen_and_stays_in_evaluation_mode(folders):
    encoder = DinoEncoder(folders / "dinov2", image_size=28)
    torch.nn.ModuleList([encoder]).train()
    image = torch.rand(1, 1, 28, 28, requires_grad=True)
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder(image).cls_token.requires_grad
    torch.testing.assert_close(encoder(image).cls_token, encoder(image).cls_token, atol=0, rtol=0)


def test_half_precision_checkpoint_runs_in_float32(folders, tmp_path):
    Dinov2Model.from_pretrained(folders / "dinov2").half().save_pretrained(tmp_path)
    encoder = DinoEncoder(tmp_path, image_size=28)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder(torch.rand(1, 1, 28, 28)).cls_token.dtype == torch.float32


def test_works_in_bfloat16_autocast_and_inference_mode(folders):
    encoder = DinoEncoder(folders / "dinov2", image_size=28)
    image = torch.rand(2, 1, 60, 60)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        low = encoder(image).cls_token.float()
    assert torch.nn.functional.cosine_similarity(low, encoder(image).cls_token).min() > 0.99


def test_missing_weights_are_not_left_random(folders, tmp_path):
    Dinov2Model.from_pretrained(folders / "dinov2").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"layernorm\.weight"):
        DinoEncoder(tmp_path, image_size=28)


def test_a_hub_id_without_the_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="no-one/nothing"):
        DinoEncoder("no-one/nothing")


def test_what_cannot_be_used_is_named(folders, tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"resnet.*dinov2"):
        DinoEncoder(tmp_path)
    with pytest.raises(WeightsError, match="none"):
        DinoEncoder(tmp_path / "none")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_bytes((folders / "dinov2" / "config.json").read_bytes())
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="damaged"):
        DinoEncoder(tmp_path / "damaged")
    with pytest.raises(SettingsError, match="224"):
        DinoEncoder(folders / "dinov2", image_size=225)
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\]"):
        DinoEncoder(folders / "dinov2", image_size=28)(torch.rand(1, 3, 28, 28))
