"""All the previews of a run; how each is made, see `test_learn`."""

import logging

import torch

from tests.fakes import fake_embedding
from textinv_core.training.folder import RunFolder
from textinv_core.training.previews import all_of


def save(folder, step, size=64, value=0.0):
    folder.save_preview(torch.full((size, 64, 3), value), fake_embedding(step=step), {})


def test_those_made_before_are_read_back_in_order_of_step(tmp_path):
    folder = RunFolder(tmp_path)
    for step, value in ((20, 0.2), (3, 1.0), (100, 0.4), (40, 0.6), (120, 0.0)):
        save(folder, step, value=value)
    made = {100: torch.full((1, 64, 64, 3), 0.9)}  # before it was kept, with more than eight bits
    shown = all_of(folder, range(4, 101), made)
    assert [round(float(each.mean()), 3) for each in shown] == [0.2, 0.6, 0.9]
    assert torch.cat(shown).shape == (3, 64, 64, 3)
    assert all_of(RunFolder(tmp_path / "none"), range(9), {}) == []


def test_those_of_another_size_than_the_last_stay_where_they_are(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    folder = RunFolder(tmp_path)
    for step, size in ((1, 64), (2, 48), (3, 64)):
        save(folder, step, size)
    assert len(all_of(folder, range(1, 4), {})) == 2
    assert "of the run's 3 previews 1 come in another size" in caplog.text and str(tmp_path / "images") in caplog.text


def test_one_that_cannot_be_read_is_left_out(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    save(folder, 1)
    save(folder, 2)
    folder.previews()[1].write_bytes(b"PNG")
    assert len(all_of(folder, range(1, 3), {})) == 1
    assert "cat-1.png cannot be read" in caplog.text
