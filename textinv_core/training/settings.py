"""What a training is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one training. Raises ValueError, naming the value, for one out of range."""

    template: tuple[str, ...]
    """Lines with `[name]` and perhaps `[filewords]`; one is drawn anew for each sample."""

    steps: int = 500
    """Train until the embedding has had this many optimizer steps, those of earlier trainings included."""

    learning_rate: str = "0.002"
    """One rate, or rates with the step each lasts to, as in `0.005:100, 1e-3:1000, 1e-5` (A1111's grammar, see
    `schedule.LearningRateSchedule`)."""

    batch_size: int = 1
    """Pictures in memory at once, at least 1. Where there is room, larger batches with fewer of them a step learn as
    much in less time."""

    gradient_accumulation: int = 4
    """Batches an optimizer step, at least 1, for steadier gradients: it learns from so many times `batch_size` pictures
    at once."""

    seed: int = 0
    """Decides noise, timesteps, order of pictures, template lines and vector orders, each on its own; 0 to 2^64 - 1."""

    gradient_clipping: str = "off"
    """`norm` scales all gradients of a step down to `clip_at` together, `value` cuts each one off there."""

    clip_at: float = 0.1
    """The limit for gradient clipping, above 0; A1111's default."""

    min_timestep: int = 0
    """Train on noise levels from here on, in thousandths: 0 is (almost) no noise."""

    max_timestep: int = 1000
    """... up to here (not included): 1000 is (almost) only noise. Low ones carry detail, high ones layout."""

    loss_weighting: str = "none"
    """`min_snr` evens out the pull of the noise levels (Hang et al. 2023, gamma 5)."""

    gradient_checkpointing: str = "auto"
    """`on` halves or better the memory for activations and takes about half as long again; `auto` turns it on when
    a step runs out of memory."""

    save_every: int = 100
    """Keep a copy of the embedding every so many steps; 0 for only at the end."""

    def __post_init__(self):
        checks = {
            "template": bool(self.template),
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "gradient_accumulation": self.gradient_accumulation >= 1,
            "seed": 0 <= self.seed < 2**64,
            "gradient_clipping": self.gradient_clipping in ("off", "norm", "value"),
            "clip_at": self.clip_at > 0,
            "min_timestep": 0 <= self.min_timestep < self.max_timestep,
            "max_timestep": self.max_timestep <= 1000,
            "loss_weighting": self.loss_weighting in ("none", "min_snr"),
            "gradient_checkpointing": self.gradient_checkpointing in ("auto", "on", "off"),
            "save_every": self.save_every >= 0,
        }
        for name, good in checks.items():
            if not good:
                raise ValueError(f"The training cannot start: {name} cannot be {getattr(self, name)!r}.")
