"""Pictures on their way from a folder to the trainer: read, captioned, masked, cut to size; and written again."""

from .batches import as_lists, as_pictures, split_batches
from .folders import contained_folder, folder_fingerprint, list_images, list_subfolders
from .load import load_folder, load_image
from .resize import flip, preprocess, resize
from .save import save_picture

__all__ = [
    "as_lists",
    "as_pictures",
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
