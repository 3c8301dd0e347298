import pytest
from script_module import load_script

from common.packaging.packaging import PackagingError


@pytest.fixture(scope="module")
def script():
    return load_script("package_bundle")


def test_bundles_are_chosen_by_name_or_all(script):
    everything = [path.name for path in script.chosen_bundles("all")]
    assert "cxr_autoencoder" in everything and len(everything) == 3
    assert [path.name for path in script.chosen_bundles("cxr_autoencoder")] == ["cxr_autoencoder"]
    with pytest.raises(PackagingError, match="expected all, cxr_autoencoder"):
        script.chosen_bundles("cxr_autoencode")


def test_a_bundle_is_packaged_from_anywhere(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script.package("cxr_autoencoder", torchscript=False)
    assert (tmp_path / "dist" / "cxr_autoencoder" / "scripts" / "common" / "__init__.py").is_file()
    assert "cxr_autoencoder_v" in capsys.readouterr().out
