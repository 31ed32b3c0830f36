"""What other packs hang into a model."""

from typing import Any


def merge_nested_dicts(dict1: dict[Any, Any], dict2: dict[Any, Any]) -> dict[Any, Any]: ...


class WrappersMP:
    OUTER_SAMPLE: str = "outer_sample"
    PREPARE_SAMPLING: str = "prepare_sampling"
    SAMPLER_SAMPLE: str = "sampler_sample"
    PREDICT_NOISE: str = "predict_noise"
    CALC_COND_BATCH: str = "calc_cond_batch"
    DIFFUSION_MODEL: str = "diffusion_model"
