"""Two gloo processes do what one process with the doubled batch does."""

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from conftest import make_tiny_codec
from monai.networks.nets import PatchDiscriminator
from test_autoencoder_step import phantom_batch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from common.distributed import is_rank_zero, leave, local_device, rank, world_size
from common.networks.latent_codec import VariationalPass
from common.training.autoencoder_step import AutoencoderStep
from common.training.checkpoint import TrainingCheckpoint
from common.training.ema import ExponentialMovingAverage
from common.training.latent_statistics import measure_statistics
from common.training.losses import AdversarialTerm, ReconstructionLoss


def three_steps(rank, world_size):
    """Train three steps on this process's share of one fixed batch of two."""
    from types import SimpleNamespace

    torch.manual_seed(0)
    codec = make_tiny_codec()
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=8, num_layers_d=2, norm="INSTANCE")
    network = VariationalPass(codec)
    if world_size > 1:
        network, discriminator = DistributedDataParallel(network), DistributedDataParallel(discriminator)
    ema = ExponentialMovingAverage(codec, 0.5)
    discriminator_optimizer = torch.optim.SGD(discriminator.parameters(), 0.1)
    term = AdversarialTerm(discriminator, 0.1, 2)
    step = AutoencoderStep(
        reconstruction_loss=ReconstructionLoss(None, 0.0),
        kl_weight=1e-6,
        ema=ema,
        patch_size=16,
        full_size_from_step=3,
        adversarial=term,
        discriminator_optimizer=discriminator_optimizer,
        amp=False,
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    share = slice(rank * 2 // world_size, (rank + 1) * 2 // world_size)
    batch = {name: values[share] for name, values in phantom_batch().items()}
    losses = []
    for iteration in range(1, 4):
        state = SimpleNamespace(device=torch.device("cpu"), iteration=iteration)
        engine = SimpleNamespace(state=state, network=network, optimizer=optimizer, non_blocking=False)
        losses.append(step(engine, batch)["l1"])
    statistics = measure_statistics(codec, [batch], torch.device("cpu"))
    return codec, losses, statistics


def thread_names():
    """Names of this process's threads, those outside Python included."""
    return " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    codec, losses, statistics = three_steps(rank, 2)
    checkpoint = TrainingCheckpoint(folder / f"of_rank_{rank}.pt", {"codec": codec}, {})
    checkpoint.save({"iteration": 3})
    torch.save({"codec": codec.state_dict(), "losses": losses, "statistics": statistics}, folder / f"result_{rank}.pt")
    assert "gloo" in thread_names()
    leave()
    assert "gloo" not in thread_names()  # one that is left may abort the process at its end


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, args=(port, tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"result_{rank}.pt", weights_only=True) for rank in range(2)]
    codec, losses, (mean, std, count) = three_steps(0, 1)
    for name, value in codec.state_dict().items():
        torch.testing.assert_close(results[0]["codec"][name], value, atol=2e-5, rtol=2e-4)
        assert torch.equal(results[0]["codec"][name], results[1]["codec"][name])
    both = [sum(pair) / 2 for pair in zip(results[0]["losses"], results[1]["losses"], strict=True)]
    assert both == pytest.approx(losses, rel=1e-4)
    assert results[0]["statistics"][2] == results[1]["statistics"][2] == count == 2
    torch.testing.assert_close(results[0]["statistics"][:2], (mean, std), atol=1e-4, rtol=1e-3)
    assert (tmp_path / "of_rank_0.pt").exists() and not (tmp_path / "of_rank_1.pt").exists()


def test_a_single_process_writes_and_has_a_device():
    assert is_rank_zero() and rank() == 0 and world_size() == 1
    assert local_device().type in {"cpu", "cuda"}
