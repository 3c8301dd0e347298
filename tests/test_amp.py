import torch

from common.amp import autocast, has_bfloat16


def test_off_is_float32():
    device = torch.device("cpu")
    with autocast(device, enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_on_uses_bfloat16_just_where_it_is_native():
    device = torch.device("cpu")
    expected = torch.bfloat16 if has_bfloat16(device) else torch.float32
    with autocast(device, enabled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
