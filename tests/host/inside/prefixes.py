"""Whether prompts whose beginnings are encoded once come to what they come to as a whole; prints JSON by family.

prefixes.py FAMILY...: of each, the largest differences of conditionings and gradients between both, as parts of the
largest number, with and without checkpoints, the first time and again; how many beginnings were kept; and whether the
second time has the very same bits.
"""

import json
import logging

import pack
import torch

pack.load_pack()

from small import FAMILIES  # noqa: E402
from textinv.textinv_core.hosts import comfy_prefix  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402

logging.disable(logging.WARNING)
NAME = "mine"
PROMPTS = [
    "a long beginning of several words that come before embedding:mine dog",
    "something else of a length with more words embedding:mine cat and more",
]


def encoded(trainable, start, latent):
    """The conditionings of both prompts, and the gradient of a weighted sum of them."""
    vectors = {key: rows.clone().requires_grad_() for key, rows in start.items()}
    lookup = {NAME: lambda key, occurrence: vectors[key]}
    conditions = trainable.conditions(PROMPTS, [lookup] * len(PROMPTS), [latent] * len(PROMPTS))
    found = [getattr(value, "cond", value) for condition in conditions for value in condition.values()]
    found = [each.float() for each in found if isinstance(each, torch.Tensor) and each.requires_grad]
    generator = torch.Generator().manual_seed(0)
    total = sum((each * torch.randn(each.shape, generator=generator)).sum() for each in found)
    return [each.detach() for each in found], list(torch.autograd.grad(total, list(vectors.values())))


def off(found, expected):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def look_at(family):
    with torch.inference_mode():
        model, clip = family.model(), family.clip()
    host, latent, least = ComfyHost(clip, model), torch.zeros(family.latent), comfy_prefix.LEAST
    differences, kept, same = [], 0, True
    with torch.inference_mode():
        start = host.create_embedding(NAME, "a dog", 2).vectors
        comfy_prefix.LEAST = 10**9
        with host.trainable(latent, 2) as trainable:
            expected, gradient = encoded(trainable, start, latent)
        comfy_prefix.LEAST = least
        for checkpoint in (False, True):
            with host.trainable(latent, 2) as trainable:
                if checkpoint:
                    trainable.checkpoint_activations()
                first, again = (encoded(trainable, start, latent) for _ in range(2))
                kept += sum(len(each._kept) for each in trainable._prefixes.values())
                differences += [off(first[0], expected), off(first[1], gradient)]
                same = same and all(map(torch.equal, [*first[0], *first[1]], [*again[0], *again[1]]))
    return {"off": max(differences), "kept": kept, "same again": same}


print(json.dumps({name: look_at(FAMILIES[name]) for name in pack.ARGS}))
