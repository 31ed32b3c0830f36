"""Settings to start from.

Each is laid out like a settings file of the command: what is not in it keeps its default. Of `subject`, which says what
the defaults are, and `style` none learnt better in `benchmarks/RESULTS.md`; `fast` and `fast-style` learnt the same
there in a tenth of the time.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "subject": {"template": ["subject"], "vectors": 2, "train": {"learning_rate": "0.002", "steps": 500}},
    "style": {"template": ["style"], "vectors": 4, "train": {"learning_rate": "0.002", "steps": 1000}},
    # From others' work on real models: directions alone, at the length that words have (Kim et al. 2025, arXiv
    # 2512.13672), and noise levels at which content is decided (Choi et al. 2022, arXiv 2204.00227: a signal-to-noise
    # ratio of 0.01 to 1, which Stable Diffusion's schedule has from timestep 934 to 354). Found in the toy world: rates
    # are halved as steps double, so any number of steps has had large ones first and small ones last.
    "fast": {
        "template": ["subject"],
        "vectors": 2,
        "train": {
            "optimizer": "sphere",
            "learning_rate": "0.4:8, 0.2:16, 0.1:32, 0.05:64, 0.025:128, 0.0125:256, 0.006",
            "steps": 100,
            "gradient_accumulation": 2,
            "min_timestep": 300,
            "max_timestep": 800,
        },
    },
    # At the length of words four vectors were too few for a style, and timesteps up to 800 taught it less than all of
    # the noisier ones.
    "fast-style": {
        "template": ["style"],
        "vectors": 8,
        "train": {
            "optimizer": "sphere",
            "learning_rate": "0.4:16, 0.2:32, 0.1:64, 0.05:128, 0.025:256, 0.0125",
            "steps": 200,
            "gradient_accumulation": 2,
            "min_timestep": 300,
        },
    },
}
