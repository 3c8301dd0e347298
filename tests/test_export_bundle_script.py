"""The command: its files, its last word, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPOSITORY
from tiny_bundles import codec_bundle

from common.packaging.torchscript import trace_bundle


def run(cwd, *words):
    """The command as a user gives it, from a folder that is not the repository."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "export_bundle.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_writes_into_the_bundle_what_any_process_writes(tmp_path):
    root = codec_bundle(tmp_path / "bundle")
    done = run(tmp_path, "bundle", "--onnx", "False")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "model.ts",
        "bundle/outputs/export/exports.json",
    ]
    trace_bundle(root, tmp_path / "here.ts")
    assert (root / "outputs" / "export" / "model.ts").read_bytes() == (tmp_path / "here.ts").read_bytes()


def test_ends_in_one_line_without_a_bundle(tmp_path):
    done = run(tmp_path, "nothing", "--onnx", "False", "--output_dir", "out")
    assert done.returncode == 1
    assert done.stderr.startswith("BundleNetworkError: nothing/configs/metadata.json: expected")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
