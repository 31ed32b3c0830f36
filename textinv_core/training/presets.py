"""Settings to start from, chosen by what learns soonest and best in `benchmarks/RESULTS.md`, "Learning".

Each is laid out like a settings file of the command: what is not in it keeps its default.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "subject": {"template": ["subject"], "vectors": 4, "train": {"batch_size": 4, "learning_rate": "0.002"}},
    "style": {"template": ["style"], "vectors": 4, "train": {"batch_size": 4, "learning_rate": "0.005", "steps": 1000}},
}
