"""A small untrained model with pictures, and ways to run the command."""

import importlib
import json
import os
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

ROOT = Path(__file__).parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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


def benchmark(name: str) -> Any:
    """A script of the toy world's; these import one another from their own folder."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "toyworld"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def toyworld() -> Any:
    """The module that draws the toy world's pictures, and judges them."""
    return benchmark("world")


@pytest.fixture(scope="session")
def world(tmp_path_factory, toyworld) -> World:
    from textinv_core.images import save_picture

    folder = tmp_path_factory.mktemp("world")
    models, world = benchmark("models"), toyworld
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
def textinv(monkeypatch) -> Callable[..., Ended]:
    """Run the command in this process."""
    from typer.testing import CliRunner

    from textinv_core.commands import app

    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Ended:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the command as a process of its own, in `tmp_path`.

    launcher: what `-m textinv_core` is run by. more: what is in its environment besides.
    """
    started = []

    def begin(*arguments: object, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
        program = [sys.executable, *launcher, "-m", "textinv_core"]
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that started these tests in the background has interrupts ignored.
            preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
