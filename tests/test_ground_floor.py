"""Numbers that everything stands on: precision, ranges, seeds, hashes, spectra and values of files."""

import hashlib
import math

import pytest
import torch
from torch import nn

from common.amp import autocast, has_bfloat16
from common.checks import check_apart, check_device, check_folder, check_multiple, check_numbers
from common.errors import SettingsError
from common.fingerprint import file_sha256, json_sha256, network_sha256
from common.intensity import stored_values, to_signed, to_unit
from common.seeding import Purpose, derive_seed, sample_seed, seeded_dropout, seeded_normal, torch_seed
from common.spectrum import OCTAVES, band_power, line_power

# ---- precision -------------------------------------------------------------------------------------------------------


def test_off_is_float32():
    device = torch.device("cpu")
    with autocast(device, enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_on_uses_bfloat16_just_where_it_is_native():
    device = torch.device("cpu")
    expected = torch.bfloat16 if has_bfloat16(device) else torch.float32
    with autocast(device, enabled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


# ---- values ----------------------------------------------------------------------------------------------------------


def test_ends_of_the_ranges_map_onto_each_other():
    image = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(to_signed(image), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(to_unit(to_signed(image)), image)


def test_out_of_range_is_not_clipped_so_that_gradients_survive():
    assert to_unit(torch.tensor(3.0)) == 2.0


@pytest.mark.parametrize("bits", [8, 16])
def test_values_go_to_the_nearest_level(bits):
    top = 2**bits - 1
    values = torch.tensor([[[0.0, 0.49, 0.51, top - 0.51, top - 0.49, top]]], dtype=torch.float64) / top
    assert stored_values(values, bits).tolist() == [[0, 0, 1, top - 1, top, top]]


def test_what_files_do_not_hold_is_refused():
    with pytest.raises(ValueError, match="found bits 12; expected 8 or 16"):
        stored_values(torch.zeros(1, 2, 2), 12)
    with pytest.raises(ValueError, match="Clamp them first"):
        stored_values(torch.full((1, 2, 2), 1.5), 8)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_are_fixed_for_ever_and_fit_torch():
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2)
    seeds = {derive_seed(run, purpose, draw) for run in range(3) for purpose in Purpose for draw in range(100)}
    assert len(seeds) == 3 * len(Purpose) * 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_for_torch_keep_to_the_bits_that_it_reads():
    assert 0 <= torch_seed(0, 1, 2) < 2**32 and torch_seed(0, 1, 2) == derive_seed(0, 1, 2) % 2**32
    seeds = [sample_seed(5, number) for number in range(10_000)]
    assert len(set(seeds)) == 10_000 and min(seeds) >= 0 and max(seeds) < 2**32
    assert seeds[:3] == [sample_seed(5, number) for number in range(3)] and seeds[0] != sample_seed(6, 0)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = seeded_normal([5, 6, 7], (2, 4, 4))
    assert torch.equal(together[1:2], seeded_normal([6], (2, 4, 4)))
    assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal():
    noise = seeded_normal([1, 2], (100, 100))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_dropout_is_that_of_its_seed_and_the_global_generator_goes_on_as_if_nothing_had_been():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn = []
    for parts in [(5, 6), (5, 7), (5, 6)]:
        with seeded_dropout(torch.device("cpu"), *parts):
            drawn.append(torch.nn.functional.dropout(torch.ones(50)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_epochs", 1, 0),
        ("batch_size", 7, True),
        ("batch_size", 7, 2.0),
        ("seed", 0, -1),
        ("image_size", [144, 192], [144, -1]),
        ("max_grad_norm", float("inf"), float("nan")),
        ("max_grad_norm", 1, "1"),
        ("anything", 1, 0),
    ],
)
def test_numbers_are_in_the_range_of_their_name(name, good, bad):
    check_numbers(**{name: good})
    with pytest.raises(SettingsError, match=name):
        check_numbers(**{name: bad})


@pytest.mark.parametrize("size", [100, 250, 257, (256, 250), 0])
def test_sizes_are_multiples(size):
    check_multiple(256, 32)
    check_multiple((144, 192), 48)
    with pytest.raises(SettingsError, match="32"):
        check_multiple(size, 32)


def test_only_devices_that_are_there_and_folders_that_can_be(tmp_path):
    assert check_device("cpu") == torch.device("cpu")
    check_folder("output_dir", tmp_path / "new" / "deep")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(SettingsError, match="output_dir"):
            check_folder("output_dir", path)
    for device in ("cuda:99", "toaster"):
        with pytest.raises(SettingsError, match=device):
            check_device(device)


def test_results_do_not_go_among_the_data(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    check_apart("output_dir", tmp_path / "results", tmp_path)
    for path in (tmp_path, tmp_path / "link", tmp_path / "results" / ".."):
        with pytest.raises(SettingsError, match="output_dir"):
            check_apart("output_dir", path, tmp_path)


# ---- hashes ----------------------------------------------------------------------------------------------------------


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


# ---- spectra ---------------------------------------------------------------------------------------------------------


def test_white_noise_has_its_variance_in_every_band():
    noise = 0.3 * torch.randn(16, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    assert band_power(noise).mean(0).tolist() == pytest.approx([0.09] * 4, rel=0.15)


@pytest.mark.parametrize("band", range(4))
def test_a_wave_is_in_its_octave_and_in_no_other(band):
    frequency = math.sqrt(OCTAVES[band] * OCTAVES[band + 1])
    wave = torch.sin(2 * math.pi * frequency * torch.arange(128.0)).expand(1, 1, 64, 128)
    power = band_power(wave)[0]
    assert power[band] > 100 * (power.sum() - power[band])


def test_blur_takes_power_from_the_high_bands_first():
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    ratios = (band_power(blurred).mean(0) / band_power(noise).mean(0)).tolist()
    assert ratios[0] > 0.9 and ratios == sorted(ratios, reverse=True) and ratios[3] < 0.2


@pytest.mark.parametrize("period", [3, 8])
def test_a_grid_is_seen_and_noise_is_none(period):
    noise = torch.randn(8, 1, 96, 144, generator=torch.Generator().manual_seed(0))
    lines = (torch.arange(144) % period == 0).float()
    assert line_power(noise, period) < 2
    assert line_power(noise + 2 * lines, period) > 5
