import pytest
import torch
from torch import nn

from common.errors import CheckpointMismatchError
from common.networks.weights import half_precision
from common.training.checkpoint import TrainingCheckpoint

CPU = torch.device("cpu")


def make_checkpoint(path, network, **settings):
    return TrainingCheckpoint(path, {"network": network}, settings or {"seed": 0})


@pytest.fixture
def saved(tmp_path):
    network = nn.Linear(2, 2)
    make_checkpoint(tmp_path / "new" / "last.pt", network).save({"iteration": 7})
    return network, tmp_path / "new" / "last.pt"


def test_what_was_saved_comes_back(saved):
    other = nn.Linear(2, 2)
    assert make_checkpoint(saved[1], other).load(CPU) == {"iteration": 7}
    assert torch.equal(saved[0].weight, other.weight)


@pytest.mark.parametrize("settings", [{"seed": 1}, {"seed": 0, "image_size": 5}, {"other": 0}])
def test_another_runs_checkpoint_is_refused_by_what_changed_and_nothing_is_loaded(saved, settings):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    with pytest.raises(CheckpointMismatchError) as caught:
        make_checkpoint(saved[1], network, **settings).load(CPU)
    changed = [name for name in {"seed", *settings} if settings.get(name) != {"seed": 0}.get(name)]
    assert all(name in str(caught.value) for name in changed)
    assert torch.equal(network.weight, before)


def test_a_changed_learning_rate_is_taken_and_told(tmp_path, caplog):
    network = nn.Linear(2, 2)
    make_checkpoint(tmp_path / "last.pt", network, learning_rate=0.1).save({"iteration": 7})
    assert make_checkpoint(tmp_path / "last.pt", network, learning_rate=0.2).load(CPU) == {"iteration": 7}
    assert "0.1" in caplog.text and "0.2" in caplog.text


@pytest.mark.parametrize(
    "objects", [{"network": nn.Linear(2, 2), "discriminator": nn.Linear(1, 1)}, {"network": nn.Linear(2, 3)}]
)
def test_other_objects_are_refused_by_name(saved, objects):
    with pytest.raises(CheckpointMismatchError) as caught:
        TrainingCheckpoint(saved[1], objects, {"seed": 0}).load(CPU)
    assert list(objects)[-1] in str(caught.value)


def test_no_flipped_bit_and_no_cut_loads(saved):
    network, path = saved
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointMismatchError):
            make_checkpoint(path, network).load(CPU)
        path.write_bytes(content[:place])
        with pytest.raises(CheckpointMismatchError):
            make_checkpoint(path, network).load(CPU)


def test_half_precision_spares_statistics_and_counters(tiny_codec):
    tiny_codec.set_statistics(torch.tensor([1.0001, 2.0]), torch.ones(2), num_images=70000)
    state = half_precision(tiny_codec.state_dict())
    assert state["latents_mean"].dtype == torch.float32
    assert state["latents_num_images"].item() == 70000
    assert state["autoencoder.quant_conv_mu.conv.weight"].dtype == torch.float16
