"""Checkpoints of monai-generative give the same outputs in core's networks, or are refused."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import fire
import pytest
import torch
from monai.bundle import ConfigParser
from script_module import load_script
from torch import Tensor, nn

from common.errors import UserError
from common.networks.legacy import (
    KINDS,
    LegacyCheckpointError,
    LegacyVerificationError,
    MissingGenerativeError,
    build_core_network,
    convert_state_dict,
    core_arguments,
    load_legacy_network,
    read_legacy_state,
    verify_against_generative,
)

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore:.*autocast")]
generative_nets = pytest.importorskip("generative.networks.nets")

AUTOENCODER, UNET = "autoencoder_kl", "diffusion_model_unet"
NO_ATTENTION = {
    "attention_levels": [False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder without attention": (AUTOENCODER, NO_ATTENTION),
    "autoencoder with attention at a level": (AUTOENCODER, {**NO_ATTENTION, "attention_levels": [False, True]}),
    "autoencoder with attention in the encoder": (AUTOENCODER, {**NO_ATTENTION, "with_encoder_nonlocal_attn": True}),
    "autoencoder with attention in the decoder": (AUTOENCODER, {**NO_ATTENTION, "with_decoder_nonlocal_attn": True}),
    "autoencoder with attention everywhere": (AUTOENCODER, {"attention_levels": [True, True]}),
    "volume autoencoder": (AUTOENCODER, {"spatial_dims": 3, "attention_levels": [False, False]}),
    "unet": (UNET, {}),
    "unet with attention in the middle only": (UNET, {"attention_levels": [False, False]}),
    "unet with classes": (UNET, {"num_class_embeds": 3}),
    "unet with residual up- and downsampling": (UNET, {"resblock_updown": True}),
    "conditional unet": (UNET, CONDITIONED),
    "conditional unet, two layers": (UNET, {**CONDITIONED, "transformer_num_layers": 2, "upcast_attention": True}),
    "conditional unet with all": (
        UNET,
        {**CONDITIONED, "num_class_embeds": 3, "resblock_updown": True, "num_head_channels": [0, 8]},
    ),
    "conditional unet with dropout and odd heads": (
        UNET,
        {**CONDITIONED, "dropout_cattn": 0.5, "num_head_channels": 6},
    ),
}
SILENTLY_WRONG_IN_MONAI = [name for name in CASES if "attention" in name.replace("without attention", "")] + [
    "volume autoencoder",
    "unet",
    "unet with classes",
    "unet with residual up- and downsampling",
]


def legacy_arguments(kind: str, overrides: dict[str, Any]) -> dict[str, Any]:
    base = {"spatial_dims": 2, "num_res_blocks": 1, "num_channels": [8, 16], "norm_num_groups": 4}
    own = {"latent_channels": 2} if kind == AUTOENCODER else {"in_channels": 2, "out_channels": 2}
    levels = {"attention_levels": [False, True]}
    return {**base, **own, **levels, **overrides}


def randomised(network: nn.Module) -> nn.Module:
    """Give every parameter its own random values: zero-initialised layers and unit norms would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            offset = 0.0 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5 + offset)
    return network.eval()


def old_network(kind: str, arguments: dict[str, Any]) -> nn.Module:
    return randomised(getattr(generative_nets, KINDS[kind].__name__)(**arguments))


def monai_loaded(kind: str, arguments: dict[str, Any], state: dict[str, Tensor], **flags: bool) -> nn.Module:
    """What a user of core gets who renames `num_channels` and calls its own loader."""
    renamed = {("channels" if name == "num_channels" else name): value for name, value in arguments.items()}
    network: Any = KINDS[kind](**renamed, **flags)
    network.load_old_state_dict(dict(state))
    return network.eval()


