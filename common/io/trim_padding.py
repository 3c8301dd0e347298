"""Cut off the black padding that a generator has learnt to draw with its images."""

from __future__ import annotations

from torch import Tensor

from ..errors import UserError

BRIGHT_SHARE = 0.1  # of a line's pixels: fewer may be above the threshold, as a denoiser leaves specks
BRIGHTEST_BLACK = 0.03  # grey level in [0, 1]; padding is 0 in the training images, and nearly so in samples


class TrimError(UserError, ValueError):
    """The knobs of trimming are out of range."""


def trim_padding(image: Tensor, threshold: float = BRIGHTEST_BLACK, min_share: float = 0.4) -> Tensor:
    """Remove the rows and columns at the border that are black.

    Training images are made to fit the network's size and padded (`PadResized`), so that samples have bars above and
    below or left and right; without them they have the aspect ratio of a radiograph. A line is black if at least nine
    tenths of its pixels are at or below the threshold. Rows and columns are judged by the whole image: bars at the
    sides that leave less than a tenth of a row would make all of it black, and `min_share` prevents that.

    Args:
        image: [C, H, W] in [0, 1].
        threshold: grey level in [0, 1].
        min_share: of the rows, and of the columns, that has to be left, in (0, 1]; an image that would keep less, such
            as one that is black all over, comes back whole.

    Returns:
        [C, H', W'], a copy.

    Raises:
        TrimError: a threshold or share out of range.
        ValueError: another shape.
    """
    if not 0.0 <= threshold < 1.0 or not 0.0 < min_share <= 1.0:
        raise TrimError(
            f"trim_padding: expected a threshold in [0, 1) and min_share in (0, 1], found {threshold} and {min_share}"
        )
    if image.ndim != 3 or not image.numel():
        raise ValueError(f"trim_padding: expected [C, H, W], found {tuple(image.shape)}; index the batch away first")
    bright = (image > threshold).any(dim=0).float()
    top, bottom = _bounds(bright.mean(dim=1))
    left, right = _bounds(bright.mean(dim=0))
    height, width = bright.shape
    if bottom - top < min_share * height or right - left < min_share * width:
        return image.clone()
    return image[:, top:bottom, left:right].clone()


def _bounds(bright_shares: Tensor) -> tuple[int, int]:
    """First line that is not black and the one after the last; (0, 0) if all are."""
    lit = (bright_shares > BRIGHT_SHARE).nonzero().flatten().tolist()
    return (lit[0], lit[-1] + 1) if lit else (0, 0)
