import os

import numpy as np
import torch
from PIL import Image

from textinv_core.images.save import save_picture


def pixels(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return torch.from_numpy(np.array(image))


def test_every_pixel_value_survives(tmp_path):
    # Height 16, width 32, another colour at each place: no swap, no loss, truncation instead of rounding would show.
    values = torch.arange(16 * 32 * 3).reshape(16, 32, 3) % 256
    save_picture(values / 255, tmp_path / "a.png")
    assert torch.equal(pixels(tmp_path / "a.png"), values.to(torch.uint8))


def test_values_are_rounded_and_kept_in_range(tmp_path):
    values = torch.tensor([[[-0.5, 1.5, 0.999], [0.0017, 0.0022, 0.5]]])
    save_picture(values, tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[0, 255, 255], [0, 1, 128]]]


def test_pictures_of_models_are_taken_as_they_are(tmp_path):
    save_picture(torch.ones(2, 3, 3, dtype=torch.float16, requires_grad=True), tmp_path / "half.png")
    save_picture(torch.ones(2, 3, 3, dtype=torch.bfloat16), tmp_path / "brain.png")
    with torch.inference_mode():
        save_picture(torch.ones(2, 3, 3), tmp_path / "inference.png")
    assert all((pixels(path) == 255).all() for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.png"
    save_picture(torch.zeros(2, 3, 3), path)
    save_picture(torch.ones(4, 5, 3), path)
    assert torch.equal(pixels(path), torch.full((4, 5, 3), 255, dtype=torch.uint8))
    assert os.listdir(path.parent) == ["c.png"]


def test_texts_are_chunks_of_the_file(tmp_path):
    texts = {"prompt": '{"1": {"class_type": "KSampler"}}', "parameters": "a cat, \u718a\nSteps: 5"}
    save_picture(torch.zeros(2, 3, 3), tmp_path / "a.png", texts)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.text == texts
    save_picture(torch.zeros(2, 3, 3), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.info == {}
