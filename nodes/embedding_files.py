"""The embeddings in the host's folders, as entries of a list: `cat.pt`, `sub/cat.png`, and those bundled in LoRAs,
`lora: style.safetensors > cat`."""

import logging
import os
import stat
from functools import lru_cache
from pathlib import Path
from threading import Thread
from time import monotonic

import folder_paths

from ..textinv_core.errors import UserError
from ..textinv_core.formats import FORMATS, PICTURES, is_marked, list_bundled, load_embedding

# What prompts find as embedding:name, the first of these that there is.
FOUND_BY_PROMPTS = (".safetensors", ".pt", ".bin")
LORA = "lora: "
WITHIN = " > "
MAX_BUNDLED = 1000  # of one file that are listed: a header has room for 100,000, of which the page would die
# Seconds that the server waits for the list: it answers nobody meanwhile.
PATIENCE = 1.0

log = logging.getLogger("textinv")


def find(entry: str) -> tuple[Path, str | None]:
    """The file of an entry, and which embedding in it where it is a bundle; the entry need not be in the list.

    Raises UserError where the host's folders have no such file. As for the host's own loaders, no name leads out of
    them, and links are followed.
    """
    folder, rest = ("loras", entry.removeprefix(LORA)) if entry.startswith(LORA) else ("embeddings", entry)
    parts = rest.split(WITHIN, 100)  # more would take long, and no file is called so
    for n in range(len(parts), 0, -1):
        file = WITHIN.join(parts[:n])
        if not file.lower().endswith(tuple(FORMATS)):
            continue
        for written in dict.fromkeys((file, file.replace("\\", "/"))):  # a graph made on Windows works elsewhere
            if (path := folder_paths.get_full_path(folder, written)) is not None:
                return Path(path), WITHIN.join(parts[n:]) or None
    raise UserError(
        f"There is no embedding {entry!r} in the {folder} folder, among the files that end in {', '.join(FORMATS)}."
    )


@lru_cache(maxsize=100_000)
def _look_into(path: str, changed: int, size: int, thoroughly: bool) -> tuple[str, ...]:
    """What entries append to a file's name, one for each embedding in it; a file as it was then is looked into once.

    thoroughly: of a picture all pixels, which takes long; else only its text.
    """
    try:
        if bundled := list_bundled(path):
            return tuple(WITHIN + name for name in bundled[:MAX_BUNDLED] if name.isprintable())
        if path.lower().endswith(PICTURES):
            if not thoroughly and not is_marked(path):
                return ()
            load_embedding(path)
    except (UserError, OSError):
        return ()
    except Exception:  # of one file, which must not cost the list of all others
        log.exception("%s was left out of the list of embeddings.", ascii(path))
        return ()
    return ("",)


def _entries(folder: str, files: set[str], prefix: str = "") -> list[str]:
    """Entries for those of `files` in a kind of folder that hold embeddings; with a prefix only for bundled ones."""
    entries = []
    for file in sorted(files):
        try:
            path = folder_paths.get_full_path_or_raise(folder, file)
            status = os.stat(path)
        except OSError:  # gone meanwhile, or a link to nothing
            continue
        if not stat.S_ISREG(status.st_mode):  # to open a pipe waits for ever
            continue
        stem = os.path.splitext(file)[0]
        preview = stem.endswith(".preview") or any(stem + suffix in files for suffix in FOUND_BY_PROMPTS)
        inside = _look_into(path, status.st_mtime_ns, status.st_size, not preview)
        entries += [prefix + file + each for each in inside if each or not prefix]
    return entries


def _list_all() -> None:
    global _listed
    files = {
        file for each in folder_paths.get_folder_paths("embeddings") for file in folder_paths.recursive_search(each)[0]
    }
    files = {file for file in files if Path(file).suffix.lower() in FORMATS}
    loras = {file for file in folder_paths.get_filename_list("loras") if file.lower().endswith(".safetensors")}
    own = _entries("embeddings", files)
    _listed = own + [entry for entry in _listed if entry.startswith(LORA)]  # without waiting for the LoRAs
    _listed = own + _entries("loras", loras, LORA)


_listed: list[str] = []
_listing: Thread | None = None
_waited_until = 0.0


def entries() -> list[str]:
    """Entries for all embeddings that can be read, sorted, the embeddings folders' first.

    They are looked for in a thread, as the first time every LoRA is opened, and there are collections of thousands:
    after `PATIENCE` the list is what it was before, and a line in the log says so. The host asks several times in a row
    for each graph, and waits once.
    """
    global _listing, _waited_until
    listing = _listing  # the server and the graph ask in threads of their own
    started = False
    if listing is None or not listing.is_alive():
        started = True
        listing = Thread(target=_list_all, name="textinv-embeddings", daemon=True)
        listing.start()
        _listing, _waited_until = listing, monotonic() + PATIENCE
    listing.join(max(0.0, _waited_until - monotonic()))
    if started and listing.is_alive():
        log.info("Still looking for embeddings: refresh the page's lists (press R) later to see them all.")
    return _listed
