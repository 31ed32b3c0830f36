"""What a training step costs, beside a bare forward and backward of the same diffusion model.

Run it with ComfyUI's interpreter, in ComfyUI's folder; what follows `--` goes to ComfyUI:

    python PATH/TO/textinv/benchmarks/step_cost.py [--models sd15 sdxl] [--batches 1 4] [--pixels 512] [-- --cpu]

Bare is the least that any trainer must do: ComfyUI's diffusion model on the same noisy latents, forward, and backward
to the conditioning alone, which is given. Bare with text has ComfyUI's text encoders before it, prompts one by one, and
goes back to the vectors, by the plainest means there are (autograd keeps what it likes, and
`allow_mutation_on_saved_tensors`); still no loss and no optimizer. Ours is all of a step, prompts to AdamW. The models
have the real shapes and random weights. The three take turns; medians, and the medians of the ratios of neighbours.
Memory is what a step adds at its peak to what was there before it.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
parser = argparse.ArgumentParser()
parser.add_argument("--models", nargs="+", choices=["sd15", "sdxl"], default=["sd15", "sdxl"])
parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
parser.add_argument("--pixels", type=int, default=512)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--no-text", action="store_true", help="leave out bare with text, which takes the most memory")
asked = parser.parse_args(sys.argv[1:split])
sys.argv[1:] = sys.argv[split + 1 :]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402

core = Path(__file__).absolute().parents[1] / "textinv_core"
spec = spec_from_file_location("textinv_core", core / "__init__.py", submodule_search_locations=[str(core)])
assert spec and spec.loader
sys.modules["textinv_core"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["textinv_core"])

from textinv_core.dataset import Example  # noqa: E402
from textinv_core.embedding import Embedding  # noqa: E402
from textinv_core.hosts import comfy as host  # noqa: E402
from textinv_core.hosts.weights import ordinary_weights  # noqa: E402
from textinv_core.training.loop import train  # noqa: E402
from textinv_core.training.settings import TrainSettings  # noqa: E402

SHAPES = {
    "sd15": (
        comfy.supported_models.SD15,
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
        comfy.supported_models.SDXL,
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


def load(name):
    """A MODEL and a CLIP of a family's real shape, with random weights, as ComfyUI would hold them on this machine."""
    config_class, shape = SHAPES[name]
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device=device, supported_dtypes=config_class.supported_inference_dtypes)
    config = config_class({**shape, "dtype": dtype})
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, device=offload)
    clip = comfy.sd.CLIP(config.clip_target({}), embedding_directory=[])
    with torch.no_grad():
        for weight in [*model.parameters(), *clip.cond_stage_model.parameters()]:
            weight.normal_(std=0.02)
    return comfy.model_patcher.CoreModelPatcher(model, device, offload), clip


@contextmanager
def peak_memory(device, result):
    """Adds to `result` the bytes the block has on top of what there was before it, at most."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        torch.cuda.synchronize()
        result.append(torch.cuda.max_memory_allocated() - before)
        return
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


def measure(name, batch_size):
    model, clip = load(name)
    unet, device = model.model.diffusion_model, model.load_device
    latents = torch.randn(batch_size, 4, asked.pixels // 8, asked.pixels // 8)
    vectors = {key: torch.randn(4, width) * 0.02 for key, width in host.widths(clip).items()}
    examples = [Example(latent) for latent in latents]
    settings = TrainSettings(
        ("a photo of [name]",), 10_000, batch_size=batch_size, gradient_accumulation=1, gradient_checkpointing="off"
    )
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

        comfy.model_management.load_models_gpu([model])
        with ordinary_weights(unet):
            yield step

    @contextmanager
    def bare_with_text():
        def step():
            rows = {key: value.to(device, copy=True).requires_grad_() for key, value in vectors.items()}
            tokenizer = host.tokenizer_with(clip, "bench", lambda key, _: rows[key])
            tokens = tokenizer.tokenize_with_weights("a photo of embedding:bench")
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                encoded = [clip.encode_from_tokens(tokens, return_pooled=True) for _ in range(batch_size)]
                wanted = {"context": torch.cat([context for context, _ in encoded]).to(device, dtype)}
                if "y" in given:
                    pooled = torch.cat([pooled for _, pooled in encoded]).to(device, dtype)
                    wanted["y"] = torch.cat([pooled, given["y"][:, pooled.shape[1] :]], dim=1)
                out = unet(noisy, torch.full((batch_size,), 400.0, device=device), transformer_options={}, **wanted)
                torch.autograd.grad(out.float().sum(), list(rows.values()))

        comfy.model_management.load_models_gpu([model, clip.patcher])
        with ordinary_weights(unet, clip.cond_stage_model):
            yield step

    @contextmanager
    def ours():
        with host.trainable(model, clip, latents[0], batch_size) as trainable:
            steps = train(trainable, examples, Embedding("bench", vectors, 0), settings)
            yield lambda: next(steps)

    kinds = {"bare": bare, "bare with text": bare_with_text, "ours": ours}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, list[int]] = {kind: [] for kind in kinds}
    if asked.no_text:
        del kinds["bare with text"]
    for repeat in range(-1, asked.repeats):  # the first round warms up
        for kind, ready in kinds.items():
            taken: list[int] = []
            gc.collect()
            with ready() as step, peak_memory(device, taken):
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                elapsed = time.perf_counter() - started
            if repeat >= 0:
                seconds[kind].append(elapsed)
                memory[kind] += taken
    columns = [f"{statistics.median(of):.2f}" if of else "" for of in seconds.values()]
    for kind in ("bare", "bare with text"):
        ratios = [ours / other for ours, other in zip(seconds["ours"], seconds[kind], strict=False)]
        columns.append(f"{statistics.median(ratios):.3f}" if ratios else "")
    columns += [f"{statistics.median(of) / 2**20:.0f}" if of else "" for of in memory.values()]
    weights = sum(p.numel() * p.element_size() for p in [*unet.parameters(), *clip.cond_stage_model.parameters()])
    print(" | ".join(["", name, str(batch_size), *columns, f"{weights / 2**20:.0f}", ""]).strip(), flush=True)


gpu = comfy.model_management.get_torch_device_name(comfy.model_management.get_torch_device())
print(f"torch {torch.__version__}, {gpu}, {asked.pixels} x {asked.pixels} pixels")
print("| model | batch | bare s | + text s | ours s | / bare | / + text | bare MiB | + text MiB | ours MiB | weights |")
print("|---|---|---|---|---|---|---|---|---|---|---|")
for each in asked.models:
    for size in asked.batches:
        measure(each, size)
