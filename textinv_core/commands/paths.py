"""Whether files and folders are there, and of the kind that is wanted: known before anything is loaded.

Everything here raises SettingError, which names the setting that the path is the value of.
"""

import os
from pathlib import Path

from ..errors import SettingError

MODEL_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# What a folder with a model's configurations has at the least.
CONFIGURATIONS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


def check_file(setting: str, path: Path) -> None:
    """A file that may be read."""
    if path.is_dir():
        raise _refused(setting, path, "that is a folder. Give a file.")
    if not path.exists():
        raise _refused(setting, path, "there is no such file.")
    if not os.access(path, os.R_OK):
        raise _refused(setting, path, "that file may not be read. Look at its permissions.")


def check_folder(setting: str, path: Path) -> None:
    """A folder whose files may be listed."""
    if path.exists() and not path.is_dir():
        raise _refused(setting, path, "that is a file, and there is no such folder. Give the folder that it is in.")
    if not path.exists():
        raise _refused(setting, path, "there is no such folder.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise _refused(setting, path, "that folder may not be looked into. Look at its permissions.")


def check_model(model: Path, config: Path | None) -> None:
    """A model that may be read, as far as its outside tells, and what goes with it as `model_config`."""
    if model.is_dir():
        if config is not None:
            raise SettingError(
                lambda name: (
                    f"{name('model')} is {str(model)!r}, a folder that has configurations of its own: leave out "
                    f"{name('model_config')}."
                )
            )
        if not (model / "model_index.json").is_file():
            raise _refused(
                "model",
                model,
                "that folder has no model_index.json, as diffusers saves one with a model. Give a single file, or "
                "another folder.",
            )
    elif not model.exists():
        raise _refused("model", model, "there is no such file or folder.")
    else:
        check_file("model", model)
        if model.suffix.lower() not in MODEL_FILES:
            raise _refused("model", model, f"that is no model: their files end in {', '.join(MODEL_FILES)}.")
        if model.is_file() and not model.stat().st_size:
            raise _refused("model", model, "that file is empty. Get it anew.")
    if config is not None:
        check_folder("model_config", config)
        if missing := [each for each in CONFIGURATIONS if not (config / each).is_file()]:
            raise _refused(
                "model_config",
                config,
                f"that folder has no {missing[0]}. Give a folder with a model's configurations in diffusers' layout.",
            )


def check_output(setting: str, folder: Path, within: str = "") -> None:
    """A folder in which all can be made that is to be `within` it."""
    if "\0" in str(folder):
        raise _refused(setting, folder, "that is no name a folder can have.")
    deepest = folder / within
    there = next(each for each in (deepest, *deepest.absolute().parents) if each.exists())
    if not there.is_dir():
        raise _refused(setting, folder, f"{str(there)!r} is a file, so no folder can be made there. Give another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _refused(setting, folder, f"nothing can be written into {str(there)!r}. Give another folder.")


def _refused(setting: str, path: Path, reason: str) -> SettingError:
    return SettingError(lambda name: f"{name(setting)} is {str(path)!r}, and {reason}")
