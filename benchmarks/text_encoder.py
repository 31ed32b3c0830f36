"""What a language model costs as a text encoder: a prompt encoded, and back from the conditioning to the vectors.

Run it with ComfyUI's interpreter, in ComfyUI's folder; what follows `--` goes to ComfyUI:

    PYTHONPATH=PATH/TO/textinv python -m benchmarks.text_encoder [--layers 36] [--repeats 5] [-- --cpu]

The encoder has the shape of Qwen3-4B (Z-Image, Flux.2 Klein), or fewer of its 36 layers, and random weights. Prompts
are put into templates that have little before the prompt (Z-Image's own), some (Qwen-Image's), and much (padded to 512
tokens on the left, as Flux.2 dev's are). *plain* encodes all of a prompt in every step; *reused* computes what comes
before the first vector once; *checkpointed* keeps each layer's input alone, and runs it again in the backward pass. The
four take turns; medians of seconds, and what each adds to memory at its peak.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch

from benchmarks import tables
from benchmarks.step_cost import peak_memory

QWEN_IMAGE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PADDED = 512
PROMPT = "a photo of embedding:bench in the snow"
WAYS = {"plain": (False, False), "checkpointed": (False, True), "reused": (True, False), "both": (True, True)}


def load(layers: int) -> Any:
    """A CLIP of so many layers, as ComfyUI's loader for Z-Image makes it."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import z_image

    options = {"qwen3_4b_model_config": {"num_hidden_layers": layers}, "model_name": "qwen3_4b"}
    clip = comfy.sd.CLIP(
        ClipTarget(z_image.ZImageTokenizer, z_image.te()), embedding_directory=[], model_options=options
    )
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            weight.fill_(1) if name.endswith("norm.weight") else weight.normal_(std=0.02)
    return clip


@contextmanager
def ready(clip: Any, reuse: bool, checkpoint: bool) -> Iterator[Callable[[], None]]:
    """A function that encodes the prompt and takes the gradient of all that comes out."""
    from comfy import model_management

    from textinv_core.embedding import Embedding
    from textinv_core.hosts.autograd import lean, ordinary_weights, storages
    from textinv_core.hosts.base import Known
    from textinv_core.hosts.checkpoints import checkpointing
    from textinv_core.hosts.comfy import ComfyHost, lean_modules, recast, set_for_training
    from textinv_core.hosts.comfy_prefix import Prefixes
    from textinv_core.hosts.comfy_text import tokenizer_with
    from textinv_core.hosts.tolerant import Tolerant

    host = ComfyHost(clip)
    [(key, encoder)] = host.encoders.items()
    rows = torch.randn(2, encoder.width, device=clip.patcher.load_device) * 0.02
    model_management.load_models_gpu([clip.patcher])
    with ExitStack() as stack:
        set_for_training(stack)
        stack.enter_context(ordinary_weights(clip.cond_stage_model))
        for module in lean_modules(clip.cond_stage_model):
            stack.enter_context(lean(module, recast))
        tolerant = Tolerant(storages(clip.cond_stage_model))
        if checkpoint:
            stack.enter_context(checkpointing(clip.cond_stage_model, lambda: tolerant))
        if reuse:
            stack.enter_context(Prefixes().reused(encoder.model))
        vectors = rows.requires_grad_()
        tokenizer = tokenizer_with(clip, host.encoders, Known({"bench": Embedding("bench", {key: vectors})}))

        def step() -> None:
            tokens = tokenizer.tokenize_with_weights(PROMPT)
            with tolerant, tolerant.keeping():
                [[encoded, _]] = clip.encode_from_tokens_scheduled(tokens, show_pbar=False)
            torch.autograd.grad(encoded.float().sum(), vectors)

        step()  # what is reused has to be there
        yield step


def rows(clip: Any, template: str, padded: int, repeats: int) -> Iterator[list[str]]:
    """A row of the table for each way, of one template; padded: tokens in all, filled on the left, 0 for none."""
    clip.tokenizer.llama_template = template
    own = clip.tokenizer.qwen3_4b
    own.pad_left, own.min_length = padded > 0, max(1, padded)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, list[int]] = {way: [] for way in WAYS}
    device = clip.patcher.load_device
    for _ in range(1 + repeats):  # the first warms up
        for way, how in WAYS.items():
            gc.collect()
            with ready(clip, *how) as step, peak_memory(device, memory[way]):
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[way].append(time.perf_counter() - started)
    [tokens] = clip.tokenize(PROMPT).values()
    for way in WAYS:
        ratio = median(mine / plain for mine, plain in zip(seconds[way][1:], seconds["plain"][1:], strict=True))
        mebibytes = median(memory[way][1:]) / 2**20
        yield [str(len(tokens[0])), way, f"{median(seconds[way][1:]):.2f}", f"{ratio:.2f}", f"{mebibytes:.0f}"]


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(sys.argv[1:split])

    # ComfyUI reads its own flags from here, as it is imported, if it is asked to.
    sys.argv[1:] = sys.argv[split + 1 :]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy import model_management

    clip = load(given.layers)
    device = model_management.get_torch_device_name(clip.patcher.load_device)
    print(f"torch {torch.__version__}, {device}, {given.layers} layers")
    print(tables.header(["template", "tokens", "way", "seconds", "/ plain", "MiB"]))
    templates = {"Z-Image": ("", 0), "Qwen-Image": (QWEN_IMAGE, 0), "padded": ("", PADDED)}
    own = clip.tokenizer.llama_template
    for name, (template, padded) in templates.items():
        for cells in rows(clip, template or own, padded, given.repeats):
            print(tables.row([name, *cells]), flush=True)


if __name__ == "__main__":
    main()
