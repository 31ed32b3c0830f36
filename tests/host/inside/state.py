"""All of the host that a training could change. Import `pack` before this."""

import comfy.model_management
import torch


def state(model, clip):
    """All of the host that a training could change, by name."""
    modules = {"model": model.model, "clip": clip.cond_stage_model}
    weights = {
        f"{part}.{name}": (
            id(tensor),
            str(float(tensor.detach().double().sum())),
        )  # as text: some are not set, and may be NaN
        for part, module in modules.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    tokenizers = {
        f"tokenizer.{name}": (id(each), dict(vars(each)))
        for name, each in vars(clip.tokenizer).items()
        if hasattr(each, "__dict__")
    }
    methods = {
        f"{part}.{name}": sorted(vars(each))
        for part, module in modules.items()
        for name, each in module.named_modules()
    }
    management = comfy.model_management
    flags = {"flags": (management.in_training, management.NUM_STREAMS, management.intermediate_device)}
    return {
        **weights,
        **methods,
        **tokenizers,
        **flags,
        "random": torch.get_rng_state().tolist(),
        "options": str(model.model_options),
    }
