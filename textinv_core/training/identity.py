"""What makes two trainings one run: all that decides what is learnt by a step, told apart by a digest."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..embedding import Embedding
from ..hosts.base import Host
from ..picture import Picture
from ..prompts import embeddings_named
from ..shuffle import ShuffleConfig
from .settings import TrainSettings, deciding

# Facts that are digests, and what they are called in a sentence.
DIGESTS = {
    "embedding": "the embedding to begin with",
    "pictures": "the pictures",
    "captions": "the captions",
    "masks": "the masks",
    "model": "the model, what is patched on it, or its precision or guidance",
    "clip": "the text encoders, or what is patched on them",
    "vae": "the VAE",
    "embeddings": "what other embeddings the prompts name, or these files,",
}
# What runs do not say that are from before there was a choice; they are gone on with.
EARLIER = {"optimizer": "adamw"}


def facts(
    host: Host, pictures: Sequence[Picture], embedding: Embedding, settings: TrainSettings, shuffle: ShuffleConfig
) -> dict[str, Any]:
    """What decides the result, of the kinds JSON knows.

    pictures: as they are trained on, cropped. embedding: as it is before, with its step.
    """
    vectors = [(key, rows) for key, rows in sorted(embedding.vectors.items())]
    texts = {*settings.template, *(picture.caption for picture in pictures)}
    named = {name for text in texts for name in embeddings_named(text)} - {"", embedding.name}
    others = {"embeddings": _digest((f"{name} {host.found(name)}", None) for name in sorted(named))} if named else {}
    about = {
        **deciding(settings),
        "shuffle": asdict(shuffle),
        "digests": {
            "embedding": _digest([(f"step {embedding.step or 0}", None), *vectors]),
            "pictures": _digest(("", picture.pixels) for picture in pictures),
            "captions": _digest((picture.caption, None) for picture in pictures),
            "masks": _digest(("", picture.mask) for picture in pictures),
            **host.identities(),
            **others,
        },
    }
    return json.loads(json.dumps(about))  # tuples become lists, as they do in a file


def identity(about: Mapping[str, Any]) -> str:
    """32 hex digits that tell one run from another. about: its `facts`."""
    said = {name: value for name, value in about.items() if (name, value) not in EARLIER.items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def differences(about: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What other `facts` have otherwise, each in words: `learning_rate was 0.002 and is now 0.005`."""
    found, other = [], {**EARLIER, **other}
    for name, value in about.items():
        before = other.get(name)
        if name == "digests":
            digests = before if isinstance(before, dict) else {}
            found += [f"{DIGESTS[each]} changed" for each in value if value[each] != digests.get(each)]
        elif isinstance(value, dict) and isinstance(before, dict):
            found += [
                f"{name} {key} was {before.get(key)} and is now {value[key]}"
                for key in value
                if value[key] != before.get(key)
            ]
        elif value != before:
            found.append(f"{name} was {_short(before)} and is now {_short(value)}")
    return found


def _short(value: Any) -> str:
    text = f"{len(value)} lines" if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(parts: Iterable[tuple[str, Tensor | None]]) -> str:
    digest = hashlib.sha256()
    for text, tensor in parts:
        digest.update(json.dumps([text, None if tensor is None else list(tensor.shape)]).encode())
        if tensor is not None:
            digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]