@torch.no_grad()
def outputs(network: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """All outputs for a fixed input, written apart from the code under test."""
    torch.manual_seed(11)
    if "latent_channels" in arguments:
        image = torch.randn(1, 1, *[16] * arguments["spatial_dims"])
        mean, sigma = network.encode(image)
        return [mean, sigma, network.decode(torch.randn_like(mean)), network.reconstruct(image), *network(image)]
    image, timesteps = torch.randn(4, 2, 16, 16), torch.tensor([0, 10, 500, 999])
    context = torch.randn(4, 3, 6) if arguments.get("with_conditioning") else None
    classes = torch.tensor([2, 0, 1, 1]) if arguments.get("num_class_embeds") else None
    return [network(image, timesteps, context=context, class_labels=classes)]


def difference(found: nn.Module, expected: nn.Module, arguments: dict[str, Any]) -> float:
    """Largest difference of any output, in units of that output's scale."""
    pairs = zip(outputs(found, arguments), outputs(expected, arguments), strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_generative(case):
    kind, overrides = CASES[case]
    arguments = legacy_arguments(kind, overrides)
    old = old_network(kind, arguments)
    state = {key: value.clone() for key, value in old.state_dict().items()}
    new = load_legacy_network(kind, arguments, state).eval()
    assert difference(new, old, arguments) < 1e-5
    assert verify_against_generative(kind, arguments, state, new) < 1e-5
    assert state.keys() == old.state_dict().keys(), "MONAI's loader empties the caller's dict; ours must not"


@pytest.mark.parametrize("case", SILENTLY_WRONG_IN_MONAI)
def test_monai_own_loader_changes_results_and_ours_does_not(case):
    kind, overrides = CASES[case]
    arguments = legacy_arguments(kind, overrides)
    old = old_network(kind, arguments)
    wrong = monai_loaded(kind, arguments, old.state_dict())
    assert difference(wrong, old, arguments) > 0.02
    with pytest.raises(LegacyVerificationError, match="differs from monai-generative"):
        verify_against_generative(kind, arguments, old.state_dict(), wrong)
    assert difference(load_legacy_network(kind, arguments, old.state_dict()).eval(), old, arguments) < 1e-5


@pytest.mark.parametrize("case", ["autoencoder with attention everywhere", "unet", "conditional unet"])
def test_renaming_is_that_of_monai_own_loader_under_the_right_flags(case):
    kind, overrides = CASES[case]
    arguments = legacy_arguments(kind, overrides)
    state = old_network(kind, arguments).state_dict()
    ours = load_legacy_network(kind, arguments, state).state_dict()
    theirs = monai_loaded(kind, arguments, state, include_fc=case == "conditional unet").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_flags_and_names_of_the_core_arguments(kind):
    arguments = legacy_arguments(kind, {"use_flash_attention": True})
    found = core_arguments(kind, arguments)
    assert found["channels"] == [8, 16]
    assert (found["include_fc"], found["use_combined_linear"]) == (False, False)
    assert "use_flash_attention" not in found and "num_channels" not in found
    assert not {"include_fc", "use_combined_linear"} & arguments.keys()


def test_conditional_unet_keeps_the_linear_layer_and_checkpointing_is_renamed():
    assert core_arguments(UNET, legacy_arguments(UNET, CONDITIONED))["include_fc"] is True
    assert core_arguments(AUTOENCODER, {"use_checkpointing": True})["use_checkpoint"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_that_the_old_arguments_leave_out_are_the_same_in_core(kind):
    """Omitted arguments are not translated, so core's defaults have to stay monai-generative's."""
    old = inspect.signature(getattr(generative_nets, KINDS[kind].__name__)).parameters
    new = inspect.signature(KINDS[kind]).parameters
    for name, parameter in old.items():
        core_name = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}.get(name, name)
        assert new[core_name].default == parameter.default, name


PUBLISHED = {  # of the chest X-ray LDM in the generative model zoo
    AUTOENCODER: {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 3,
        "num_channels": [64, 128, 128, 128],
        "num_res_blocks": 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "attention_levels": [False, False, False, False],
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    },
    UNET: {
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 3,
        "num_channels": [256, 512, 768],
        "num_res_blocks": 2,
        "attention_levels": [False, True, True],
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "resblock_updown": False,
        "num_head_channels": [0, 512, 768],
        "with_conditioning": True,
        "transformer_num_layers": 1,
        "cross_attention_dim": 1024,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_published_chest_xray_ldm_has_its_place(kind):
    with torch.device("meta"):
        old = getattr(generative_nets, KINDS[kind].__name__)(**PUBLISHED[kind])
        new = build_core_network(kind, PUBLISHED[kind])
    converted = convert_state_dict(new, old.state_dict())
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in new.state_dict().items()
    }
    assert len(converted) == len(old.state_dict())  # no proj_attn in either


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_twin_of_the_published_chest_xray_ldm_gives_the_same_outputs(kind):
    narrow: dict[str, Any] = {"num_channels": [4, 8, 8, 8]}
    if kind == UNET:
        narrow = {"num_channels": [4, 8, 12], "num_head_channels": [0, 8, 12], "cross_attention_dim": 6}
    arguments = {**PUBLISHED[kind], **narrow, "norm_num_groups": 4}
    old = old_network(kind, arguments)
    new = load_legacy_network(kind, arguments, old.state_dict())
    assert verify_against_generative(kind, arguments, old.state_dict(), new) < 1e-5


@pytest.mark.parametrize("projection", ["attn1.to_q", "attn1.to_v", "attn2.to_k"])
def test_verification_leaves_the_mode_and_notices_one_changed_row(projection):
    arguments = legacy_arguments(UNET, {**CONDITIONED, "dropout_cattn": 0.5})
    state = old_network(UNET, arguments).state_dict()
    new = load_legacy_network(UNET, arguments, state).train()
    verify_against_generative(UNET, arguments, state, new)
    assert new.training
    with torch.no_grad():
        new.get_parameter(f"middle_block.attention.transformer_blocks.0.{projection}.weight")[0] += 1
    with pytest.raises(LegacyVerificationError, match="timestep 371 by"):
        verify_against_generative(UNET, arguments, state, new)


def test_verification_refuses_what_proves_nothing():
    arguments = legacy_arguments(UNET, {})
    untrained = generative_nets.DiffusionModelUNet(**arguments).state_dict()
    new = load_legacy_network(UNET, arguments, untrained)
    with pytest.raises(LegacyVerificationError, match="nothing but zeros"):
        verify_against_generative(UNET, arguments, untrained, new)
    broken = {key: torch.full_like(value, float("nan")) for key, value in untrained.items()}
    with pytest.raises(LegacyVerificationError, match="by nan"):
        verify_against_generative(UNET, arguments, broken, load_legacy_network(UNET, arguments, broken))


def test_without_generative_conversion_works_and_verification_says_what_is_missing(monkeypatch):
    arguments = legacy_arguments(AUTOENCODER, NO_ATTENTION)
    state = old_network(AUTOENCODER, arguments).state_dict()
    monkeypatch.setitem(sys.modules, "generative.networks.nets", None)
    new = load_legacy_network(AUTOENCODER, arguments, state)
    with pytest.raises(MissingGenerativeError, match="pip install monai-generative"):
        verify_against_generative(AUTOENCODER, arguments, state, new)


def _without_a_decoder_conv(state: dict[str, Tensor]) -> None:
    del state["decoder.blocks.2.conv.conv.weight"]


def _with_a_stranger(state: dict[str, Tensor]) -> None:
    state["discriminator.weight"] = torch.zeros(1)


def _with_an_unused_layer_where_there_is_no_attention(state: dict[str, Tensor]) -> None:
    state["encoder.blocks.0.proj_attn.weight"] = torch.zeros(8, 8)


def _with_a_wider_layer(state: dict[str, Tensor]) -> None:
    state["encoder.blocks.0.conv.bias"] = torch.zeros(9)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_decoder_conv, r"Expected but not found: decoder\.blocks\.2\.conv\.conv\.weight\."),
        (_with_a_stranger, r"Found but not expected: discriminator\.weight\."),
        (_with_an_unused_layer_where_there_is_no_attention, r"Found but not expected: encoder\.blocks\.0\.proj_attn"),
        (_with_a_wider_layer, r"Of another shape: encoder\.blocks\.0\.conv\.bias \(9,\) instead of \(8,\)"),
    ],
)
def test_a_state_dict_that_does_not_fit_exactly_is_refused_by_name(damage: Callable, message: str):
    arguments = legacy_arguments(AUTOENCODER, NO_ATTENTION)
    state = dict(old_network(AUTOENCODER, arguments).state_dict())
    damage(state)
    with pytest.raises(LegacyCheckpointError, match=message) as refusal:
        load_legacy_network(AUTOENCODER, arguments, state)
    assert isinstance(refusal.value, UserError) and isinstance(refusal.value, ValueError)


