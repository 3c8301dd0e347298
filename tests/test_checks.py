import pytest
import torch

from common.checks import check_apart, check_device, check_folder, check_multiple, check_numbers
from common.errors import SettingsError


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
