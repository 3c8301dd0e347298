"""TorchScript of bundles: the same as the network, the same each time, nothing of this machine in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
from conftest import REPOSITORY
from tiny_bundles import bundle_of_code, codec_bundle, diffusion_bundle, segmenter_bundle

from common.errors import RunError, WeightsError
from common.networks.weights import load_weights
from common.packaging.bundle import Bundle
from common.packaging.torchscript import trace_bundle

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
    assert trace_bundle(Bundle(root), root / "models" / "model.ts") <= 1e-6
    return root


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_monai_loads_what_the_network_computes_at_any_size(diffusion):
    eager = load_weights(Bundle(diffusion).build(), diffusion / "models" / "model.pt")
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


def test_same_bytes_again_whatever_the_settings_of_the_process(diffusion, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as set_determinism leaves it
    trace_bundle(Bundle(diffusion), tmp_path / "another_name.ts")
    assert (tmp_path / "another_name.ts").read_bytes() == (diffusion / "models" / "model.ts").read_bytes()
    assert torch.backends.cudnn.deterministic


def test_holds_no_paths_and_no_inputs(diffusion):
    found = records(diffusion / "models" / "model.ts")
    content = b"\n".join([name.encode() + data for name, data in found.items()])
    for place in (str(REPOSITORY), str(diffusion), str(Path.home()) + "/", sys.prefix, "site-packages", "debug_pkl"):
        assert place.encode() not in content
    assert not [name for name in found if "traced_inputs" in name]


def test_runs_where_its_inputs_are(diffusion, tmp_path):
    """On the meta device, in the absence of a GPU; as traced, both networks would make their timesteps on the CPU."""
    segmenter = segmenter_bundle(tmp_path / "segmenter")
    trace_bundle(Bundle(segmenter), tmp_path / "segmenter.ts")
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
    "forward",
    [
        "self.weight * image * float(image.shape[-1])",  # other numbers at another size
        "(self.weight * image).reshape([int(side) for side in image.shape])",  # no other size
        "(self.weight * image).reshape(2, 1, 16, 24)",  # neither has the network
        "(self.weight * image)[:, :, : int(image.shape[2])]",  # another shape
        "self.weight * image / 0",  # NaN, which no comparison calls different
        "str(image)",
        "(self.weight * image, image)",
    ],
)
def test_refuses_what_a_trace_cannot_hold(forward, tmp_path):
    root = bundle_of_code(tmp_path / "bundle", forward)
    with pytest.raises(RunError):
        trace_bundle(Bundle(root), tmp_path / "model.ts")
    assert not list(tmp_path.glob("*model.ts*"))


def test_says_what_a_bundle_lacks(diffusion, tmp_path):
    def trace(root):
        trace_bundle(Bundle(root), tmp_path / "model.ts")

    with pytest.raises(RunError, match=str(tmp_path)):
        trace(tmp_path)
    root = codec_bundle(tmp_path / "codec")
    weights = root / "models" / "model.pt"
    weights.write_bytes((diffusion / "models" / "model.pt").read_bytes())
    with pytest.raises(WeightsError):
        trace(root)
    weights.unlink()
    with pytest.raises(WeightsError):
        trace(root)
    metadata = root / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"image"', '"latents"', 1))
    shutil.copy(codec_bundle(tmp_path / "other") / "models" / "model.pt", weights)
    with pytest.raises(RunError, match="inputs"):
        trace(root)
