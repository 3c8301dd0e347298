"""DiffSeg (arXiv 2308.12469): from the self-attention of a denoiser's U-Net to segments, without any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from monai.networks.blocks import SABlock
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SettingsError
from ..pipelines.diffusion import DinoDiffusion
from ..seeding import Purpose, derive_seed, seeded_normal

TINY = 1e-12  # probabilities below it count as this, so that the logarithm is finite
FLOOR = 1e-3  # the same for a proposal, as a share of the strongest at its pixel
MIN_SPREAD = 0.02  # sd of grey values in [0, 1]: flat segments would take no other value
EDGE_ROUNDS = 2


@contextmanager
def saved_attention(network: nn.Module) -> Iterator[list[SABlock]]:
    """Within the block self-attentions keep their `att_mat` [B, heads, N, N]; given in their order.

    A network that has none, or fused ones, which never hold the matrix, is a SettingsError.
    """
    found = [getattr(module, "attn1", None) for module in network.modules()]
    blocks = [block for block in found if isinstance(block, SABlock)]
    if not blocks or any(block.use_flash_attention for block in blocks):
        raise SettingsError(
            f"self-attention: found {len(blocks)} blocks, fused ones among them or none at all; expected "
            "transformer blocks built with use_flash_attention false"
        )
    before = [block.save_attn for block in blocks]
    for block in blocks:
        block.save_attn = True
    try:
        yield blocks
    finally:
        for block, save_attn in zip(blocks, before, strict=True):
            block.save_attn = save_attn
            block.att_mat = torch.Tensor()  # a large matrix that nobody else would ever free


@torch.inference_mode()
def attention_layers(
    pipe: DinoDiffusion, image: Tensor, timestep: float, seed: int, tokens: Tensor | None = None, num_noises: int = 1
) -> list[Tensor]:
    """One forward pass of the noised latents; the self-attention of each layer, mean over heads and noises.

    The image is [1, H, W] in [0, 1], H and W multiples of the downsampling factors of autoencoder and U-Net together;
    tokens are [1, N, D] of its DINO encoding, None takes the null context.

    Returns:
        Per layer float32 [h, w, h, w] on the CPU: queries, then keys, each query's keys sum to 1.
    """
    denoiser, device = pipe.network, pipe.device
    latents = pipe.codec.encode(image[None].to(device)).expand(num_noises, -1, -1, -1)
    seeds = [derive_seed(seed, Purpose.NOISE, draw) for draw in range(num_noises)]
    noise = seeded_normal(seeds, tuple(latents.shape[1:])).to(device)
    timesteps = torch.full((num_noises,), timestep, device=device)
    timesteps = timesteps.to(torch.float32 if pipe.schedule.is_flow else torch.int64)
    context = denoiser.null_context if tokens is None else denoiser.encode_tokens(tokens.to(device))
    with saved_attention(denoiser.unet) as blocks:
        noisy = pipe.schedule.add_noise(latents, noise, timesteps)
        denoiser(noisy, timesteps, context.expand(num_noises, -1, -1))
        matrices = [block.att_mat.float().mean((0, 1)).cpu() for block in blocks]
    layers = []
    for matrix in matrices:  # [N, N], where N = h × w is the latents' size halved some times
        height, width = latents.shape[2:]
        while height * width > len(matrix):
            height, width = height // 2, width // 2
        layers.append(matrix.reshape(height, width, height, width))
    return layers


def aggregate(layers: Sequence[Tensor], size: tuple[int, int], exponent: float = 1.0) -> Tensor:
    """Attention of all layers at one resolution (section 3.2.1, equations 1 and 2).

    Layers [h, w, h, w] hold queries, then keys. Keys are interpolated bilinearly, queries repeated (nearest), layers
    weighted by their resolution to a power: exponent 1 is DiffSeg's, 0 weighs all alike.

    Returns:
        [R_h, R_w, R_h, R_w] for `size` R_h, R_w; each query's map sums to 1.
    """
    rows, columns = size
    total = torch.zeros(rows, columns, rows, columns)
    weights = [(layer.shape[0] * layer.shape[1]) ** (exponent / 2) for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        height, width = layer.shape[:2]
        keys = layer.reshape(height * width, 1, height, width)
        keys = F.interpolate(keys, size=size, mode="bilinear", align_corners=False)
        keys = (keys / keys.sum((2, 3), keepdim=True)).reshape(height, width, rows, columns)
        row = (torch.arange(rows) * height).div(rows, rounding_mode="floor")
        column = (torch.arange(columns) * width).div(columns, rounding_mode="floor")
        total += weight / sum(weights) * keys[row][:, column]
    return total


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences (equation 3), in nats, between rows [M, K] and [N, K]: [M, N].

    Rows sum to 1.
    """
    log_first, log_second = first.clamp_min(TINY).log(), second.clamp_min(TINY).log()
    own = (first * log_first).sum(1)[:, None] + (second * log_second).sum(1)[None]
    crossed = first @ log_second.T + log_first @ second.T
    return ((own - crossed) / 2).clamp_min(0.0)


