"""Files of `torch.save`: a pickle that tells of tensors, and their numbers beside it.

They are read by `unpickle`, which never runs what a file asks for, and only the numbers that tensors show are touched.
"""

import io
import mmap
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .limits import check_file, check_total
from .unpickle import AsksForCode, Declared, Storage, unpickle

MAX_PICKLE_BYTES = 1024 * 1024  # of an embedding, without the tensors' numbers
MAX_CHECKPOINT_PICKLE_BYTES = 4 * 1024 * 1024  # of a model: some 20,000 tensors
MAX_MEMBERS_BYTES = 4 * 1024 * 1024  # of the list of members in a zip
ZIP_MAGIC = b"PK\3\4"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# What a damaged file raises: a stack that is empty, a key that is not there, a place that cannot be. What is a
# ValueError has a sentence of ours, or the library's.
DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    NotImplementedError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


class _Piecewise(io.FileIO):
    """A file that gives little at once, because zipfile makes of a list of members what takes ten times its size."""

    def read(self, size: int = -1, /) -> bytes:
        return super().read(min(size, MAX_MEMBERS_BYTES) if size >= 0 else MAX_MEMBERS_BYTES)


class _Contents(NamedTuple):
    """What a file says, and where in it the numbers of each storage begin, by its key. byteorder: theirs, as in sys."""

    value: Any
    declared: list[Declared]
    storages: dict[str, Storage]
    places: dict[str, int]
    byteorder: str = "little"


def _storages(declared: list[Declared]) -> dict[str, Storage]:
    """Those that tensors show, by their keys."""
    storages: dict[str, Storage] = {}
    for each in declared:
        if storages.setdefault(each.storage.key, each.storage) != each.storage:
            raise ValueError("it tells of the same numbers twice, and not the same")
    return storages


def _legacy(memory: mmap.mmap, max_pickle: int) -> _Contents:
    """Of the older kind of file, in which all stands in a row."""
    stream = io.BytesIO(memory[:max_pickle])
    try:
        magic, _ = unpickle(stream)
        if type(magic) is not int or magic != LEGACY_MAGIC:
            raise ValueError("torch.save did not write it")
        version, _ = unpickle(stream)
        if type(version) is not int or version != 1001:
            raise ValueError("its version is unknown")
        unpickle(stream)  # the system it was written on
        value, declared = unpickle(stream)
        keys, _ = unpickle(stream)
    except ValueError as error:
        if len(memory) > max_pickle and stream.tell() == max_pickle:
            raise ValueError(f"{max_pickle >> 20} MiB of it are not yet all but the numbers") from error
        raise
    storages = _storages(declared)
    at = stream.tell()
    places = {}
    for key in keys if isinstance(keys, list) else []:
        storage = storages[key if isinstance(key, str) else ""]
        if struct.unpack_from("<q", memory, at)[0] != storage.count:
            raise ValueError("the length of its numbers is not what it says")
        places[key] = at + 8
        at += 8 + storage.size
    return _Contents(value, declared, storages, places)


def _check_end(memory: mmap.mmap) -> None:
    """Raise ValueError for a zip that does not end as torch.save has it: list of members, its place, no comment.

    Of several lists zipfile would take one, and torch, to which libraries give a file that was checked here, another.
    """
    end = len(memory) - 22
    magic, size, start, comment = struct.unpack_from("<4s8xIIH", memory, end)
    is_end = magic == b"PK\5\6" and not comment
    if memory[end - 20 : end - 16] == b"PK\6\7":  # the place in 64 bits
        [place] = struct.unpack_from("<Q", memory, end - 12)
        end -= 76
        magic, size, start = struct.unpack_from("<4s36xQQ", memory, end)
        is_end = is_end and magic == b"PK\6\6" and place == end
    if not is_end or start + size != end:
        raise ValueError("its list of members is not at its end")


