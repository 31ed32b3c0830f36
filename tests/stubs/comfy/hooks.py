"""What changes a model for some prompts, or for a while."""


class HookKeyframe:
    strength: float
    start_percent: float
    guarantee_steps: int


class HookKeyframeGroup:
    keyframes: list[HookKeyframe]


class WeightHook:
    _strength_model: float
