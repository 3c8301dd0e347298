import torch

from common.prepare_batch import image_as_label


def test_the_target_of_an_autoencoder_is_its_input():
    image, label = image_as_label({"image": torch.rand(1, 1, 4, 4), "source": ["a"]}, torch.device("cpu"))
    assert label is image