def anchor_indices(size: tuple[int, int], anchors: int) -> Tensor:
    """Positions, row by row, of an M × M grid of anchors in a map of R_h × R_w; fewer where M exceeds a side."""
    rows, columns = (
        torch.unique(((torch.arange(anchors) + 0.5) * length / anchors).long().clamp(max=length - 1)) for length in size
    )
    return (rows[:, None] * size[1] + columns[None]).flatten()


def merge(attention: Tensor, anchors: int, threshold: float, max_rounds: int = 10) -> Tensor:
    """Merge attention maps into object proposals (section 3.2).

    First each anchor's map becomes the mean of all maps nearer than the threshold; then, round by round, the first map
    left takes all that are nearer than the threshold, until a round changes nothing. Nothing is drawn at random.

    Attention is [R_h, R_w, R_h, R_w], of M × M anchors; the threshold is of the symmetric KL divergence, in nats, and 0
    leaves the anchors' own maps.

    Returns:
        [S, R_h, R_w], each map sums to 1.
    """
    rows, columns = attention.shape[:2]
    maps = attention.reshape(rows * columns, rows * columns)
    chosen = maps[anchor_indices((rows, columns), anchors)]
    near = symmetric_kl(chosen, maps) < threshold
    count = near.sum(1, keepdim=True)
    proposals = torch.where(count > 0, near.float() @ maps / count.clamp_min(1), chosen)
    for _ in range(max_rounds):
        near = symmetric_kl(proposals, proposals) < threshold
        left = torch.ones(len(proposals), dtype=torch.bool)
        merged = []
        for index in range(len(proposals)):
            if left[index]:
                group = near[index] & left
                group[index] = True
                merged.append(proposals[group].mean(0))
                left &= ~group
        if len(merged) == len(proposals):
            break
        proposals = torch.stack(merged)
    return proposals.reshape(-1, rows, columns)


def label_map(proposals: Tensor, size: tuple[int, int], image: Tensor | None = None, edges: float = 0.0) -> Tensor:
    """Which of the proposals [S, R_h, R_w], upsampled bilinearly, is likeliest at each pixel: int64 [H, W].

    With an image [H, W] segments follow its edges, which attention is too coarse for: `edges` is the weight of a
    pixel's log-likelihood among the grey values of a segment, taken as normally distributed, beside the logarithm of
    the proposal.
    """
    values = F.interpolate(proposals[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    labels = values.argmax(0)
    if image is None or not edges:
        return labels
    attention = (values / values.amax(0) + FLOOR).log()
    grey = torch.from_numpy(gaussian_filter(image.numpy(), 1.0))
    for _ in range(EDGE_ROUNDS):
        moments = [torch.bincount(labels.flatten(), grey.flatten() ** n, len(values)) for n in (0, 1, 2)]
        count = moments[0].clamp_min(1)
        mean, square = (moment / count for moment in moments[1:])
        spread = (square - mean**2).clamp_min(MIN_SPREAD**2).sqrt()[:, None, None]
        likelihood = -(((grey - mean[:, None, None]) / spread) ** 2) / 2 - spread.log()
        labels = (attention + edges * likelihood).argmax(0)
    return labels
