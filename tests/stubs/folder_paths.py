"""Where ComfyUI keeps files. Tests set the directories they use; nothing else is there."""

import os

input_directory = "input"
output_directory = "output"
# Kind of model -> (folders, extensions), as in the host.
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    "embeddings": (["models/embeddings"], {".pt", ".bin", ".safetensors"}),
    "loras": (["models/loras"], {".pt", ".bin", ".safetensors"}),
}


def get_input_directory() -> str:
    return input_directory


def set_input_directory(input_dir: str) -> None:
    global input_directory
    input_directory = input_dir


def get_output_directory() -> str:
    return output_directory


def set_output_directory(output_dir: str) -> None:
    global output_directory
    output_directory = output_dir


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[folder_name][0])


def recursive_search(directory: str) -> tuple[list[str], dict[str, float]]:
    found = [(parent, name) for parent, _, names in os.walk(directory, followlinks=True) for name in names]
    return [os.path.relpath(os.path.join(parent, name), directory) for parent, name in found], {}


def get_filename_list(folder_name: str) -> list[str]:
    folders, extensions = folder_names_and_paths[folder_name]
    files = {file for folder in folders for file in recursive_search(folder)[0]}
    return sorted(file for file in files if not extensions or os.path.splitext(file)[1].lower() in extensions)


def get_full_path(folder_name: str, filename: str) -> str | None:
    # As in the host, a name cannot climb out of its folder.
    filename = os.path.relpath(os.path.join("/", filename), "/")
    paths = (os.path.join(folder, filename) for folder in get_folder_paths(folder_name))
    return next(filter(os.path.isfile, paths), None)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    path = get_full_path(folder_name, filename)
    if path is None:
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
    return path