def _zipped(path: Path, memory: mmap.mmap, max_pickle: int) -> _Contents:
    """Of a zip, with `<folder>/data.pkl`, `<folder>/data/<key>` and, since torch 2.1, `<folder>/byteorder`."""
    _check_end(memory)
    with _Piecewise(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
    # Readers differ in which of two they take, and to torch's `DATA.PKL` is the same name.
    if len({name.lower() for name in members}) != len(archive.infolist()):
        raise ValueError("it has two members of one name")

    def place(name: str) -> int:
        """Where a member begins."""
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError("it is compressed or locked, as torch.save never does")
        magic, name_length, extra_length = struct.unpack_from("<4s22xHH", memory, member.header_offset)
        start = member.header_offset + 30 + name_length + extra_length
        if magic != ZIP_MAGIC or start + member.file_size > len(memory):
            raise ValueError("its list of members does not fit it")
        return start

    [pickled] = [name for name in members if name.endswith("/data.pkl")] or [""]
    start, size = place(pickled), members[pickled].file_size
    if size > max_pickle:
        raise ValueError(f"it has {size / 2**20:.0f} MiB besides its numbers")
    value, declared = unpickle(io.BytesIO(memory[start : start + size]))
    folder = pickled.removesuffix("data.pkl")
    storages = _storages(declared)
    places = {}
    for key, storage in storages.items():
        name = f"{folder}data/{key}"
        places[key] = place(name)
        if members[name].file_size != storage.size:
            raise ValueError("the length of its numbers is not what it says")
    order = "little"
    if (name := f"{folder}byteorder") in members:
        start = place(name)
        order = memory[start : start + min(members[name].file_size, 10)].decode()
        if order not in ("little", "big"):
            raise ValueError("the order of its bytes is unknown")
    return _Contents(value, declared, storages, places, order)


def _numbers(memory: mmap.mmap, place: int, storage: Storage, byteorder: str) -> Tensor:
    """The bytes of a storage, uint8 [bytes], as the file's own memory where that is possible."""
    if storage.size == 0:
        return torch.empty(0, dtype=torch.uint8)
    numbers = torch.frombuffer(memory, dtype=torch.uint8, offset=place, count=storage.size)
    if byteorder != sys.byteorder:
        return numbers.view(-1, storage.dtype.itemsize).flip(1).flatten()
    # Old files, and others' zips, have them anywhere; processors want them at multiples of their size.
    return numbers if place % 8 == 0 else numbers.clone()


def load(path: Path, max_bytes: int | None = None) -> Any:
    """What `torch.save` put into a file: dictionaries, lists, numbers, text and tensors on the CPU, nothing else.

    A set, which has to be empty, comes as a list, torch's ParameterDict as an object with `_parameters`. Tensors may be
    the mapped file: what is kept of them has to be copied.

    max_bytes: of the file, and of its tensors as float32. None for a model's checkpoint, whose tensors may take eight
        times what the file does: the smallest numbers are of 8 bits, and tensors may share theirs.

    Raises UserError for what is damaged or larger, and for a file that asks for anything else: none of that is ever
    run. OSError where it cannot be opened.
    """
    check_file(path, max_bytes)
    with open(path, "rb") as file:
        try:
            return _tensors_of(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), max_bytes)
        except AsksForCode as error:
            raise UserError(
                f"{path.name!r} was not opened: it would have Python run {ascii(str(error)[:60])[1:-1]}, which no file "
                "of its kind needs. Such a file can harm the computer it is opened on: get it as .safetensors."
            ) from None
        except UserError:
            raise
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:200] if isinstance(error, ValueError) else "it is damaged"
            raise UserError(
                f"{path.name!r} cannot be read as a file of torch: {reason}. Is it whole? Else get it as .safetensors."
            ) from None


def _tensors_of(path: Path, memory: mmap.mmap, max_bytes: int | None) -> Any:
    is_zip = memory[:4] == ZIP_MAGIC
    max_pickle = MAX_PICKLE_BYTES if max_bytes else MAX_CHECKPOINT_PICKLE_BYTES
    contents = _zipped(path, memory, max_pickle) if is_zip else _legacy(memory, max_pickle)
    if sum(storage.size for storage in contents.storages.values()) > len(memory):
        raise ValueError("its numbers are more than it has bytes")
    check_total((each.shape for each in contents.declared), max_bytes or 8 * len(memory), path.name)
    numbers = {
        key: _numbers(memory, contents.places[key], storage, contents.byteorder)
        for key, storage in contents.storages.items()
    }
    for each in contents.declared:
        storage = numbers[each.storage.key].untyped_storage()
        each.tensor.set_(storage, each.offset, each.shape, each.stride)
    return contents.value


def dump(data: Any) -> bytes:
    """`data` as `torch.save` writes it, in its older form.

    A1111 opens a zip only if it knows the name of every member, and torch has added some since.
    """
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=False)
    return file.getvalue()