def test_the_wrong_architecture_is_refused_in_one_short_message():
    state = old_network(UNET, legacy_arguments(UNET, CONDITIONED)).state_dict()
    with pytest.raises(
        LegacyCheckpointError, match=r"Found but not expected: down_blocks\.1\.attentions\.0\.proj_in.* and 92 more"
    ) as refusal:
        load_legacy_network(UNET, legacy_arguments(UNET, {}), state)
    assert len(str(refusal.value)) < 800
    with pytest.raises(LegacyCheckpointError, match="does not fit AutoencoderKL"):
        load_legacy_network(AUTOENCODER, legacy_arguments(AUTOENCODER, {}), state)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("vqvae", {}, "expected one of autoencoder_kl, diffusion_model_unet"),
        (AUTOENCODER, {"channels": [8, 16]}, "found the arguments channels; expected .*num_channels"),
        (AUTOENCODER, {"include_fc": True}, "found the arguments include_fc"),
        (AUTOENCODER, {"use_convtranspose": True}, "use_convtranspose"),
        (UNET, {"use_checkpointing": True}, "found the arguments use_checkpointing"),
        (UNET, {"num_channels": [8, 15]}, "constructor refuses"),
        (UNET, {"attention_levels": [True, True], "num_head_channels": [0, 8]}, "constructor refuses"),
    ],
)
def test_arguments_that_core_cannot_reproduce_are_refused(kind, overrides, message):
    with pytest.raises(LegacyCheckpointError, match=message):
        build_core_network(kind, legacy_arguments(kind, overrides))


