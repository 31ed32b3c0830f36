"""Whether the host's loader of embeddings finds the vectors in our files; prints what it does not find.

formats.py FOLDER, which has a file per kind, `<encoders, joined by +>.<suffix>`, of `expected.safetensors`.
"""

import json
from pathlib import Path

import pack
import torch
from comfy.sd1_clip import load_embed
from safetensors.torch import load_file


def main():
    folder = Path(pack.ARGS[0])
    expected = load_file(folder / "expected.safetensors")
    wrong = []
    for path in sorted(folder.glob("*.*")):
        for key in path.stem.split("+") if path.stem != "expected" else ():
            found = load_embed(path.name, str(folder), expected[key].shape[1], key)
            if found is None or not torch.equal(found, expected[key]):
                wrong.append([path.name, key])
    print(json.dumps({"files": len(list(folder.glob("*.*"))) - 1, "wrong": wrong}))


main()
