import hashlib

import pytest
import torch
from torch import nn

from common.fingerprint import file_sha256, json_sha256, network_sha256


def make_network(width=3):
    """Weights, float and integer buffers, a scalar, an empty one and a flag."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    network.register_buffer("flag", torch.tensor([True, False]))
    network.register_buffer("none", torch.zeros(0, 3))
    return network


def test_equal_networks_agree_and_seeds_do_not():
    assert network_sha256(make_network()) == network_sha256(make_network())
    other = make_network()
    nn.init.normal_(other[0].weight)
    assert network_sha256(other) != network_sha256(make_network())


def test_a_half_precision_file_agrees_with_its_float32_copy(tmp_path):
    halves = make_network().half()
    torch.save(halves.state_dict(), tmp_path / "halves.pt")
    loaded = make_network()
    loaded.load_state_dict(torch.load(tmp_path / "halves.pt", weights_only=True))
    assert loaded[0].weight.dtype == torch.float32
    assert network_sha256(loaded) == network_sha256(halves) == network_sha256(make_network().half().float())
    assert network_sha256(loaded) != network_sha256(make_network())  # rounding is a change


@pytest.mark.parametrize("name", [name for name, value in make_network().state_dict().items() if value.numel()])
def test_any_single_number_changes_it(name):
    network = make_network()
    before = network_sha256(network)
    value = network.state_dict()[name].view(-1)[-1:]
    value.copy_(~value if value.dtype == torch.bool else value + 1)
    assert network_sha256(network) != before


def test_names_and_shapes_count():
    first, second = nn.Module(), nn.Module()
    first.a, second.b = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    reshaped = nn.Module()
    reshaped.a = nn.Parameter(torch.ones(2, 3))
    assert len({network_sha256(network) for network in (first, second, reshaped)}) == 3


def test_order_of_definition_and_of_memory_do_not_count():
    first, second = nn.Module(), nn.Module()
    value = torch.arange(6.0).view(2, 3)
    first.a, first.b = nn.Parameter(value), nn.Parameter(torch.ones(1))
    second.b, second.a = nn.Parameter(torch.ones(1)), nn.Parameter(value.T.contiguous().T)
    assert network_sha256(first) == network_sha256(second)


def test_a_file_has_the_hash_that_sha256sum_gives(tmp_path, monkeypatch):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected
    (tmp_path / "long").write_bytes(bytes(3 << 20) + b"end")
    at_once = file_sha256(tmp_path / "long")
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # as in Python 3.10
    assert file_sha256(tmp_path / "abc") == expected
    assert file_sha256(tmp_path / "long") == at_once == hashlib.sha256(bytes(3 << 20) + b"end").hexdigest()


def test_settings_count_whatever_the_order_of_their_keys(tmp_path):
    assert json_sha256({"a": 1, "b": [tmp_path]}) == json_sha256({"b": [str(tmp_path)], "a": 1})
    assert json_sha256({"a": 1}) != json_sha256({"a": 2}) != json_sha256([{"a": 2}])
