"""Runs on the host killed and gone on with; see tests/training/killed.py, which this is for ComfyUI's own objects.

killed.py WORLD FIRST RUNS KILLS: the toy world's folder, and the numbers as there.
"""

import json
import os
import sys
from pathlib import Path

import pack
import torch

torch.set_num_threads(1)  # before anything is computed: threads do not come along into forked processes
the_host_s = sys.path[:]  # which has `tests` and `nodes` of its own
sys.path[:] = [os.environ["TEXTINV_PACK"], *(path for path in the_host_s if path not in ("", os.getcwd()))]

import tests.training.killed as killed  # noqa: E402
from textinv_core.hosts.comfy import ComfyHost  # noqa: E402

sys.path[:] = [str(Path(__file__).parents[1]), *the_host_s]

import toyworld  # noqa: E402

world, *numbers = pack.ARGS
with torch.inference_mode():
    model, clip, vae = toyworld.load(Path(world))
    results = killed.main("host", ComfyHost(clip, model, vae), *map(int, numbers))
print(json.dumps(results))
