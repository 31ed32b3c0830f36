"""Whether many trainings in a row leave memory where it was: a process that trains for days must not grow.

    python -m benchmarks.soak [--runs 1000] [--comfyui FOLDER]

Short trainings in the toy world, from pictures to a run's folder, each with another seed: every third is stopped on the
way, every fifth runs out of memory and every seventh comes with other pictures. With --comfyui, by ComfyUI's own
interpreter, on ComfyUI's objects; else on a diffusers pipeline. Every so many runs, after the collector has been: MB in
RAM, tensors and objects alive, open files and threads. The first rows warm up; from there on all of it should stay.
"""

import argparse
import gc
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import table
from textinv_core.hosts.base import Host, TrainableModel
from textinv_core.images import load_folder
from textinv_core.training.learn import learn
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Step

WORLD = Path(__file__).parents[1] / "textinv_core" / "toyworld"
SIZE = 32  # pixels a side
TITLES = ["runs", "MB", "tensors", "objects", "files", "threads"]


def diffusers_host() -> Callable[[], Host]:
    from textinv_core.hosts.diffusers import PipelineHost, load

    pipe = load(WORLD / "toyworld.safetensors", WORLD).pipe
    return lambda: PipelineHost(pipe)


def comfy_host(folder: Path) -> Callable[[], Host]:
    """As of one graph that is queued again and again: the loaded models stay, the rest is made anew."""
    sys.argv[1:] = ["--cpu"]  # which its modules read when they are imported
    sys.path[:0] = [str(folder), str(Path(__file__).parents[1] / "tests" / "host")]
    os.chdir(folder)
    import comfy.options  # pyright: ignore[reportMissingImports]

    comfy.options.enable_args_parsing()
    import toyworld  # pyright: ignore[reportMissingImports]

    from textinv_core.hosts.comfy import ComfyHost

    with torch.inference_mode():
        model, clip, vae = toyworld.load(WORLD)
    return lambda: ComfyHost(clip.clone(), model.clone(), vae)


def one_run(host: Host, number: int, root: Path) -> None:
    pictures = [picture for picture in load_folder(WORLD, "pictures")][:2]
    top = number // 7 % SIZE if number % 7 == 0 else 0
    cut = [
        type(picture)(picture.pixels[top : top + SIZE, :SIZE], picture.mask[:SIZE, :SIZE], picture.caption, str(n))
        for n, picture in enumerate(pictures)
    ]
    settings = TrainSettings(("[name] [filewords]",), 3, batch_size=2, gradient_accumulation=1, seed=number)
    with closing(learn(host, cut, host.create_embedding("cat", "figure", 1), settings, root)) as events:
        for event in events:
            if isinstance(event, Step) and number % 3 == 0:
                break


def short_of_memory(host: Host) -> None:
    """Let the host's models fail for want of memory at their second prediction, and never again."""
    load, calls = host._load, []

    def loaded(*arguments: Any) -> TrainableModel:
        model = load(*arguments)
        predict = model.predict

        def failing(*arguments: Any) -> Any:
            calls.append(None)
            made = predict(*arguments)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate all of it.")
            return made

        model.predict = failing  # type: ignore[method-assign]
        return model

    host._load = loaded  # type: ignore[method-assign]


def figures(number: int) -> list[str]:
    for _ in range(3):
        gc.collect()
    things = gc.get_objects()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in things)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    counts = tensors, len(things), len(os.listdir("/proc/self/fd")), threading.active_count()
    return [str(number), f"{megabytes:.0f}", *map(str, counts)]


def soak(make: Callable[[], Host], runs: int, every: int) -> list[list[str]]:
    rows = []
    root = Path(tempfile.mkdtemp())
    for number in range(1, runs + 1):
        host = make()
        if number % 5 == 0:
            short_of_memory(host)
        one_run(host, number, root)
        del host
        if number % every == 0 or number == 1:
            shutil.rmtree(root)
            rows.append(figures(number))
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder, to train in it")
    told = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    make = comfy_host(told.comfyui.absolute()) if told.comfyui else diffusers_host()
    with torch.inference_mode(bool(told.comfyui)):  # as graphs run
        print(table(TITLES, soak(make, told.runs, told.every)))


if __name__ == "__main__":
    main()
