import math

import pytest
import torch
import yaml
from PIL import Image

from common.errors import RunError
from common.networks.latent_codec import LatentCodec
from common.networks.weights import described
from common.training.shipping import loss_curve, set_defaults, ship_weights

CODEC = {
    "network_def": {
        "_target_": "common.networks.latent_codec.LatentCodec",
        "channels": [8, 8, 16],
        "num_res_blocks": 1,
        "latent_channels": 2,
        "norm_num_groups": 8,
    }
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "bundle" / "configs" / "train.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"bundle_root": ".", **CODEC}))
    return path


def save_codec(path, change=lambda codec: None):
    torch.manual_seed(0)
    codec = LatentCodec(**{key: value for key, value in CODEC["network_def"].items() if key != "_target_"})
    codec.half().float()  # random weights would lose more by rounding than trained ones
    codec.set_statistics(torch.zeros(2), torch.ones(2), 5)
    change(codec)
    torch.save(codec.state_dict(), path)
    return codec


def test_shipped_weights_are_half_as_large_and_give_the_same_images(config, tmp_path):
    codec = save_codec(tmp_path / "run.pt").eval()
    found = ship_weights(tmp_path / "run.pt", [config], tmp_path / "models" / "model.pt")
    assert (tmp_path / "models" / "model.pt").stat().st_size < 0.7 * (tmp_path / "run.pt").stat().st_size
    assert len(found["sha256"]) == 64 and found["change_by_rounding"] <= 1 / 255
    shipped = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert shipped["latents_mean"].dtype == torch.float32
    image = torch.rand(1, 1, 32, 32)
    expected = codec(image)
    codec.load_state_dict(shipped)
    torch.testing.assert_close(codec(image), expected, rtol=0, atol=1 / 255)


def test_what_weights_of_an_older_training_do_not_say_the_configs_say(config, tmp_path):
    save_codec(tmp_path / "run.pt")
    trainer = {"trainer": {"parts": {"image_size": "@image_size"}}}
    config.write_text(yaml.safe_dump({"bundle_root": ".", **CODEC, "image_size": 64, "train": trainer}))
    ship_weights(tmp_path / "run.pt", [config], tmp_path / "models" / "model.pt")
    assert described(tmp_path / "models" / "model.pt", "image_size") == 64


@pytest.mark.parametrize("damage", ["statistics", "range"])
def test_weights_that_half_precision_or_a_stop_has_spoilt_are_refused(config, tmp_path, damage):
    def change(codec):
        if damage == "statistics":
            codec.latents_num_images.zero_()
        else:
            codec.autoencoder.decoder.blocks[0].conv.weight.data.mul_(1e9)

    save_codec(tmp_path / "run.pt", change)
    with pytest.raises(RunError):
        ship_weights(tmp_path / "run.pt", [config], tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_defaults_change_where_a_config_has_them_and_comments_stay(tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    train, other = configs / "train.yaml", configs / "other.yaml"
    train.write_text(
        '# how\nnetwork_def:\n  channels: [8, 16] # of it\nprediction_type: epsilon # the noise\nwhere: "$@x"\n'
    )
    other.write_text("seed: 0\n")
    values = {"prediction_type": "sample", "network_def#patch_size": 2, "network_def#channels": [4, 8], "absent": 1}
    assert set_defaults(tmp_path, values) == ["train.yaml"]
    content = yaml.safe_load(train.read_text())
    assert content["network_def"] == {"channels": [4, 8], "patch_size": 2}
    assert content["prediction_type"] == "sample" and "absent" not in content and content["where"] == "$@x"
    assert "# how" in train.read_text() and "# the noise" in train.read_text()
    assert other.read_text() == "seed: 0\n"


def test_the_loss_curve_is_a_picture_of_losses_and_validations(tmp_path):
    lines = [{"step": 20 * n, "seconds": 1.0, "loss": math.exp(-n), "grad_norm": 1.0} for n in range(1, 30)]
    lines.append({"step": 600, "validation": {"psnr": 30.0}})
    loss_curve(lines, tmp_path / "both.png", "decoder")
    loss_curve(lines[:3], tmp_path / "few.png", "decoder")
    both, few = (Image.open(tmp_path / name) for name in ("both.png", "few.png"))
    assert both.width > 1.5 * few.width  # a panel for the loss, one for the validation