def test_transposed_convolutions_would_have_stayed_random_in_monai_own_loader():
    """Why use_convtranspose is refused: core's kernel has another size, and its loader leaves it uninitialised."""
    arguments = legacy_arguments(AUTOENCODER, {**NO_ATTENTION, "use_convtranspose": True})
    old = old_network(AUTOENCODER, arguments)
    assert difference(monai_loaded(AUTOENCODER, arguments, old.state_dict()), old, arguments) > 0.1


STATE = {"conv.weight": torch.arange(3.0), "conv.bias": torch.ones(2)}
OTHER = {"head.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, None),
        ({"module." + key: value for key, value in STATE.items()}, None),
        ({"module._orig_mod." + key: value for key, value in STATE.items()}, None),
        ({"epoch": 3, "state_dict": STATE, "discriminator": OTHER, "best_loss": 0.5, "optimizer": {"state": {}}}, None),
        ({"epoch": 3, "diffusion": {"module." + key: value for key, value in STATE.items()}}, None),
        ({"weights of the third try": STATE, "step": 7}, None),
        ({"unet": STATE, "autoencoder": OTHER}, "unet"),
        ({"ema": STATE, "model": OTHER}, "ema"),
    ],
)
def test_state_dicts_are_found_in_every_customary_wrapping(tmp_path, content, entry):
    torch.save(content, tmp_path / "old.pt")
    found = read_legacy_state(tmp_path / "old.pt", entry)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize(
    ("content", "entry", "message"),
    [
        ({"unet": STATE, "autoencoder": OTHER}, None, "found state dicts at: unet, autoencoder; expected exactly one"),
        ({"unet": STATE}, "model", "expected one at 'model'"),
        ({"epoch": 3, "lr": 0.1}, None, r"none \(dict: epoch, lr\)"),
        ([1, 2], None, "none"),
        ({}, None, "none"),
        (nn.Linear(2, 2), None, "expected a state dict saved by torch.save"),
    ],
)
def test_files_without_one_state_dict_are_refused(tmp_path, content, entry, message):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(LegacyCheckpointError, match=message):
        read_legacy_state(tmp_path / "old.pt", entry)


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "absent"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(LegacyCheckpointError, match=r"old\.pt: found no file"):
        read_legacy_state(tmp_path / "old.pt")


