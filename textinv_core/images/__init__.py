"""Pictures on their way from a folder to the trainer: read, captioned, masked, cut to size; and written again."""

from .load import (
    CAPTIONS,
    LoadedFolder,
    contained_folder,
    folder_fingerprint,
    list_images,
    list_subfolders,
    load_folder,
    load_image,
)
from .resize import RESIZE_MODES, flip, preprocess, resize, split_batches
from .save import save_picture

__all__ = [
    "CAPTIONS",
    "RESIZE_MODES",
    "LoadedFolder",
    "contained_folder",
    "flip",
    "folder_fingerprint",
    "list_images",
    "list_subfolders",
    "load_folder",
    "load_image",
    "preprocess",
    "resize",
    "save_picture",
    "split_batches",
]
