"""TorchScript of bundles: the same as the network, the same each time, nothing of this machine in it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
from conftest import REPOSITORY
from tiny_bundles import bundle_of_code, codec_bundle, diffusion_bundle, segmenter_bundle, write_bundle

from common.errors import WeightsError
from common.networks.weights import MissingWeightsError
from common.packaging.torchscript import BundleNetworkError, TraceError, load_bundle_network, trace_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")

LOAD_WITHOUT_OUR_CODE = """
import sys
sys.modules["common"] = None
import monai.bundle, torch
network, metadata, _ = monai.bundle.load("diffusion", bundle_dir=sys.argv[1], load_ts_module=True, device="cpu")
with torch.no_grad():
    print(metadata["version"], list(network(torch.zeros(5, 2, 6, 8), torch.zeros(5), torch.zeros(5, 2, 8)).shape))
"""


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A bundle, as `diffusion` in its folder, with its model.ts."""
    root = diffusion_bundle(tmp_path_factory.mktemp("bundles") / "diffusion")
    assert trace_bundle(root, root / "models" / "model.ts") <= 1e-6
    return root


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_monai_loads_what_the_network_computes_at_any_size(diffusion):
    eager = load_bundle_network(diffusion)
    traced, metadata, _ = monai.bundle.load(
        "diffusion", bundle_dir=str(diffusion.parent), load_ts_module=True, device="cpu"
    )
    assert metadata == json.loads((diffusion / "configs" / "metadata.json").read_text())
    assert {value.dtype for value in traced.parameters()} == {torch.float32}
    assert traced.state_dict().keys() == eager.state_dict().keys()
    for batch, height, width in ((1, 4, 4), (3, 10, 6)):
        inputs = torch.randn(batch, 2, height, width), 900 * torch.rand(batch), torch.randn(batch, 2, 8)
        with torch.no_grad():
            torch.testing.assert_close(traced(*inputs), eager(*inputs), rtol=0, atol=1e-5)


def test_runs_without_code_of_ours(diffusion):
    command = [sys.executable, "-I", "-c", LOAD_WITHOUT_OUR_CODE, str(diffusion.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "0.1.0 [5, 2, 6, 8]"


def on_meta(network: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The network with weights and buffers on the meta device, where neither map_location nor .to() can put it."""
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, value.to("meta"))
    return network


def test_same_bytes_again(diffusion, tmp_path):
    trace_bundle(diffusion, tmp_path / "another_name.ts")
    assert (tmp_path / "another_name.ts").read_bytes() == (diffusion / "models" / "model.ts").read_bytes()


def test_holds_no_paths_and_no_inputs(diffusion):
    found = records(diffusion / "models" / "model.ts")
    content = b"\n".join([name.encode() + data for name, data in found.items()])
    for place in (str(REPOSITORY), str(diffusion), str(Path.home()) + "/", sys.prefix, "site-packages", "debug_pkl"):
        assert place.encode() not in content
    assert not [name for name in found if "traced_inputs" in name]


def test_records_are_stored_and_aligned(diffusion):
    path = diffusion / "models" / "model.ts"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            lengths = content[entry.header_offset + 26 : entry.header_offset + 30]
            start = entry.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
            assert (start % 64, entry.compress_type) == (0, zipfile.ZIP_STORED)


def test_runs_where_its_inputs_are(diffusion, tmp_path):
    """On the meta device, in the absence of a GPU; as traced, both networks would make their timesteps on the CPU."""
    segmenter = segmenter_bundle(tmp_path / "segmenter")
    trace_bundle(segmenter, tmp_path / "segmenter.ts")
    image, context = torch.zeros(1, 2, 4, 4, device="meta"), torch.zeros(1, 2, 8, device="meta")
    cases = (
        (diffusion / "models" / "model.ts", (image, torch.zeros(1, device="meta"), context)),
        (tmp_path / "segmenter.ts", (torch.zeros(1, 1, 9, 7, device="meta"),)),
    )
    for path, inputs in cases:
        network = on_meta(torch.jit.load(path))
        assert network(*inputs).device.type == "meta"
        assert not [name for name, data in records(path).items() if b'torch.device("' in data]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("self.weight * image * float(image.shape[-1])", "differs from the network by"),
        ("(self.weight * image).reshape([int(side) for side in image.shape])", "the traced network does not take"),
        ("(self.weight * image).reshape(2, 1, 16, 24)", "the network does not take"),
        ("(self.weight * image)[:, :, : int(image.shape[2])]", "the traced network gives"),
        ("self.weight * image / 0", "differs from the network by nan"),
        ("str(image)", "cannot be traced"),
        ("(self.weight * image, image)", "expected one tensor"),
    ],
)
def test_refuses_what_a_trace_cannot_hold(forward, message, tmp_path):
    root = bundle_of_code(tmp_path / "bundle", forward)
    with pytest.raises(TraceError, match=message):
        trace_bundle(root, tmp_path / "model.ts")
    assert not list(tmp_path.glob("*model.ts*"))


def test_each_packaged_bundle_runs_its_own_code(tmp_path):
    path, modules = list(sys.path), {name for name in sys.modules if name.startswith("scripts")}
    for name, forward in (("one", "self.weight * image"), ("two", "self.weight + image")):
        trace_bundle(bundle_of_code(tmp_path / name, forward), tmp_path / f"{name}.ts")
    assert torch.jit.load(tmp_path / "one.ts")(torch.full((1, 1, 3, 3), 5.0)).mean().item() == 10.0
    assert torch.jit.load(tmp_path / "two.ts")(torch.full((1, 1, 3, 3), 5.0)).mean().item() == 7.0
    assert (sys.path, {name for name in sys.modules if name.startswith("scripts")}) == (path, modules)


def test_says_what_a_bundle_lacks(diffusion, tmp_path):
    with pytest.raises(BundleNetworkError, match=r"metadata\.json: expected"):
        trace_bundle(tmp_path, tmp_path / "model.ts")
    root = codec_bundle(tmp_path / "codec")
    with pytest.raises(BundleNetworkError, match=r"training\.yaml: no such config"):
        trace_bundle(root, tmp_path / "model.ts", config_name="training")
    weights = root / "models" / "model.pt"
    weights.write_bytes((diffusion / "models" / "model.pt").read_bytes())
    with pytest.raises(WeightsError):
        trace_bundle(root, tmp_path / "model.ts")
    weights.unlink()
    with pytest.raises(MissingWeightsError):
        trace_bundle(root, tmp_path / "model.ts")
    unknown = write_bundle(tmp_path / "unknown", {"network_def": {"_target_": "common.no.Net"}}, {}, {"image": {}})
    with pytest.raises(BundleNetworkError, match="cannot build 'network_def'"):
        trace_bundle(unknown, tmp_path / "model.ts")


def test_settings_of_the_process_do_not_get_into_the_file(tmp_path, monkeypatch):
    root = codec_bundle(tmp_path / "bundle")
    trace_bundle(root, tmp_path / "one.ts")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as set_determinism leaves it
    trace_bundle(root, tmp_path / "other.ts")
    assert (tmp_path / "one.ts").read_bytes() == (tmp_path / "other.ts").read_bytes()
    assert torch.backends.cudnn.deterministic
