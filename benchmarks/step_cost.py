"""What a training step costs, beside a bare forward and backward of the same diffusion model.

Run it with ComfyUI's interpreter, in ComfyUI's folder; what follows `--` goes to ComfyUI:

    PYTHONPATH=PATH/TO/textinv python -m benchmarks.step_cost [--models sd15 sdxl] [--batches 1 4] [-- --cpu]

Bare is the least that any trainer must do: ComfyUI's diffusion model on the same noisy latents, forward, and backward
to the conditioning alone, which is given. Bare with text has ComfyUI's text encoders before it, prompts one by one, and
goes back to the vectors, by the plainest means there are (autograd keeps what it likes, and
`allow_mutation_on_saved_tensors`); still no loss and no optimizer. Ours is all of a step, prompts to AdamW. The models
have the real shapes and random weights. The three take turns; medians, and the medians of the ratios of neighbours.
Memory is what a step adds at its peak to what was there before it.

With `--waits` it counts instead what passes between program and device in a step of ours, on the simulated device of
`tests/simgpu.py`: reads, for which the program waits until the device has caught up, and uploads, with those that it
waits for too. Times mean nothing there.
"""

import argparse
import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables

Step = Callable[[], object]

# ComfyUI's name for the family, and its UNet's shape.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": (
        "SD15",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "num_heads": 8,
            "use_spatial_transformer": True,
            "context_dim": 768,
            "legacy": False,
            "adm_in_channels": None,
            "use_linear_in_transformer": False,
        },
    ),
    "sdxl": (
        "SDXL",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "num_head_channels": 64,
            "use_spatial_transformer": True,
            "context_dim": 2048,
            "legacy": False,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
            "use_linear_in_transformer": True,
        },
    ),
}


def load(name: str, shallow: bool = False) -> tuple[Any, Any]:
    """A MODEL and a CLIP of a family's real shape, with random weights, as ComfyUI would hold them on this machine.

    shallow: with one transformer block wherever there are several.
    """
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    from comfy import model_management

    family, shape = SHAPES[name]
    if shallow:
        depths = {key: [min(1, n) for n in shape[key]] for key in ("transformer_depth", "transformer_depth_output")}
        shape = {**shape, **depths, "transformer_depth_middle": 1}
    config_class = getattr(comfy.supported_models, family)
    device = model_management.get_torch_device()
    offload = model_management.unet_offload_device()
    dtype = model_management.unet_dtype(device=device, supported_dtypes=config_class.supported_inference_dtypes)
    config = config_class({**shape, "dtype": dtype})
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, device=offload)
    clip = comfy.sd.CLIP(config.clip_target({}), embedding_directory=[])
    with torch.no_grad():
        for weight in [*model.parameters(), *clip.cond_stage_model.parameters()]:
            weight.normal_(std=0.02)
    return comfy.model_patcher.CoreModelPatcher(model, device, offload), clip


