"""What the program was started with."""

from typing import Any

args: Any = type("Namespace", (), {"disable_metadata": False})()
