"""Which models are where, and whether the person wants to stop."""

from collections.abc import Sequence
from typing import Any

in_training: bool = False
NUM_STREAMS: int = 0


class InterruptProcessingException(BaseException): ...


def load_models_gpu(models: Sequence[Any], memory_required: float = 0) -> None: ...


def unload_model_and_clones(model: Any) -> None: ...


def soft_empty_cache() -> None: ...


def intermediate_device() -> Any: ...


def intermediate_dtype() -> Any: ...


def throw_exception_if_processing_interrupted() -> None: ...
