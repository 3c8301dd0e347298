import json

import pytest
import yaml

from common.packaging.retargeting import ON_PATH, RetargetingError, json_twin, own_targets, retarget_yaml

CONFIG = """# common.nothing in a comment stays
bundle_root: "." # knob
network_def:
  _target_: common.networks.x.Net # the network
  channels: [8, 16]
handlers:
  - _target_: "common.training.handlers.Saver"
    path: common
  - _target_: monai.handlers.StatsHandler
initialize:
  - "$monai.utils.set_determinism(seed=0)"
run:
  - _target_: common.override_check.check_overrides
"""


def test_only_own_targets_change_and_comments_stay():
    found = retarget_yaml(CONFIG, "x.yaml")
    changed = [
        (a, b) for a, b in zip(CONFIG.splitlines(), found.replace(f'  - "{ON_PATH}"\n', "").splitlines(), strict=True)
    ]
    assert [b for a, b in changed if a != b] == [
        "  _target_: scripts.common.networks.x.Net # the network",
        '  - _target_: "scripts.common.training.handlers.Saver"',
        "  - _target_: scripts.common.override_check.check_overrides",
    ]
    assert list(own_targets(yaml.safe_load(CONFIG))) == [
        *("common.networks.x.Net", "common.training.handlers.Saver", "common.override_check.check_overrides")
    ]


def test_the_bundle_is_put_on_the_path_before_all_else():
    assert yaml.safe_load(retarget_yaml(CONFIG, "x.yaml"))["initialize"] == [
        *(ON_PATH, "$monai.utils.set_determinism(seed=0)")
    ]


def test_a_file_to_be_merged_needs_no_initialize():
    assert retarget_yaml("batch_size: 2 # images\n", "smoke.yaml") == "batch_size: 2 # images\n"


@pytest.mark.parametrize(
    "text",
    [
        "x: {_target_: common.a.B}\n",  # in one line
        "initialize: [1]\nrun: []\n",
        "value: $common.a.b()\n",
        "name: common.networks.x.Net\n",
    ],
)
def test_what_cannot_be_rewritten_line_by_line_is_refused(text):
    with pytest.raises(RetargetingError, match=r"x\.yaml"):
        retarget_yaml(text, "x.yaml")


def test_the_json_twin_says_the_same_in_order():
    text = "b: 1.0e-4\na: [true, null, 'ü']\n"
    twin = json_twin(text, "x.yaml")
    assert json.loads(twin) == yaml.safe_load(text)
    assert list(json.loads(twin)) == ["b", "a"] and twin.startswith('{\n    "b"') and "ü" in twin
    with pytest.raises(RetargetingError, match="keys"):
        json_twin("a: {1: 2}\n", "x.yaml")
