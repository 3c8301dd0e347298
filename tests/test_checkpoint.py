import pytest
import torch
from torch import nn

from common.networks.weights import half_precision, save_atomically
from common.training import checkpoint as checkpoint_module
from common.training.checkpoint import CheckpointMismatchError, TrainingCheckpoint


def make_checkpoint(path, network, **fingerprint):
    return TrainingCheckpoint(path, {"network": network}, fingerprint or {"seed": 0})


def test_what_was_saved_comes_back(tmp_path):
    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    make_checkpoint(tmp_path / "new" / "last.pt", network).save({"iteration": 7})
    progress = make_checkpoint(tmp_path / "new" / "last.pt", other).load(torch.device("cpu"))
    assert progress == {"iteration": 7}
    assert torch.equal(network.weight, other.weight)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    save_atomically({"value": torch.tensor(1)}, tmp_path / "file.pt")

    def die_half_way(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module.torch, "save", die_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"value": torch.tensor(2)}, tmp_path / "file.pt")
    assert torch.load(tmp_path / "file.pt", weights_only=True)["value"] == 1


@pytest.mark.parametrize("fingerprint", [{"seed": 1}, {"seed": 0, "num_items": 5}])
def test_another_runs_checkpoint_is_refused_and_nothing_is_loaded(tmp_path, fingerprint):
    make_checkpoint(tmp_path / "last.pt", nn.Linear(2, 2)).save({"iteration": 1})
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    with pytest.raises(CheckpointMismatchError, match="written by another run"):
        make_checkpoint(tmp_path / "last.pt", network, **fingerprint).load(torch.device("cpu"))
    assert torch.equal(network.weight, before)


def test_another_set_of_objects_is_refused(tmp_path):
    make_checkpoint(tmp_path / "last.pt", nn.Linear(2, 2)).save({"iteration": 1})
    more = TrainingCheckpoint(
        tmp_path / "last.pt", {"network": nn.Linear(2, 2), "critic": nn.Linear(1, 1)}, {"seed": 0}
    )
    with pytest.raises(CheckpointMismatchError, match="other objects"):
        more.load(torch.device("cpu"))


def test_half_precision_spares_statistics_and_counters(tiny_codec):
    tiny_codec.set_statistics(torch.tensor([1.0001, 2.0]), torch.ones(2), num_images=70000)
    state = half_precision(tiny_codec.state_dict())
    assert state["latents_mean"].dtype == torch.float32
    assert state["latents_num_images"].item() == 70000
    assert state["autoencoder.quant_conv_mu.conv.weight"].dtype == torch.float16
