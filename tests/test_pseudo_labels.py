import pytest
import torch
from conftest import randomise
from test_diffusion_segmenter import make_tiny_segmenter

from common.data.datalists import radiograph_items
from common.experiments.pseudo_labels import (
    PseudoLabelError,
    consensus,
    pseudo_label,
    select_by_agreement,
    write_pseudo_labelled,
)
from common.io import read_radiograph
from common.io.mask_files import read_mask
from common.io.segmentation_classes import class_table

CLASSES = class_table("grouped")


def certain(*labels):
    """Probabilities [E, 3, 1, W] of members that are sure of the given rows of labels."""
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float().permute(0, 2, 1)[:, :, None]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- mask and agreement --------------------------------------------------------------------------------------------


def test_the_mask_is_that_of_the_mean_probability_not_of_the_votes():
    probabilities = torch.tensor([[0.45, 0.55], [0.45, 0.55], [0.9, 0.1]])[:, :, None, None]
    assert consensus(probabilities)[0].tolist() == [[[0]]]
    assert consensus(probabilities[:2])[0].tolist() == [[[1]]]
    assert consensus(probabilities)[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([[0, 1, 1, 2], [0, 1, 1, 2]], 1.0),
        ([[0, 1, 1, 2], [0, 1, 2, 2]], 2 / 3),  # of three pixels that are not background one is in doubt
        ([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]], 1 / 3),  # one of three pairs on each
        ([[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]], (1 + 3 / 6 + 3 / 6) / 3),
    ],
)
def test_agreement_is_that_of_pairs_where_anyone_sees_a_class(members, expected):
    assert consensus(certain(*members))[1] == pytest.approx(expected)


def test_background_does_not_raise_the_agreement():
    few, many = ([[1, 1] + [0] * n, [1, 2] + [0] * n] for n in (1, 50))
    assert consensus(certain(*few))[1] == consensus(certain(*many))[1] == 0.5


def test_an_image_in_which_nothing_is_found_has_no_agreement():
    mask, score = consensus(certain([0, 0], [0, 0]))
    assert not mask.any() and score == 0.0
    assert consensus(certain([0, 0], [0, 0], [0, 1]))[1] == 0.0


def test_a_class_that_only_the_mean_finds_counts_as_doubt():
    probabilities = torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.4, 0.5]])[:, :, None, None]
    mask, score = consensus(probabilities)
    assert (mask.item(), score) == (1, 0.0)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4)])
def test_one_member_is_no_ensemble(shape):
    with pytest.raises(PseudoLabelError, match="at least two members"):
        consensus(torch.rand(shape))


def test_images_are_labelled_one_by_one_whatever_the_batch():
    segmenters = [make_tiny_segmenter(seed).eval() for seed in (0, 1)]
    for segmenter in segmenters:
        randomise(segmenter, 0.3)
    torch.nn.init.normal_(segmenters[1].unet.out[2].conv.weight)
    images = torch.rand(3, 1, 8, 12)
    found = pseudo_label(segmenters, images, batch_size=2)
    assert found.masks.shape == (3, 1, 8, 12) and found.scores.shape == (3,)
    for image, mask, score in zip(images, found.masks, found.scores, strict=True):
        with torch.no_grad():
            alone = consensus(torch.cat([segmenter(image[None]).softmax(1) for segmenter in segmenters]))
        assert torch.equal(alone[0], mask) and alone[1] == pytest.approx(float(score))
    assert len(set(found.scores.tolist())) == 3
    with pytest.raises(PseudoLabelError, match="found 0 images"):
        pseudo_label(segmenters, images[:0])


# ---- selection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.7], 0.5, [1, 3]),
        ([0.1, 0.9, 0.5, 0.7], 1.0, [0, 1, 2, 3]),
        ([0.5, 0.5, 0.5], 0.34, [0]),
        ([0.0, 0.2, 0.0], 1.0, [1]),
        ([0.3] * 10, 0.7, [0, 1, 2, 3, 4, 5, 6]),
        ([0.3, 0.2], 0.1, []),
        (torch.tensor([0.2, 0.8]), 0.5, [1]),
    ],
)
def test_the_share_that_agrees_best_is_kept_in_order(scores, share, expected):
    assert select_by_agreement(scores, share) == expected


