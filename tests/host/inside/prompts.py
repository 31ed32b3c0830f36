"""Whether an applied embedding, a copy of it, a saved one and `names_embedding` agree with the host's parser; prints
what does not.

prompts.py CHECKPOINT
"""

import copy
import itertools
import json
import pickle
import random
from pathlib import Path

import pack
import torch

pack.load_pack()

import folder_paths  # noqa: E402
from textinv.textinv_core import save_embedding  # noqa: E402
from textinv.textinv_core.embedding import Embedding  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
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


def copies(clip):
    """Clones of `clip` whose tokenizers have gone through what copies them."""
    for way in (copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))):
        clone = clip.clone()
        clone.tokenizer = way(clip.tokenizer)
        yield clone


def main():
    _, clip, _ = pack.load_checkpoint(pack.ARGS[0])
    host = ComfyHost(clip)
    with torch.inference_mode():
        vectors = {key: torch.randn(3, width) for key, width in host.widths.items()}
        first = next(iter(vectors))
        mark = vectors[first][0].tolist()
        embedding = Embedding(NAME, vectors, 0)
        applied = ComfyHost(host.apply(Embedding("between", vectors, 0))).apply(embedding)
        save_embedding(embedding, f"{folder_paths.get_folder_paths('embeddings')[0]}/{NAME}.safetensors")

        generator = random.Random(0)
        made = ["".join(generator.choices(PIECES, k=generator.randint(1, 8))) for _ in range(1500)]
        rendered = [render(line, NAME, caption) for line, caption in itertools.product(LINES, CAPTIONS)]
        wrong = []
        for prompt in USUAL + made + rendered:
            by_file, by_apply = tokenize(clip, prompt), tokenize(applied, prompt)
            is_named = by_apply is not None and mark in [t for ws in by_apply.values() for w in ws for t, _ in w]
            if by_file != by_apply:
                wrong.append(["file and apply", prompt])
            if is_named != names_embedding(prompt, NAME):
                wrong.append(["names_embedding", prompt])
            if prompt in rendered and not is_named:
                wrong.append(["render", prompt])

        # A name wins over a file of the same name, and the vectors are the file's to the bit.
        other = host.apply(Embedding(NAME, {k: v + 1 for k, v in vectors.items()}, 0))
        if tokenize(other, f"embedding:{NAME}") == tokenize(clip, f"embedding:{NAME}"):
            wrong.append(["apply over file", NAME])
        encoded = [c.encode_from_tokens_scheduled(c.tokenize(f"a embedding:{NAME} cat"))[0] for c in (clip, applied)]
        if not torch.equal(encoded[0][0], encoded[1][0]):
            wrong.append(["conditioning", NAME])

        # What a run says of its file. All is as before: other names are looked for where they were.
        file = Path(folder_paths.get_folder_paths("embeddings")[0], f"{NAME}.safetensors")
        loaded, kept = file.rename(file.with_stem(f"{NAME}-7")), clip.tokenizer
        if host.read_back(embedding, loaded) != 0:
            wrong.append(["reading back", NAME])
        if host.read_back(Embedding(NAME, {k: -v for k, v in vectors.items()}, 0), loaded) < 0.01:
            wrong.append(["reading back another", NAME])
        (damaged := file.with_stem("damaged")).write_bytes(loaded.read_bytes()[:-1])
        if host.read_back(embedding, damaged) < 0.01:
            wrong.append(["reading back what is damaged", NAME])
        loaded.rename(file)
        if clip.tokenizer is not kept or tokenize(clip, USUAL[0]) != tokenize(applied, USUAL[0]):
            wrong.append(["the CLIP after reading back", NAME])

        # As the host's own CLIP, an applied one can be copied and pickled, and means the same.
        for number, (own, applied_copy) in enumerate(zip(copies(clip), copies(applied), strict=True)):
            for prompt in USUAL:
                if tokenize(own, prompt) != tokenize(clip, prompt):
                    wrong.append([f"the host's own copy {number}", prompt])
                if tokenize(applied_copy, prompt) != tokenize(applied, prompt):
                    wrong.append([f"copy {number}", prompt])
            copied = applied_copy.encode_from_tokens_scheduled(applied_copy.tokenize(f"a embedding:{NAME} cat"))[0]
            if not torch.equal(copied[0], encoded[1][0]):
                wrong.append([f"conditioning of copy {number}", NAME])
    print(json.dumps(wrong))


main()