@contextmanager
def peak_memory(device: torch.device, result: list[int]) -> Iterator[None]:
    """Adds to `result` the bytes the block has on top of what there was before it, at most."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        torch.cuda.synchronize()
        result.append(torch.cuda.max_memory_allocated() - before)
        return
    import psutil  # ComfyUI brings it

    with suppress(OSError, AttributeError):  # so that memory freed before is not taken for memory there is
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, done, seen = psutil.Process(), threading.Event(), []
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.005):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    result.append(max(seen, default=before) - before)


def contenders(
    name: str, model: Any, clip: Any, latents: Tensor
) -> dict[str, Callable[[], AbstractContextManager[Step]]]:
    """Name -> what readies the models and gives a function that takes a step with the batch of latents [B, 4, h, w]."""
    from comfy import model_management

    from textinv_core.embedding import Embedding
    from textinv_core.hosts.autograd import ordinary_weights
    from textinv_core.hosts.comfy import ComfyHost
    from textinv_core.hosts.comfy_text import tokenizer_with
    from textinv_core.training.examples import Example
    from textinv_core.training.learnable import LearnableEmbedding
    from textinv_core.training.settings import TrainSettings
    from textinv_core.training.training import Training

    host = ComfyHost(clip, model)
    unet, device, batch_size = model.model.diffusion_model, model.load_device, len(latents)
    vectors = {key: torch.randn(4, width) * 0.02 for key, width in host.widths.items()}
    # Conditioning of the right shapes, as ours has it: 77 tokens, and the pooled output behind SDXL's sizes.
    shape = SHAPES[name][1]
    dtype = model.model.get_dtype_inference()
    given = {"context": torch.randn(batch_size, 77, shape["context_dim"], device=device, dtype=dtype)}
    if shape["adm_in_channels"]:
        given["y"] = torch.randn(batch_size, shape["adm_in_channels"], device=device, dtype=dtype)
    noisy = latents.to(device, dtype)

    @contextmanager
    def bare():
        def step():
            wanted = {key: value.detach().requires_grad_() for key, value in given.items()}
            out = unet(noisy, torch.full((batch_size,), 400.0, device=device), transformer_options={}, **wanted)
            torch.autograd.grad(out.float().sum(), list(wanted.values()))

        model_management.load_models_gpu([model])
        with ordinary_weights(unet):
            yield step

    @contextmanager
    def bare_with_text():
        def step():
            rows = {key: value.to(device, copy=True).requires_grad_() for key, value in vectors.items()}
            tokenizer = tokenizer_with(clip, host.encoders, lambda key, _: rows[key])
            tokens = tokenizer.tokenize_with_weights("a photo of embedding:bench")
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                encoded = [clip.encode_from_tokens(tokens, return_pooled=True) for _ in range(batch_size)]
                wanted = {"context": torch.cat([context for context, _ in encoded]).to(device, dtype)}
                if "y" in given:
                    pooled = torch.cat([pooled for _, pooled in encoded]).to(device, dtype)
                    wanted["y"] = torch.cat([pooled, given["y"][:, pooled.shape[1] :]], dim=1)
                out = unet(noisy, torch.full((batch_size,), 400.0, device=device), transformer_options={}, **wanted)
                torch.autograd.grad(out.float().sum(), list(rows.values()))

        model_management.load_models_gpu([model, clip.patcher])
        with ordinary_weights(unet, clip.cond_stage_model):
            yield step

    @contextmanager
    def ours():
        settings = TrainSettings(
            ("a photo of [name]",), 10_000, batch_size=batch_size, gradient_accumulation=1, gradient_checkpointing="off"
        )
        examples = [Example(latent) for latent in latents]
        with host.trainable(latents[0], batch_size) as trainable:
            training = Training(trainable, examples, LearnableEmbedding(Embedding("bench", vectors, 0)), settings)
            yield training.advance

    return {"bare": bare, "bare with text": bare_with_text, "ours": ours}


def measure(
    kinds: dict[str, Callable[[], AbstractContextManager[Step]]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Kind -> seconds, and bytes at the peak, of each of its steps. The kinds take turns; a first round warms up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, list[int]] = {kind: [] for kind in kinds}
    for _ in range(1 + repeats):
        for kind, ready in kinds.items():
            gc.collect()
            with ready() as step, peak_memory(device, memory[kind]):
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[kind].append(time.perf_counter() - started)
    return {kind: each[1:] for kind, each in seconds.items()}, {kind: each[1:] for kind, each in memory.items()}


TITLES = ["model", "batch", "bare s", "+ text s", "ours s", "/ bare", "/ + text", "bare MiB", "+ text MiB", "ours MiB"]


def cells(name: str, batch_size: int, pixels: int, repeats: int, with_text: bool) -> list[str]:
    """A row of the table."""
    model, clip = load(name)
    kinds = contenders(name, model, clip, torch.randn(batch_size, 4, pixels // 8, pixels // 8))
    if not with_text:
        del kinds["bare with text"]
    seconds, memory = measure(kinds, repeats, model.load_device)
    weights = [*model.model.diffusion_model.parameters(), *clip.cond_stage_model.parameters()]

    def shown(values: dict[str, list[Any]], kind: str, form: str) -> str:
        return format(median(values[kind]), form) if kind in values else ""

    columns = ("bare", "bare with text", "ours")
    ratios = {
        kind: [ours / other for ours, other in zip(seconds["ours"], others, strict=True)]
        for kind, others in seconds.items()
    }
    mebibytes = {kind: [each / 2**20 for each in taken] for kind, taken in memory.items()}
    return [
        name,
        str(batch_size),
        *(shown(seconds, kind, ".2f") for kind in columns),
        *(shown(ratios, kind, ".3f") for kind in columns[:2]),
        *(shown(mebibytes, kind, ".0f") for kind in columns),
        f"{sum(p.numel() * p.element_size() for p in weights) / 2**20:.0f}",
    ]


def waits(name: str, batch_size: int, pixels: int) -> list[str]:
    """A row of the table of waits: of a step after the first, which fills caches.

    The model is a shallow one: how deep it is changes no count, and the simulated device's memory is that of the CPU,
    where weights then are twice. Where they do not fit, ComfyUI uploads them as they are used.
    """
    import simgpu

    model, clip = load(name, shallow=True)
    ready = contenders(name, model, clip, torch.randn(batch_size, 4, pixels // 8, pixels // 8))["ours"]
    with ready() as step:
        step()
        with simgpu.counting() as counted:
            step()
    counts = len(counted.reads), len(counted.uploads), len(counted.blocking_uploads)
    return [name, str(batch_size), *map(str, counts)]


def simulate() -> None:
    """Let ComfyUI take the simulated device for its GPU, and ours for one of those that need not wait for uploads."""
    # By path: in ComfyUI's folder, `tests` is ComfyUI's.
    sys.path.insert(0, str(Path(__file__).absolute().parents[1] / "tests"))
    import simgpu

    from textinv_core import devices

    simgpu.lend_to_comfyui()
    devices.NON_BLOCKING = {"simgpu"}


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-text", action="store_true", help="leave out bare with text, which takes the most memory")
    parser.add_argument("--waits", action="store_true", help="count what waits for the device, on a simulated one")
    given = parser.parse_args(sys.argv[1:split])

    # ComfyUI reads its own flags from here, as it is imported, if it is asked to.
    sys.argv[1:] = sys.argv[split + 1 :]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy import model_management

    if given.waits:
        simulate()
        print(tables.header(["model", "batch", "reads", "uploads", "of these waited for"]))
        for name in given.models:
            for batch_size in given.batches:
                print(tables.row(waits(name, batch_size, given.pixels)), flush=True)
        return
    gpu = model_management.get_torch_device_name(model_management.get_torch_device())
    print(f"torch {torch.__version__}, {gpu}, {given.pixels} x {given.pixels} pixels")
    print(tables.header([*TITLES, "weights"]))
    for name in given.models:
        for batch_size in given.batches:
            print(tables.row(cells(name, batch_size, given.pixels, given.repeats, not given.no_text)), flush=True)


if __name__ == "__main__":
    main()
