import torch

from common.intensity import to_signed, to_unit


def test_ends_of_the_ranges_map_onto_each_other():
    image = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(to_signed(image), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(to_unit(to_signed(image)), image)


def test_out_of_range_is_not_clipped_so_that_gradients_survive():
    assert to_unit(torch.tensor(3.0)) == 2.0
