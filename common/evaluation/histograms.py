"""Histograms of held-out and generated images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .held_out_ratios import Floats


def histograms(panels: Sequence[tuple[str, Floats, Floats, float | None]]) -> Image.Image:
    """Draw panels of (title, held-out values, sample values, threshold), two in a row; shares, in 40 bins each."""
    width, height, margin, bins = 480, 240, 40, 40
    picture = Image.new("RGB", (2 * width, -(-len(panels) // 2) * height), "white")
    draw = ImageDraw.Draw(picture)
    for number, (title, held_out, samples, threshold) in enumerate(panels):
        left, bottom = number % 2 * width + margin, (number // 2 + 1) * height - margin
        edges = np.histogram_bin_edges(np.concatenate([held_out, samples]), bins)
        low, high = float(edges[0]), float(edges[-1])
        shares = [np.histogram(values, edges)[0] / len(values) for values in (held_out, samples)]
        across = (width - 2 * margin) / bins
        up = (height - 2 * margin) / max(share.max() for share in shares)
        for i, share in enumerate(shares[0]):
            draw.rectangle([left + i * across, bottom - share * up, left + (i + 1) * across, bottom], fill="#bbbbbb")
        steps = [(left + (i + j) * across, bottom - share * up) for i, share in enumerate(shares[1]) for j in (0, 1)]
        draw.line(steps, fill="#1f4fd8", width=2)
        if threshold is not None:
            x = left + (threshold - low) / (high - low) * across * bins
            draw.line([x, bottom, x, bottom - height + 2 * margin], fill="#d02020")
        draw.line([left, bottom, left + across * bins, bottom], fill="black")
        draw.text((left, bottom + 4), f"{low:.3g}", fill="black")
        draw.text((left + across * bins, bottom + 4), f"{high:.3g}", fill="black", anchor="ra")
        draw.text((left, bottom - height + margin + 6), f"{title}", fill="black")
        draw.text((left, bottom + 18), f"grey: {len(held_out)} held out   blue: {len(samples)} generated", fill="black")
    return picture
