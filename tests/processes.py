"""Processes that tests start: with the core, one thread and no GPU, and nothing of a launcher around the tests."""

import os
from pathlib import Path

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torch.distributed.run sets


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    root = str(Path(__file__).absolute().parents[1])
    return {**own, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