@pytest.fixture
def script() -> ModuleType:
    return load_script("convert_checkpoint")


@pytest.fixture
def convert(script) -> Callable[..., None]:
    """The command line, in this process: it takes the words after `python scripts/convert_checkpoint.py`."""
    return lambda *words: fire.Fire(script.convert_checkpoint, command=[str(word) for word in words])


@pytest.fixture
def old_files(tmp_path) -> tuple[list[str], nn.Module, dict[str, Any]]:
    """Words that name an old checkpoint with attention and where to put the new one; the old network; its arguments."""
    arguments = legacy_arguments(AUTOENCODER, {})
    old = old_network(AUTOENCODER, arguments)
    torch.save({"epoch": 1, "state_dict": old.state_dict()}, tmp_path / "old.pt")
    block = {"_target_": "generative.networks.nets.AutoencoderKL", **arguments}
    (tmp_path / "legacy.json").write_text(json.dumps(block))
    files = {"arguments": "legacy.json", "checkpoint": "old.pt", "output": "converted/new.pt"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    return ["--kind", AUTOENCODER, *words], old, arguments


def test_command_line_round_trip(convert, old_files, tmp_path, capsys):
    words, old, arguments = old_files
    convert(*words, "--verify", True)
    assert "verified: outputs differ by at most" in capsys.readouterr().out
    folder = tmp_path / "converted"
    assert sorted(path.name for path in folder.iterdir()) == ["new.json", "new.pt"]
    description = json.loads((folder / "new.json").read_text())
    assert description["_target_"] == "monai.networks.nets.AutoencoderKL"
    rebuilt = ConfigParser({"network_def": description}).get_parsed_content("network_def")
    rebuilt.load_state_dict(torch.load(folder / "new.pt", weights_only=True), strict=True)
    assert difference(rebuilt.eval(), old, arguments) < 1e-5


def test_command_line_replaces_a_conversion_only_when_told_and_an_input_never(convert, old_files, tmp_path):
    words, _, _ = old_files
    new = tmp_path / "converted" / "new.pt"
    new.parent.mkdir()
    new.write_bytes(b"precious")
    with pytest.raises(LegacyCheckpointError, match="exists"):
        convert(*words)
    assert new.read_bytes() == b"precious"
    convert(*words, "--overwrite", True)
    assert new.read_bytes() != b"precious"
    for file in ("old.pt", "legacy.pt"):  # legacy.pt would put its description over legacy.json
        with pytest.raises(LegacyCheckpointError, match="is an input"):
            convert(*words[:-1], tmp_path / file, "--overwrite", True)
    with pytest.raises(LegacyCheckpointError, match="expected a file of weights"):
        convert(*words[:-1], tmp_path / "new.json")


def test_command_line_says_when_it_did_not_verify(convert, old_files, monkeypatch, capsys):
    words, _, _ = old_files
    convert(*words, "--verify", False)
    monkeypatch.setitem(sys.modules, "generative.networks.nets", None)
    convert(*words, "--overwrite", True)
    with pytest.raises(MissingGenerativeError):
        convert(*words, "--overwrite", True, "--verify", True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "verified" in line]
    assert lines[0] == "not verified, as asked" and "no working monai-generative" in lines[1] and len(lines) == 2


def test_command_line_writes_nothing_when_verification_fails(convert, script, old_files, monkeypatch, tmp_path):
    words, _, _ = old_files
    monkeypatch.setattr(script, "load_legacy_network", monai_loaded)
    with pytest.raises(LegacyVerificationError):
        convert(*words)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("content", ["[1]", "no json", None])
def test_command_line_refuses_arguments_that_are_no_json_object(convert, old_files, tmp_path, content):
    words, _, _ = old_files
    file = tmp_path / "legacy.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(LegacyCheckpointError, match=r"legacy\.json"):
        convert(*words)
