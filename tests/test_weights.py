import pytest
import torch
from torch import nn

from common.networks.weights import MissingWeightsError, load_weights, read_weights


def test_half_precision_files_become_the_networks_dtype_and_the_network_evaluates(tmp_path):
    trained = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    torch.save({key: value.half() for key, value in trained.state_dict().items()}, tmp_path / "model.pt")
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    assert load_weights(network, tmp_path / "model.pt") is network
    assert not network.training
    for key, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, trained.state_dict()[key].half().float())


def test_other_networks_weights_are_refused(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(nn.Linear(3, 4), tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(nn.Sequential(nn.Linear(3, 2)), tmp_path / "model.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        MissingWeightsError, match=r"none\.pt: no weights there; expected the file that training writes"
    ):
        read_weights(tmp_path / "none.pt")
