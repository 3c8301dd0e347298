import torch

from common.seeding import Purpose, derive_seed, seeded_normal


def test_seeds_are_fixed_for_ever_and_fit_torch():
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2)
    seeds = {derive_seed(run, purpose, draw) for run in range(3) for purpose in Purpose for draw in range(100)}
    assert len(seeds) == 3 * len(Purpose) * 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = seeded_normal([5, 6, 7], (2, 4, 4))
    assert torch.equal(together[1:2], seeded_normal([6], (2, 4, 4)))
    assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal():
    noise = seeded_normal([1, 2], (100, 100))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
