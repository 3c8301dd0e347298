import pytest
import torch

from common.errors import SettingsError
from common.networks.conditioning import ContextEncoder, TokenScaler, TokenSelection, pooled_patch_grid
from common.networks.dino import DinoTokens


def encoded(patches, registers=0):
    """Tokens of an encoder with these patch tokens [B, N, D]."""
    batch, _, width = patches.shape
    return DinoTokens(torch.zeros(batch, width), torch.zeros(batch, registers, width), patches)


def stored(batch=2, registers=3, grid=4, width=5):
    """A batch as the store gives it, every number another one."""
    shapes = {"cls_token": (batch,), "register_tokens": (batch, registers), "patch_grid": (batch, grid, grid)}
    return {name: torch.randn(*shape, width) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2, 4), [[0.5, 2.5], [4.5, 6.5]]), ((4, 2), [[1.0, 2.0], [5.0, 6.0]])],  # of rows of 4, and of rows of 2
)
def test_a_pooled_cell_is_the_mean_of_its_patches_rows_before_columns(size, expected):
    patches = torch.arange(8.0).view(1, 8, 1).repeat(2, 1, 1)
    patches[1] += 100  # another image
    grid = pooled_patch_grid(encoded(patches), size, 2)
    assert grid.shape == (2, 2, 2, 1)
    assert torch.equal(grid[0, :, :, 0], torch.tensor(expected))
    assert torch.equal(grid[1, :, :, 0], torch.tensor(expected) + 100)


def test_features_are_pooled_apart_and_no_grid_is_an_empty_one():
    patches = torch.randn(1, 16, 3)
    torch.testing.assert_close(pooled_patch_grid(encoded(patches), (4, 4), 4).reshape(1, 16, 3), patches)
    assert pooled_patch_grid(encoded(patches), (4, 4), 0).shape == (1, 0, 0, 3)
    with pytest.raises(ValueError, match="3 × 4"):
        pooled_patch_grid(encoded(patches), (3, 4), 2)


def test_tokens_come_as_cls_registers_grid_row_by_row():
    batch = stored(grid=2)
    chosen = TokenSelection(use_registers=True, patch_grid=2).select(batch)
    grid = batch["patch_grid"]
    assert chosen.shape == (2, 1 + 3 + 4, 5)
    assert torch.equal(chosen[:, 0], batch["cls_token"])
    assert torch.equal(chosen[:, 1:4], batch["register_tokens"])
    assert torch.equal(chosen[:, 4:], torch.stack([grid[:, 0, 0], grid[:, 0, 1], grid[:, 1, 0], grid[:, 1, 1]], 1))


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("use_registers", [False, True])
@pytest.mark.parametrize("patch_grid", [0, 1, 4])
def test_as_many_tokens_as_announced_in_float32(registers, use_registers, patch_grid):
    selection = TokenSelection(use_registers, patch_grid)
    chosen = selection.select({name: value.half() for name, value in stored(registers=registers).items()})
    assert chosen.shape == (2, selection.num_tokens(registers), 5) and chosen.dtype == torch.float32


def test_a_cached_grid_pools_to_what_pooling_at_once_gives():
    tokens = encoded(torch.randn(2, 256, 5))
    cached = {"cls_token": tokens.cls_token, "patch_grid": pooled_patch_grid(tokens, (16, 16), 4)}
    chosen = TokenSelection(False, 2).select(cached)[:, 1:]
    torch.testing.assert_close(chosen, pooled_patch_grid(tokens, (16, 16), 2).flatten(1, 2))


@pytest.mark.parametrize(("cached", "wanted"), [(4, 3), (2, 4), (0, 1), (4, -1)])
def test_a_grid_that_the_store_cannot_give_is_refused(cached, wanted):
    with pytest.raises(SettingsError):
        TokenSelection(False, wanted).select(stored(grid=cached))


def test_scaled_tokens_have_mean_zero_and_deviation_one_per_position_and_feature():
    tokens = torch.randn(50, 2, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([[0.0, 3.0, -7.0], [50.0, 0.0, 1.0]])
    scaler = TokenScaler(2, 3)
    assert scaler.tokens_num_images == 0
    scaler.fit(tokens)
    assert scaler.tokens_num_images == 50
    torch.testing.assert_close(scaler.tokens_mean, tokens.mean(0))
    torch.testing.assert_close(scaler.tokens_std, tokens.std(0))
    scaled = scaler.scale(tokens)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(2, 3))
    torch.testing.assert_close(scaler.unscale(scaled), tokens)
    other = TokenScaler(2, 3)  # the statistics are saved with the weights
    other.load_state_dict(scaler.state_dict())
    assert other.tokens_num_images == 50 and torch.equal(other.scale(tokens), scaled)
    tokens[..., 0] = 3.0  # a feature that never changes stays finite
    scaler.fit(tokens)
    assert not scaler.scale(tokens)[..., 0].any()


@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 3, 3), (4, 2, 4)])
def test_statistics_of_one_image_or_of_other_tokens_are_refused(shape):
    with pytest.raises(SettingsError):
        TokenScaler(2, 3).fit(torch.randn(shape))


@pytest.fixture
def encoder():
    encoder = ContextEncoder(num_tokens=2, token_dim=3, context_dim=4)
    encoder.scaler.fit(torch.randn(10, 2, 3) * 4 + 2)
    return encoder


def test_the_context_is_of_scaled_tokens_and_the_null_context_just_where_it_is_dropped(encoder):
    tokens, drop = torch.randn(4, 2, 3), torch.tensor([True, False, False, True])
    scaled = (tokens - encoder.scaler.tokens_mean) / encoder.scaler.tokens_std
    expected = scaled @ encoder.projection.weight.T + encoder.projection.bias + encoder.position
    torch.testing.assert_close(encoder(tokens), expected)
    context = encoder.with_drop(tokens, drop)
    assert torch.equal(context[~drop], encoder(tokens)[~drop])
    assert torch.equal(context[drop], encoder.null_context.expand(2, 2, 4))


def test_the_null_context_learns_from_dropped_samples_and_the_projection_from_the_others(encoder):
    tokens = torch.randn(3, 2, 3)
    encoder.with_drop(tokens, torch.tensor([True, False, True])).sum().backward()
    assert torch.equal(encoder.null_context.grad, torch.full((1, 2, 4), 2.0))
    kept = encoder.scaler.scale(tokens[1]).sum(0)
    torch.testing.assert_close(encoder.projection.weight.grad, kept.expand(4, 3))
    encoder.zero_grad()
    encoder.with_drop(tokens, torch.zeros(3, dtype=torch.bool)).sum().backward()
    assert torch.equal(encoder.null_context.grad, torch.zeros(1, 2, 4))  # not None, which DDP would wait for


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 2, 5), (2, 3)])
def test_other_tokens_than_trained_with_are_refused(encoder, shape):
    with pytest.raises(SettingsError):
        encoder(torch.randn(shape))
