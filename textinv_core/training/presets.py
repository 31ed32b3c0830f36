"""Settings to start from: none learnt better in `benchmarks/RESULTS.md`, "Learning".

Each is laid out like a settings file of the command: what is not in it keeps its default. `subject` says what the
defaults are.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "subject": {"template": ["subject"], "vectors": 2, "train": {"learning_rate": "0.002", "steps": 500}},
    "style": {"template": ["style"], "vectors": 4, "train": {"learning_rate": "0.002", "steps": 1000}},
}
