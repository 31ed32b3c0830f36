"""Which pictures are learnt from, and how they are made ready: what nodes, flags and settings files say of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from .errors import SettingError, check_choice
from .prompts import filename_words

CAPTIONS = ("auto", "sidecar", "filename", "none")
RESIZE_MODES = ("crop", "squash", "keep")
SIDES = (8, 8192)  # pixels; all latents have cells of 8 or more


@dataclass(frozen=True)
class ImageSettings:
    """Which pictures are learnt from, and how they are made ready for it. Raises UserError for what cannot be used."""

    folder: Annotated[Path, Doc("The folder with the pictures: 5 to 20 of one thing, or in one style.")]
    recursive: Annotated[bool, Doc("Also take the pictures of all folders inside the folder.")] = False
    captions: Annotated[
        str,
        Doc(
            "Where each picture's [filewords] come from: sidecar, the .txt beside it; filename, the words of its name; "
            "auto, the first of these there is; none."
        ),
    ] = "auto"
    filename_word_regex: Annotated[
        str,
        Doc(
            "A regular expression that finds the words in a file name, such as [a-z]+. Without one the name is taken "
            "as it is, less digits and dashes at its start."
        ),
    ] = ""
    filename_join_string: Annotated[str, Doc("What is put between the words that the regular expression finds.")] = " "
    width: Annotated[
        int,
        Doc(
            "Pixels; 0 takes what the model was made for, which learns best: 512 for SD1.x, 768 for most SD2.x, 1024 "
            "for SDXL. Half of it takes a quarter of the time and loses detail."
        ),
    ] = 0
    height: Annotated[int, Doc("Pixels, as width.")] = 0
    resize: Annotated[
        str,
        Doc(
            "How a picture gets that size: crop cuts what sticks out at both ends, squash changes its proportions, "
            "keep leaves it as it is and ignores width and height."
        ),
    ] = "crop"
    flip: Annotated[
        bool, Doc("Follow each picture by its mirror image. Not for writing, or faces that should stay theirs.")
    ] = False
    mask_loss: Annotated[bool, Doc("Learn only where a picture is opaque; all of it where nothing is transparent.")] = (
        True
    )

    def __post_init__(self):
        check_choice("captions", self.captions, CAPTIONS)
        check_choice("resize", self.resize, RESIZE_MODES)
        filename_words("", self.filename_word_regex)
        least, most = SIDES
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels != 0 and not least <= pixels <= most:
                raise SettingError(
                    lambda name, side=side, pixels=pixels: (
                        f"{name(side)} cannot be {pixels}: it can be {least} to {most} pixels, best 64 or more and a "
                        "multiple of 8, or 0 for what the model was made for."
                    )
                )
