"""What every script in this folder starts with: ComfyUI on the CPU, and the pack as ComfyUI loads it.

Run by the `inside` fixture with ComfyUI's interpreter, in ComfyUI's folder. Import this before anything of ComfyUI's:
its modules read the command line, and look for a GPU, when they are imported. A script's last line of output is the
JSON that the fixture returns: `print(json.dumps(result))`.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

# ComfyUI's parser refuses what it does not know, so the script's own arguments are taken out of its way.
ARGS = [a for a in sys.argv[1:] if a != "--cpu"]
sys.argv[1:] = ["--cpu"]
if "TEXTINV_BASE" in os.environ:  # else what a script saves would land in ComfyUI's own folders
    sys.argv += ["--base-directory", os.environ["TEXTINV_BASE"]]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402


def load_pack():
    """The repository's root as package `textinv`, by path, as `nodes.load_custom_node` does it."""
    root = Path(os.environ["TEXTINV_PACK"])
    spec = importlib.util.spec_from_file_location("textinv", root / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["textinv"] = module
    spec.loader.exec_module(module)
    return module


def load_checkpoint(path):
    """MODEL, CLIP and VAE as `CheckpointLoaderSimple` returns them in a prompt: their weights are inference tensors."""
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(
            str(path), embedding_directory=folder_paths.get_folder_paths("embeddings")
        )[:3]


if __name__ == "__main__":  # what checkpoints are taken for
    models = [load_checkpoint(path)[0].model for path in ARGS]
    found = {
        "pack": load_pack().__name__,
        "prediction": [model.model_type.name for model in models],
        "inference": all(w.is_inference() for model in models for w in model.parameters()),
    }
    print(json.dumps(found))