@pytest.mark.parametrize(
    ("scores", "share"), [([0.5], 0.0), ([0.5], 1.1), ([1.5], 0.5), ([float("nan")], 0.5), ([0.5], float("nan"))]
)
def test_shares_and_scores_out_of_range_are_refused(scores, share):
    with pytest.raises(PseudoLabelError, match=r"expected a share in \(0, 1\]"):
        select_by_agreement(scores, share)


# ---- the data set --------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs():
    """Two images of different sizes with masks, scores and numbers."""
    images = [torch.rand(1, 8, 6), torch.rand(1, 5, 7)]
    masks = [torch.randint(0, 6, image.shape, dtype=torch.uint8) for image in images]
    return {"images": images, "masks": masks, "scores": [0.75, 0.5], "numbers": [3, 12]}


def test_the_folder_is_a_data_set_for_training(tmp_path, pairs):
    manifest = write_pseudo_labelled(tmp_path / "set", **pairs, classes=CLASSES)
    assert manifest.read_text().splitlines() == [
        "image,mask,mask_values,patient_id,split,agreement",
        "images/synthetic-0003.png,masks/synthetic-0003.png,labels,synthetic-0003,train,0.750000",
        "images/synthetic-0012.png,masks/synthetic-0012.png,labels,synthetic-0012,train,0.500000",
    ]
    items = radiograph_items(tmp_path / "set", "train", val_fraction=0.0, seed=0)
    for item, image, mask in zip(items, pairs["images"], pairs["masks"], strict=True):
        torch.testing.assert_close(read_radiograph(item["image"]).pixels, image, atol=0.5 / 255 + 1e-6, rtol=0)
        assert (read_mask(item["mask"]) == mask[0].numpy()).all()


def test_a_killed_run_is_finished_to_the_same_bytes(tmp_path, pairs):
    write_pseudo_labelled(tmp_path / "whole", **pairs, classes=CLASSES)
    spoilt = [pairs["masks"][0], torch.full((1, 5, 7), 6, dtype=torch.uint8)]  # label 6 stops the writing half-way
    with pytest.raises(ValueError, match=r"found mask values \[6\]"):
        write_pseudo_labelled(tmp_path / "killed", **{**pairs, "masks": spoilt}, classes=CLASSES)
    assert "manifest.csv" not in files_of(tmp_path / "killed")
    write_pseudo_labelled(tmp_path / "killed", **pairs, classes=CLASSES)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    write_pseudo_labelled(tmp_path / "killed", **pairs, classes=CLASSES)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_another_set_in_the_folder_stays_as_it_is(tmp_path, pairs):
    write_pseudo_labelled(tmp_path, **pairs, classes=CLASSES)
    before = files_of(tmp_path)
    with pytest.raises(PseudoLabelError, match="another set of images or labels"):
        write_pseudo_labelled(tmp_path, **{**pairs, "scores": [0.75, 0.6]}, classes=CLASSES)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [], "masks": [], "scores": [], "numbers": []}, "found 0 images"),
        ({"scores": [0.5]}, "2 masks, 1 scores"),
        ({"numbers": [3, 3]}, "1 different numbers"),
        ({"masks": [torch.zeros(1, 8, 6, dtype=torch.uint8)] * 2}, r"an image \(1, 5, 7\) and a mask \(1, 8, 6\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, pairs, change, message):
    with pytest.raises(PseudoLabelError, match=message):
        write_pseudo_labelled(tmp_path, **{**pairs, **change}, classes=CLASSES)
    assert not (tmp_path / "manifest.csv").exists()


def test_tensors_of_images_of_one_size_are_numbered_from_zero(tmp_path):
    masks = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    write_pseudo_labelled(tmp_path, torch.rand(2, 1, 4, 4), masks, torch.tensor([0.5, 1.0]), CLASSES)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["synthetic-0000.png", "synthetic-0001.png"]
