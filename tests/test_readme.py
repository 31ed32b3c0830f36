"""What the README shows is what there is."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch

from textinv_core import load_embedding
from textinv_core.images import load_image

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_in_python_trains(tmp_path, monkeypatch, capsys):
    [example] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(example, encoding="utf-8")
    with torch.random.fork_rng():
        runpy.run_path("example.py")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    embedding = load_embedding(tmp_path / "my-character.safetensors")
    assert (embedding.name, embedding.step) == ("my-character", len(losses))
    assert load_image(tmp_path / "my-character.png")[0].shape == (64, 64, 3)
