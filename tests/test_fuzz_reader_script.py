"""Some of the damaged files of scripts/fuzz_reader.py; all of them: `--radiographs 100000 --masks 20000`."""

import numpy as np
import pytest
from script_module import load_script

from common.errors import RunError
from common.io import read_radiograph
from common.io.mask_files import read_mask


@pytest.fixture(scope="module")
def script():
    return load_script("fuzz_reader")


def test_whole_files_are_read(script, tmp_path):
    for whole, read in ((script.whole_radiographs(48), read_radiograph), (script.whole_masks(48), read_mask)):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)
            read(tmp_path / name)


def test_damaged_files_are_read_or_refused_with_one_error(script):
    script.fuzz(radiographs=400, masks=100, size=48)


def test_another_error_stops_the_run_and_the_file_is_kept(script, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def read(path):
        raise KeyError("missed")

    with pytest.raises(RunError, match="missed"):
        script.fuzz_kind(1, {"a": b"content"}, read, np.random.default_rng(0), tmp_path / "damaged")
    assert list(tmp_path.glob("fuzz_a_0"))
