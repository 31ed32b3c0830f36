"""State files: all of a training, or nothing."""

import pytest
import torch

from tests.fakes import FakeModel, fake_embedding, fake_examples
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.settings import TrainSettings
from textinv_core.training.state import Damaged, read_state, write_state
from textinv_core.training.training import Training


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b and type(a) is type(b)


@pytest.fixture
def training():
    settings = TrainSettings(("[name]",), steps=6)
    training = Training(FakeModel(torch.float16), fake_examples(), LearnableEmbedding(fake_embedding()), settings)
    for _ in range(3):
        training.advance()
    return training


def test_what_is_written_is_read(training, tmp_path):
    state = training.state()
    assert state["optimizer"]["state"][0]["exp_avg"].any()
    write_state(state, tmp_path / "3.safetensors")
    assert alike(read_state(tmp_path / "3.safetensors"), state)


def test_a_single_wrong_bit_is_seen(training, tmp_path):
    path = tmp_path / "3.safetensors"
    write_state(training.state(), path)
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(Damaged, match="is damaged"):
            read_state(path)
    for length in (0, 5, 8, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match="is damaged"):
            read_state(path)


def test_another_file_is_no_state(tmp_path):
    path = tmp_path / "3.safetensors"
    path.mkdir()
    with pytest.raises(Damaged):
        read_state(path)


def test_what_was_read_does_not_depend_on_its_file(training, tmp_path):
    """Windows would not let go of the file, and a file system of a network may lose it."""
    path = tmp_path / "3.safetensors"
    write_state(training.state(), path)
    read = read_state(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert alike(read, training.state())
