"""Lay one small picture over another, zoomed and moved, and say how alike they are then."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

DETAIL = 1 / 16  # of the side
MIN_CONTRAST = 0.1  # of a picture's sd, added to the local one: flat parts stay flat
MIN_SPREAD = 1e-6  # of a picture; less is a flat one
MIN_OVERLAP = 0.5  # of the target's area; less can be laid over anything
MAX_STEP = 0.1  # of half a side, in one iteration
ZOOMS = (0.7, 1.4)  # least and most that one alignment may change
DAMPING = 1e-2  # of the diagonal, as in Levenberg-Marquardt


def evened_out(pictures: Tensor, detail: float = DETAIL) -> Tensor:
    """Take the local mean out of pictures [N, 1, h, w] and divide by the local contrast; float32.

    `detail` is the sd, as a share of the side, of the Gaussian that both are taken with.

    What all chest radiographs share is coarse. What is left here, ribs and vessels and their exact place, belongs to
    one picture.
    """
    array = pictures.detach().float().numpy()
    array = array - array.mean((2, 3), keepdims=True)
    array /= np.maximum(array.std((2, 3), keepdims=True), MIN_SPREAD)
    sigma = (0, 0, detail * array.shape[2], detail * array.shape[3])
    array -= gaussian_filter(array, sigma, mode="nearest")
    return torch.from_numpy(array / (np.sqrt(gaussian_filter(array**2, sigma, mode="nearest")) + MIN_CONTRAST))


def zoomed(pictures: Tensor, boxes: Tensor) -> Tensor:
    """What lies in one box of each picture [P, 1, h, w], at its own size; beyond the border its last pixels go on.

    Boxes are [P, 4], half height, half width, centre y, centre x; the whole picture is (1, 1, 0, 0).
    """
    return F.grid_sample(pictures, _grid(pictures, boxes), padding_mode="border", align_corners=False)


def aligned_correlation(
    targets: Tensor, pictures: Tensor, boxes: Tensor, detail: float, num_iterations: int
) -> tuple[Tensor, Tensor]:
    """The highest correlation [P] of each target [P, 1, s, s] with a box of its picture, and these boxes [P, 4].

    Both are evened out with `detail`, the picture after it was zoomed to the box where the search starts, so that a
    frame around it does not count. Then Gauss-Newton on the difference of both, made zero mean and unit norm where they
    overlap: it finds what lies within about the size of the details from its start. The best of all boxes on the way
    counts; without iterations it measures where the start is.
    """
    targets, pictures = evened_out(targets, detail), evened_out(zoomed(pictures, boxes), detail)
    move = best_move = boxes.new_tensor([1.0, 1.0, 0.0, 0.0]).expand_as(boxes)
    best = torch.full((len(targets),), -1.0)
    for iteration in range(num_iterations + 1):
        grid = _grid(pictures, move)
        is_inside = (grid.abs() <= 1) & (_grid(pictures, _composed(boxes, move)).abs() <= 1)
        inside = is_inside.all(-1)[:, None].float()
        found = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        target, found = _standardised(targets, inside), _standardised(found, inside)
        correlation = (target * found).sum((1, 2, 3)).masked_fill(inside.mean((1, 2, 3)) < MIN_OVERLAP, -1.0)
        best_move = torch.where((correlation > best)[:, None], move, best_move)
        best = torch.maximum(best, correlation)
        if iteration < num_iterations:
            move = move + _step(target, found, inside, move).clamp(-MAX_STEP, MAX_STEP)
            move = torch.cat([move[:, :2].clamp(*ZOOMS), move[:, 2:]], dim=1)
    return best, _composed(boxes, best_move)


def _composed(boxes: Tensor, moves: Tensor) -> Tensor:
    """The box of the picture that a box of its box is."""
    return torch.cat([boxes[:, :2] * moves[:, :2], boxes[:, 2:] + boxes[:, :2] * moves[:, 2:]], dim=1)


def _grid(pictures: Tensor, boxes: Tensor) -> Tensor:
    half_height, half_width, y, x = boxes.unbind(1)
    zero = torch.zeros_like(y)
    rows = [torch.stack([half_width, zero, x], 1), torch.stack([zero, half_height, y], 1)]
    return F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)


def _standardised(pictures: Tensor, inside: Tensor) -> Tensor:
    """Zero mean and unit norm over the pixels inside, 0 elsewhere."""
    count = inside.sum((2, 3), keepdim=True).clamp_min(1)
    centred = (pictures - (pictures * inside).sum((2, 3), keepdim=True) / count) * inside
    return centred / centred.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None, None]


def _step(target: Tensor, found: Tensor, inside: Tensor, boxes: Tensor) -> Tensor:
    """The step [P, 4] of boxes that linear algebra takes for the best."""
    side = target.shape[-1]
    place = (torch.arange(side) * 2 + 1) / side - 1
    slopes = torch.gradient(found[:, 0], dim=(1, 2))
    columns = []
    for slope, along, half in zip(slopes, (place[:, None], place[None]), boxes[:, :2].unbind(1), strict=True):
        slope = slope * inside[:, 0] * (side / 2) / half[:, None, None]  # per unit of the picture, not of the box
        columns.append((slope * along, slope))
    jacobian = torch.stack([columns[0][0], columns[1][0], columns[0][1], columns[1][1]], 1).flatten(2)
    unit = found.flatten(1)[:, None]
    jacobian = jacobian - (jacobian * unit).sum(2, keepdim=True) * unit  # a change of contrast alone is no difference
    normal = jacobian @ jacobian.transpose(1, 2)
    normal = normal + DAMPING * torch.diag_embed(normal.diagonal(dim1=1, dim2=2)) + 1e-6 * torch.eye(4)
    return torch.linalg.solve(normal, jacobian @ (target - found).flatten(1)[:, :, None])[:, :, 0]
