"""Whether an applied embedding, a saved one and `names_embedding` agree with the host's parser; prints what does not.

prompts.py CHECKPOINT
"""

import itertools
import json
import random

import pack
import torch

pack.load_pack()

import folder_paths  # noqa: E402
from textinv.textinv_core import save_embedding  # noqa: E402
from textinv.textinv_core.embedding import Embedding  # noqa: E402
from textinv.textinv_core.hosts import comfy as host  # noqa: E402
from textinv.textinv_core.prompts import names_embedding, render  # noqa: E402

NAME = "my-dog_2"
USUAL = [
    f"a embedding:{NAME} cat",
    f"embedding:{NAME}",
    f"embedding:{NAME}, cat",
    f"(embedding:{NAME}:1.3) cat",
    f"(embedding:{NAME}) and (embedding:{NAME}:0.5), embedding:{NAME}",
    f"embedding: {NAME} cat",
    f"embedding:{NAME},cat",
    f"a,embedding:{NAME}",
    f"embedding:{NAME}. cat",
    f"embedding:{NAME}<x> cat",
    f"embedding:{NAME}[x]  two  spaces",
    f"embedding:,{NAME},, cat",
    f"embedding:{NAME}\ncat",
    f"((embedding:{NAME}:1.2) on grass:0.8)",
    f"\\(embedding:{NAME}\\)",
    "embedding:other and text",
    f"embedding:{NAME} " * 30,
]
PIECES = [f"embedding:{NAME}", "embedding:other", "cat", " ", " ", ",", ".", "(", ")", ":1.2", "<", "[", "\n", "\\("]
LINES = [
    "[name]",
    "a [name].",
    "([name]:1.2)",
    "x,[name]",
    "[name]'s [filewords]",
    "<[name]>",
    "[[name]]",
    "[name][name]",
]
CAPTIONS = ["a cat", "the [name], running", "", "(red:1.2) hat"]


def ids(tokens):
    """Tokens with vectors as lists, so that they compare."""
    return {
        key: [[(t.tolist() if torch.is_tensor(t) else t, w) for t, w in window] for window in windows]
        for key, windows in tokens.items()
    }


def tokenize(clip, prompt):
    try:
        return ids(clip.tokenize(prompt))
    except IndexError:  # the host's, for `embedding:` without a name
        return None


def main():
    _, clip, _ = pack.load_checkpoint(pack.ARGS[0])
    with torch.inference_mode():
        vectors = {key: torch.randn(3, width) for key, width in host.widths(clip).items()}
        first = next(iter(vectors))
        mark = vectors[first][0].tolist()
        embedding = Embedding(NAME, vectors, 0)
        applied = host.apply_embedding(clip, Embedding("between", vectors, 0))
        applied = host.apply_embedding(applied, embedding)
        save_embedding(embedding, f"{folder_paths.get_folder_paths('embeddings')[0]}/{NAME}.safetensors")

        generator = random.Random(0)
        made = ["".join(generator.choices(PIECES, k=generator.randint(1, 8))) for _ in range(1500)]
        rendered = [render(line, NAME, caption) for line, caption in itertools.product(LINES, CAPTIONS)]
        wrong = []
        for prompt in USUAL + made + rendered:
            by_file, by_apply = tokenize(clip, prompt), tokenize(applied, prompt)
            found = by_apply is not None and mark in [t for windows in by_apply.values() for w in windows for t, _ in w]
            if by_file != by_apply:
                wrong.append(["file and apply", prompt])
            if found != names_embedding(prompt, NAME):
                wrong.append(["names_embedding", prompt])
            if prompt in rendered and not found:
                wrong.append(["render", prompt])

        # A name wins over a file of the same name, and the vectors are the file's to the bit.
        other = host.apply_embedding(clip, Embedding(NAME, {k: v + 1 for k, v in vectors.items()}, 0))
        if tokenize(other, f"embedding:{NAME}") == tokenize(clip, f"embedding:{NAME}"):
            wrong.append(["apply over file", NAME])
        encoded = [c.encode_from_tokens_scheduled(c.tokenize(f"a embedding:{NAME} cat"))[0] for c in (clip, applied)]
        if not torch.equal(encoded[0][0], encoded[1][0]):
            wrong.append(["conditioning", NAME])
    print(json.dumps(wrong))


main()
