import pytest
import torch

from common.intensity import stored_values, to_signed, to_unit


def test_ends_of_the_ranges_map_onto_each_other():
    image = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(to_signed(image), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(to_unit(to_signed(image)), image)


def test_out_of_range_is_not_clipped_so_that_gradients_survive():
    assert to_unit(torch.tensor(3.0)) == 2.0


@pytest.mark.parametrize("bits", [8, 16])
def test_values_go_to_the_nearest_level(bits):
    top = 2**bits - 1
    values = torch.tensor([[[0.0, 0.49, 0.51, top - 0.51, top - 0.49, top]]], dtype=torch.float64) / top
    assert stored_values(values, bits).tolist() == [[0, 0, 1, top - 1, top, top]]


def test_what_files_do_not_hold_is_refused():
    with pytest.raises(ValueError, match="found bits 12; expected 8 or 16"):
        stored_values(torch.zeros(1, 2, 2), 12)
    with pytest.raises(ValueError, match="Clamp them first"):
        stored_values(torch.full((1, 2, 2), 1.5), 8)
