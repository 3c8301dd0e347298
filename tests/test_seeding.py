import torch

from common.seeding import Purpose, derive_seed, sample_seed, seeded_dropout, seeded_normal, torch_seed


def test_seeds_are_fixed_for_ever_and_fit_torch():
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2)
    seeds = {derive_seed(run, purpose, draw) for run in range(3) for purpose in Purpose for draw in range(100)}
    assert len(seeds) == 3 * len(Purpose) * 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_for_torch_keep_to_the_bits_that_it_reads():
    assert 0 <= torch_seed(0, 1, 2) < 2**32 and torch_seed(0, 1, 2) == derive_seed(0, 1, 2) % 2**32
    seeds = [sample_seed(5, number) for number in range(10_000)]
    assert len(set(seeds)) == 10_000 and min(seeds) >= 0 and max(seeds) < 2**32
    assert seeds[:3] == [sample_seed(5, number) for number in range(3)] and seeds[0] != sample_seed(6, 0)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = seeded_normal([5, 6, 7], (2, 4, 4))
    assert torch.equal(together[1:2], seeded_normal([6], (2, 4, 4)))
    assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal():
    noise = seeded_normal([1, 2], (100, 100))
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_dropout_is_that_of_its_seed_and_the_global_generator_goes_on_as_if_nothing_had_been():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn = []
    for parts in [(5, 6), (5, 7), (5, 6)]:
        with seeded_dropout(torch.device("cpu"), *parts):
            drawn.append(torch.nn.functional.dropout(torch.ones(50)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
