import pytest
import torch
from conftest import make_tiny_codec
from torch.utils.data import DataLoader, TensorDataset

from common.networks.weights import load_weights
from common.training.latent_statistics import LatentStatistics, measure_statistics


class Images(TensorDataset):
    def __getitem__(self, index):
        return {"image": super().__getitem__(index)[0]}


@pytest.fixture
def images():
    return Images(torch.rand(7, 1, 32, 32, generator=torch.Generator().manual_seed(3)))


def test_statistics_are_those_of_samples_from_the_posteriors(tiny_codec, images):
    mean, std, count = measure_statistics(tiny_codec, DataLoader(images, batch_size=3), torch.device("cpu"))
    with torch.no_grad():
        posterior_mean, posterior_std = tiny_codec.posterior(images.tensors[0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((400, *posterior_mean.shape), generator=generator)
    drawn = (posterior_mean + posterior_std * noise).transpose(0, 2).flatten(1)
    assert count == 7
    torch.testing.assert_close(mean, drawn.mean(1), atol=2e-3, rtol=0)
    torch.testing.assert_close(std, drawn.std(1), rtol=1e-2, atol=0)


def test_the_file_gets_its_statistics_once(tiny_codec, images, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(tiny_codec.state_dict(), path)
    fresh = make_tiny_codec(seed=1)
    LatentStatistics(fresh, str(path), images, batch_size=2, num_workers=0, device=torch.device("cpu")).run()
    stored = load_weights(make_tiny_codec(seed=2), path)
    assert stored.latents_num_images == 7
    with torch.no_grad():
        latents = stored.encode(images.tensors[0])
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4

    written = path.stat().st_mtime_ns
    LatentStatistics(fresh, str(path), images, batch_size=2, num_workers=0, device=torch.device("cpu")).run()
    assert path.stat().st_mtime_ns == written
