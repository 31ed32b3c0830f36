"""The toy world's model as it is shipped, and pictures drawn with it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.toyworld import world
from textinv_core.embedding import Embedding
from textinv_core.hosts import diffusers
from textinv_core.hosts.base import Sampling
from textinv_core.hosts.diffusers import PipelineHost

FOLDER = Path(__file__).absolute().parents[2] / "textinv_core" / "toyworld"
GUIDANCE = 4.0


def load(folder: Path = FOLDER) -> PipelineHost:
    """The model of a folder with toyworld.safetensors and configurations."""
    return diffusers.load(folder / "toyworld.safetensors", config=folder)


def generate(
    host: PipelineHost,
    prompt: str | Sequence[str],
    seeds: Sequence[int],
    embeddings: Sequence[Embedding] = (),
    steps: int = 20,
) -> Tensor:
    """Pictures float32 [len(seeds), world.SIZE, world.SIZE, 3] in 0..1. prompt: for all of them, or one each."""
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else prompt
    shape = host.latent_shape(world.SIZE, world.SIZE)
    return host.sample(prompts, seeds, shape, Sampling(steps, GUIDANCE), embeddings)
