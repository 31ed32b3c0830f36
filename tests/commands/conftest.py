"""A small untrained model with pictures, and ways to run the command."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.processes import LAUNCHER, environment


@dataclass(frozen=True)
class World:
    """A model of the toy world's shape with random weights, and eight pictures of one character."""

    folder: Path

    @property
    def model(self) -> list[str]:
        return ["--model", str(self.folder / "toyworld.safetensors"), "--model-config", str(self.folder)]

    @property
    def flags(self) -> list[str]:
        """What a training on it needs besides a name."""
        size = ["--width", "64", "--height", "64"]
        return [*self.model, "--images", str(self.folder / "pictures"), *size, "--init-text", "figure"]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    from benchmarks.toyworld import models, world
    from textinv_core.images import save_picture

    folder = tmp_path_factory.mktemp("world")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = world.words()
        state = models.ldm_state(models.unet(), models.vae(), models.text_encoder(words))
    models.write_configs(folder, words)
    save_file(state, folder / "toyworld.safetensors", {"format": "pt"})
    character = world.held_out_characters(1)[0]
    rng = np.random.default_rng(0)
    for i, picture in enumerate(world.draw([world.pictured(character, rng) for _ in range(8)])):
        save_picture(picture, folder / "pictures" / f"{i}.png")
    return World(folder)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status, what it wrote, and its lines on stdout as JSON."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, kind: str) -> dict[str, Any]:
        """The last of its events of a kind."""
        return [each for each in self.facts if each["event"] == kind][-1]


@pytest.fixture
def textinv(monkeypatch, capsys) -> Callable[..., Ended]:
    """Run the command in this process."""
    from textinv_core.commands import run

    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)

    def typed(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run([*map(str, arguments)])
        return Ended(ended.value.code, *capsys.readouterr())

    return typed


def _heed() -> None:
    """A shell that started these tests in the background has interrupts ignored, and `nohup` SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the command as a process of its own, in `tmp_path`.

    launcher: what `-m textinv_core` is run by. more: what is in its environment besides.
    """
    started = []

    def begin(*arguments: object, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
        program = [sys.executable, *launcher, "-m", "textinv_core"]
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            env=environment(**more),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=None if sys.platform == "win32" else _heed,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def ended() -> Callable[[subprocess.Popen], Ended]:
    """Wait for a process that was started."""

    def wait(process: subprocess.Popen) -> Ended:
        out, err = process.communicate(timeout=300)
        return Ended(process.returncode, out, err)

    return wait
