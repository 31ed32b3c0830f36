"""What a training is told."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from typing_extensions import Doc

from ..errors import SettingError, UserError, check_choice

OPTIMIZERS = ("adamw", "sphere")
GRADIENT_CLIPPING = ("off", "norm", "value")
LOSS_WEIGHTING = ("none", "min_snr")
GRADIENT_CHECKPOINTING = ("auto", "on", "off")
RESUME = ("auto", "fresh", "required")
EARLY_STOP = ("off", "patience", "dvar")
# What changes nothing that is learnt by a step.
UNDECIDING = (
    "steps",
    "save_every",
    "keep",
    "gradient_checkpointing",
    "resume",
    "evaluate_every",
    "early_stop",
    "patience",
)
# The least and the most of each number that has both.
RANGES = {
    "steps": (1, 1_000_000),
    "batch_size": (1, 1024),
    "gradient_accumulation": (1, 1024),
    "seed": (0, 2**64 - 1),
    "min_timestep": (0, 999),
    "max_timestep": (1, 1000),
    "save_every": (0, 1_000_000),
    "evaluate_every": (-1, 1_000_000),
    "held_out": (0, 1_000_000),
    "patience": (1, 1_000_000),
    "keep": (0, 1_000_000),
}


@dataclass(frozen=True)
class TrainSettings:
    """The settings of one training.

    learning_rate: in A1111's grammar, see `schedule.LearningRateSchedule`. Whole numbers are as `RANGES` says, with
    min_timestep below max_timestep.

    Raises UserError, naming the setting, the value and what it can be, for one out of range.
    """

    template: Annotated[
        tuple[str, ...], Doc("Lines with [name] and perhaps [filewords]; one is drawn anew for each sample.")
    ]
    steps: Annotated[
        int, Doc("Train until the embedding has had this many optimizer steps, those of earlier trainings included.")
    ] = 500
    learning_rate: Annotated[
        str,
        Doc(
            "One rate, or rates with the step each one lasts to: 0.005:100, 1e-3:1000, 1e-5. Where the last one has a "
            "step too, training ends there. With optimizer sphere it is the angle of a step in radians: "
            "0.4:8, 0.2:16, 0.1:32, 0.05:64, 0.025."
        ),
    ] = "0.002"
    optimizer: Annotated[
        str,
        Doc(
            "adamw moves vectors freely. sphere only turns them, by as much as the learning rate says, so that they "
            "stay as long as the words they began as (after Directional Textual Inversion, Kim et al. 2025); with "
            "angles that fall it learns in far fewer steps."
        ),
    ] = "adamw"
    batch_size: Annotated[
        int,
        Doc(
            "Pictures in memory at once. Where there is room, 4 with gradient_accumulation 1 learns as much in less "
            "time."
        ),
    ] = 1
    gradient_accumulation: Annotated[
        int, Doc("Batches an optimizer step takes in one after another. More pictures a step learn more steadily.")
    ] = 4
    seed: Annotated[
        int,
        Doc(
            "Decides noise, timesteps, order of pictures, template lines and vector orders, each on its own: same "
            "seed, same inputs, same embedding."
        ),
    ] = 0
    gradient_clipping: Annotated[
        str,
        Doc(
            "Limits large gradients: norm scales all of a step down to clip_at together, value cuts each one off there."
        ),
    ] = "off"
    clip_at: Annotated[float, Doc("The limit for gradient clipping, above 0; the default is A1111's.")] = 0.1
    min_timestep: Annotated[
        int,
        Doc(
            "Learn only from noise levels from here on, in thousandths: 0 is almost no noise. Low levels carry detail."
        ),
    ] = 0
    max_timestep: Annotated[
        int,
        Doc(
            "Learn only from noise levels below this many thousandths: 1000 is almost only noise. High levels carry "
            "layout."
        ),
    ] = 1000
    loss_weighting: Annotated[
        str, Doc("min_snr evens out how much each noise level pulls (Hang et al. 2023, gamma 5).")
    ] = "none"
    gradient_checkpointing: Annotated[
        str,
        Doc(
            "Half the memory for activations, or less, for about half as much time again. auto turns it on when memory "
            "runs out. What is still too much is computed in smaller batches."
        ),
    ] = "auto"
    save_every: Annotated[
        int, Doc("Keep a copy of the embedding in the run's folder every so many steps; 0 for only the last one.")
    ] = 100
    keep: Annotated[
        int,
        Doc(
            "Of the copies made every save_every steps keep only the newest so many; 0 keeps all. The best one and the "
            "last one always stay."
        ),
    ] = 0
    resume: Annotated[
        str,
        Doc(
            "auto goes on with a run of the same pictures, model, embedding and settings where it stands, and takes "
            "its result when it has ended; fresh begins anew; required ends with an error where there is none to go "
            "on with."
        ),
    ] = "auto"
    evaluate_every: Annotated[
        int,
        Doc(
            "Take the fixed loss every so many steps, before the first and after the last: the loss for pictures, "
            "noise and noise levels that stay the same, so that it tells progress. -1 takes it as often as costs less "
            "than a tenth of the time, 0 never."
        ),
    ] = -1
    held_out: Annotated[
        int,
        Doc(
            "Keep so many pictures out of training, and take the fixed loss on these: it then tells when the embedding "
            "begins to learn its pictures by heart. The seed decides which."
        ),
    ] = 0
    early_stop: Annotated[
        str,
        Doc(
            "End when the fixed loss no longer improves: patience after so many evaluations without a new best one, "
            "dvar when it has come to rest (Voronov et al. 2023)."
        ),
    ] = "off"
    patience: Annotated[
        int, Doc("With early_stop patience: after how many evaluations without a new lowest fixed loss to end.")
    ] = 3

    def __post_init__(self):
        if not self.template:
            raise UserError("The training cannot start: the template cannot be (), without a line. Give it one.")
        for setting, (least, most) in RANGES.items():
            self._check(setting, least <= getattr(self, setting) <= most, f"it can be {least} to {most}")
        if self.min_timestep >= self.max_timestep:
            raise SettingError(
                lambda name: (
                    f"The training cannot start: {name('min_timestep')} cannot be {self.min_timestep} with "
                    f"{name('max_timestep')} {self.max_timestep}; it has to be below that."
                )
            )
        self._check("clip_at", 0 < self.clip_at < math.inf, "it has to be a number above 0")
        check_choice("gradient_clipping", self.gradient_clipping, GRADIENT_CLIPPING)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("loss_weighting", self.loss_weighting, LOSS_WEIGHTING)
        check_choice("gradient_checkpointing", self.gradient_checkpointing, GRADIENT_CHECKPOINTING)
        check_choice("resume", self.resume, RESUME)
        check_choice("early_stop", self.early_stop, EARLY_STOP)
        if self.early_stop != "off" and not self.evaluate_every:
            raise SettingError(
                lambda name: (
                    f"The training cannot start: {name('early_stop')} cannot be {self.early_stop!r} with "
                    f"{name('evaluate_every')} 0; it goes by the fixed loss, so let that be taken."
                )
            )

    def _check(self, setting: str, good: bool, possible: str) -> None:
        value = getattr(self, setting)
        if not good:
            raise SettingError(
                lambda name: f"The training cannot start: {name(setting)} cannot be {value!r}; {possible}."
            )


def deciding(settings: TrainSettings) -> dict[str, Any]:
    """Those settings that decide what is learnt by a step."""
    return {name: value for name, value in asdict(settings).items() if name not in UNDECIDING}
