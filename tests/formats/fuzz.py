"""Files made to harm and files with damage, given to all readers: `python -m tests.formats.fuzz <first> <count>`.

Every file comes from its number alone: `made(number)` is what the reader was given. The first are those of
HARMFUL. Ends with 1, and the number, where a reader did anything but read or refuse, quickly and in bounds.
"""

import base64
import ctypes
import faulthandler
import io
import itertools
import json
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save as save_safetensors

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.commands.settings_file import read_file
from textinv_core.errors import UserError
from textinv_core.formats.limits import MAX_FILE_BYTES
from textinv_core.formats.pickles import load
from textinv_core.formats.tensors import ENCODER_KEYS, to_store

FOLDER = Path(__file__).parents[1] / "recorded" / "files"
MAX_SECONDS = 10  # of a processor; the slowest take 2
MAX_PEAK_BYTES = 4 * MAX_FILE_BYTES
READERS = {".ckpt": load, ".optim": lambda path: load(path, MAX_FILE_BYTES), ".toml": read_file}


# --- files that harm


def saved(data: object, zipped: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def legacy(pickled: bytes) -> bytes:
    """A file of the older kind with this pickle in the place of its value."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*parts, pickled, pickle.dumps([], 2)])


def zipped(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return file.getvalue()


DOUBLED = b"\x80\x02)" + b"q\x00h\x00\x86" * 60  # a tuple of the tuple before, twice: hashing it never ends
KEY = DOUBLED.replace(b"\x80\x02", b"\x80\x02}") + b"K\x01s."
VALUE = b"\x80\x02}X\x01\x00\x00\x00*" + DOUBLED[2:] + b"s."
NAME = b"\x80\x02" + DOUBLED[2:] + b"X\x01\x00\x00\x00a\x93."
TENSOR = b"\x80\x02}X\x01\x00\x00\x00*ctorch._utils\n_rebuild_tensor_v2\n"
IDENTITY = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + DOUBLED[2:] + b"X\x03\x00\x00\x00cpuK\x01tQ."
KEYS = ("clip_l", "clip_g", "t5xxl", "llama")
MILLION = 2**20 - 300  # nearly what a pickle may have


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8) -> bytes:
    """A grey picture of this size, whatever its pixels are, with chunks of text before them."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(b"\0" + b"\x55" * (3 * width)) for _ in range(height)) + squeeze.flush()
    return join_png([head, *chunks, (b"IDAT", rows), (b"IEND", b"")])


def text_chunk(text: bytes) -> tuple[bytes, bytes]:
    return b"tEXt", b"sd-ti-embedding\0" + base64.b64encode(text)


def big_picture(mode: str, suffix: str, size: int = 3160) -> bytes:
    """All of it stripes, as far as can be told: black columns in the middle, noise around them."""
    pixels = np.full((size, size, 3), 85, np.uint8)
    pixels[:, size // 2 - 1 : size // 2 + 1] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, suffix[1:], **({"lossless": True} if suffix == ".webp" else {}))
    return file.getvalue()


def many_members() -> bytes:
    """A zip whose list has as many members as 40 MB hold."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 15, 0)
    listed = entry * (40_000_000 // len(entry))
    return b"PK\3\4" + listed + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, len(listed), 4, 0)


def deflated(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member) if "data/" not in member.filename else bytes(2**27))
    return file.getvalue()


def wide_header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


def big_webp() -> bytes:
    """As many pixels as a webp can have, of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (85, 85, 85)).save(file, "webp", lossless=True)
    data = bytearray(file.getvalue())
    at = data.index(b"VP8L") + 9  # 14 bits of width - 1, 14 bits of height - 1
    [bits] = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, bits >> 28 << 28 | 16382 << 14 | 16382)
    return bytes(data)


Made = dict[str, tuple[str, Callable[[], bytes]]]

# Of the size that takes most.
LARGE: Made = {
    "a zip of a million members": (".pt", many_members),
    "a million stacks": (".pt", lambda: legacy(b"\x80\x02" + b"(" * MILLION + b".")),
    "lists in lists": (".pt", lambda: legacy(b"\x80\x02" + b"]" * MILLION + b"." + b"a" * 10)),
    "tuples in tuples": (".pt", lambda: legacy(b"\x80\x02)" + b"\x85" * MILLION + b".")),
    "a million remembered": (".pt", lambda: legacy(b"\x80\x04]" + b"\x94" * MILLION + b".")),
    "remembered under numbers of one hash": (
        ".ckpt",
        lambda: legacy(b"N" + b"".join(b"p%d\n" % ((2**61 - 1) * (1024 + n)) for n in range(150_000)) + b"."),
    ),
    "a list copied again and again": (
        ".pt",
        lambda: legacy(
            b"\x80\x02](" + b"N" * (MILLION // 2) + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 20_000 + b"."
        ),
    ),
    "a million tensors": (
        ".pt",
        lambda: zipped(
            b"\x80\x02(ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x00tQK\x00K\x00\x85K\x01\x85\x89Ntq\x01"
            + b"h\x00h\x01R" * (MILLION // 5 - 100)
            + b"t."
        ),
    ),
    "numbers of eight bits": (
        ".safetensors",
        lambda: save_safetensors({key: torch.zeros(64_500, 1000, dtype=torch.float8_e4m3fn) for key in KEYS}),
    ),
    "a header of keys": (
        ".safetensors",
        lambda: (lambda text: wide_header(len(text), text))(
            json.dumps(
                {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(125_000)}
            ).encode()
        ),
    ),
    "10 million pixels": (".png", lambda: png(width=4000, height=2500)),
    "32 million pixels": (".png", lambda: png(width=8000, height=4000)),
    "stripes with transparency": (".png", lambda: big_picture("RGBA", ".png")),
    "stripes in webp": (".webp", lambda: big_picture("RGB", ".webp")),
    "8 MB of numbers": (".png", lambda: png(text_chunk(b'{"a":{"TORCHTENSOR":[' + b"1.5," * 2_000_000 + b"1]}}"))),
    "8 MB of texts": (".png", lambda: png(text_chunk(b"[" + b'"ab",' * 1_600_000 + b"1]"))),
    "60 MB of text": (".png", lambda: png((b"tEXt", b"sd-ti-embedding\0" + b"A" * 60_000_000))),
    "60 MB of text in pieces": (".png", lambda: png(*[(b"tEXt", b"k%d\0" % n + b"A" * 600_000) for n in range(100)])),
    "a table behind four quotes": (
        ".toml",
        lambda: b't = {a = """x"""", ' + b".".join(b"a%d" % n for n in range(140_000)) + b" = 1}",
    ),
    "escapes": (".toml", lambda: b'a = "' + rb"\"" * 500_000),
    "decimals": (".toml", lambda: b"a = " + b"9" * 10**6),
    "100 MB deflated": (".pt", lambda: deflated(saved({"clip_l": torch.ones(4, 768)}, True))),
    "a million dictionaries": (".pt", lambda: legacy(b"\x80\x02(" + b"}" * MILLION + b"t.")),
}

SMALL: Made = {
    "a key that is hashed for ever": (".pt", lambda: legacy(KEY)),
    "the same in a zip": (".pt", lambda: zipped(KEY)),
    "the same in a checkpoint": (".ckpt", lambda: legacy(KEY)),
    "the same in a checkpoint's zip": (".ckpt", lambda: zipped(KEY)),
    "the same beside an embedding": (".optim", lambda: legacy(KEY)),
    "a value that is printed for ever": (".pt", lambda: legacy(VALUE)),
    "a name that is printed for ever": (".pt", lambda: legacy(NAME)),
    "a storage that is printed for ever": (".pt", lambda: legacy(TENSOR + IDENTITY)),
    "a set that is hashed for ever": (
        ".ckpt",
        lambda: legacy(b"\x80\x02c__builtin__\nset\n]" + DOUBLED[2:] + b"a\x85R."),
    ),
    "system": (".pt", lambda: b"cposix\nsystem\n(Vtrue\ntR."),
    "one number under nine keys": (
        ".pt",
        lambda: saved(dict.fromkeys(sorted(ENCODER_KEYS)[:9], torch.ones(1).expand(10**5, 660))),
    ),
    "one number under two": (".pt", lambda: saved(dict.fromkeys(KEYS[:2], torch.ones(1).expand(10**5, 660)))),
    "one number in nine zipped": (".bin", lambda: saved({n: torch.ones(1).expand(10**8) for n in "abcdefghi"}, True)),
    "one number in a checkpoint": (".ckpt", lambda: saved({n: torch.ones(1).expand(10**8) for n in "abcdefghi"}, True)),
    "an integer of a megabyte": (
        ".pt",
        lambda: legacy(b"\x8b" + struct.pack("<i", MILLION) + b"\xff" * MILLION + b"."),
    ),
    "an integer in decimals": (".pt", lambda: legacy(b"L" + b"9" * MILLION + b"L\n.")),
    "a text of four gigabytes": (".pt", lambda: legacy(b"\x80\x02X\xff\xff\xff\xffa.")),
    "a text without end": (".pt", lambda: legacy(b"\x80\x04\x8d" + b"\x7f" * 9)),
    "a header of 2 GiB": (".safetensors", lambda: wide_header(2**31, b"{")),
    "stripes of 10 million pixels": (".png", lambda: big_picture("RGB", ".png")),
    "webp of 16383 x 16383": (".webp", lambda: big_webp()),
    "16 MiB of JSON": (".png", lambda: png(text_chunk(b"[" + b"1.5," * 2**22 + b"1]"))),
    "8 MB of lists": (".png", lambda: png(text_chunk(b"[" + b"[]," * 2_700_000 + b"1]"))),
    "8 MB of objects": (".png", lambda: png(text_chunk(b"[" + b'{"":[]},' * 1_000_000 + b"1]"))),
    "text that unpacks": (".png", lambda: png(*[(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))] * 500)),
    "a key of 50,000 parts": (".toml", lambda: b".".join([b"a"] * 50_000) + b" = 1"),
    "a table of 50,000 parts": (".toml", lambda: b"[" + b" . ".join([b"'a'"] * 50_000) + b"]"),
    "a key of quoted parts": (".toml", lambda: b".".join([rb'"\""'] * 50_000) + b" = 1"),
    "many keys of 32 parts": (
        ".toml",
        lambda: b"\n".join(
            b".".join([b"%d" % n, *b"abcdefghijklmnopqrstuvwxyzabcde".split()]) + b"=1" for n in range(15000)
        ),
    ),
    "tables in a table": (".toml", lambda: b"a = {" + b".".join([b'"a"'] * 50_000) + b" = 1}"),
    "brackets": (".toml", lambda: b"a = " + b"[" * 10**6),
    "braces": (".toml", lambda: b"a = " + b"{a=" * 3 * 10**5),
    "quotes": (".toml", lambda: b"a = " + b'"' * 10**6),
    "a megabyte of a letter": (".toml", lambda: b"a" * 10**6),
    "a megabyte of dots": (".toml", lambda: b"a = 1\n" + b"." * 10**6),
    "a megabyte of spaces": (".toml", lambda: b"a" + b" " * 10**6 + b"."),
    "two megabytes": (".toml", lambda: b"#" * 2**21),
}
HARMFUL = LARGE | SMALL


# --- files with damage


def record() -> None:
    """Write the small files of every kind that get damaged."""
    rows = torch.linspace(-1, 1, 768).bfloat16().float().reshape(1, 768)
    one = Embedding("cat", {"clip_l": rows[:, :9]}, 7, {"textinv.sd_checkpoint": "81761151"})
    two = Embedding("cat", {"clip_l": rows[:, :9], "clip_g": rows[:, :9]}, 7)
    a1111 = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": rows})}
    weights = {"state_dict": {"a.weight": rows[:, :99].half(), "b": torch.arange(3)}, "epoch": 3, "global_step": 1.5}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(rows[:, :99])])
    optimizer.param_groups[0]["params"][0].grad = rows[:, :99]
    optimizer.step()
    made = [(".pt", saved({**a1111, "name": "cat", "step": 7}, is_zip)) for is_zip in (False, True)]
    made += [(".ckpt", saved(weights, is_zip)) for is_zip in (False, True)]
    made += [(".optim", saved({"hash": "41a2", "optimizer_state_dict": optimizer.state_dict()}))]
    made += [(".bin", saved({"<cat>": torch.ones(768, dtype=torch.bfloat16)}, is_zip)) for is_zip in (False, True)]
    made += [(".toml", b"name = \"cat\"\ntrain.steps = 3\n[images]\nfolder = 'a'\n[[job]]\ntrain = {seed = 1}\n")]
    made += [(".safetensors", save_safetensors(to_store(each), {"textinv.step": "7"})) for each in (one, two)]
    with TemporaryDirectory() as folder:
        for embedding, suffix in ((one, ".pt"), (two, ".pt"), (one, ".png")):
            path = Path(folder, f"cat{suffix}")
            save_embedding(embedding, path, torch.full((16, 16, 3), 0.4) if suffix == ".png" else None)
            made.append((suffix, path.read_bytes()))
        with Image.open(path) as image:
            for suffix in (".png", ".webp"):
                image.save(path.with_suffix(suffix), lossless=True, pnginfo=PngImagePlugin.PngInfo())
                made.append((suffix, path.with_suffix(suffix).read_bytes()))
    for number, (suffix, data) in enumerate(made):
        (FOLDER / f"{number:02}{suffix}").write_bytes(data)


# Recorded, so that a number stands for the same file everywhere: torch names storages after their place in memory.
SEEDS = [(path.suffix, path.read_bytes()) for path in sorted(FOLDER.iterdir())]
EDGES = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
OPCODES = [bytes([each]) for each in b"}])(.0122NRQbaesutdlo\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94"]
OPCODES += [
    b"h\x00",
    b"q\x00",
    b"K\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 8,
    b"X\x01\x00\x00\x00a",
    b"\x8c\x01a",
]
OPCODES += [
    b"ccollections\nOrderedDict\n",
    b"ctorch\nLongStorage\n",
    b"c__builtin__\nset\n",
    b"cos\nsystem\n",
    b"ios\nsystem\n",
]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes of it changed, added or gone."""
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice([1, 2, 4, 8, 64, 1000]))
    piece = data[at:end]
    other = chance.choice(SEEDS)[1]
    start = chance.randrange(len(other))
    edge = chance.choice(EDGES).to_bytes(8, chance.choice(["little", "big"]))
    return chance.choice(
        [
            lambda: data[:at],
            lambda: data[:at] + data[end:],
            lambda: data[:at] + piece * chance.choice([2, 3, 1000]) + data[end:],
            lambda: data[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in piece[:1]) + data[at + 1 :],
            lambda: data[:at] + chance.randbytes(len(piece)) + data[end:],
            lambda: data[:at] + edge[:4] + data[at + 4 :],
            lambda: data[:at] + edge[-4:] + data[at + 4 :],
            lambda: data[:at] + edge + data[at + 8 :],
            lambda: data[:at] + other[start : start + len(piece)] + data[end:],
        ]
    )()


def damaged_pickle(data: bytes, chance: random.Random) -> bytes:
    """One pickle, or what begins with some, with other opcodes in it."""
    places: list[tuple[int, int]] = []
    stream = io.BytesIO(data)
    while data[stream.tell() : stream.tell() + 1] == b"\x80":
        begins = [at for _, _, at in pickletools.genops(stream) if at is not None]
        places += itertools.pairwise([*begins, stream.tell()])
    at, end = chance.choice(places)
    start, stop = chance.choice(places)
    added = chance.choice([data[start:stop], chance.choice(OPCODES), b"", data[at:end] * 2])
    return data[:at] + added * chance.choice([1, 1, 1, 50]) + data[end if chance.random() < 0.5 else at :]


def damaged_zip(data: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = chance.randrange(len(members)) if chance.random() < 0.3 else 0
    name, content = members[at]
    changed = damaged_pickle(content, chance) if name.endswith(".pkl") else damaged(content, chance)
    members[at] = (name, changed)
    if chance.random() < 0.1:
        members.insert(chance.randrange(len(members)), chance.choice(members))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", chance.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    return file.getvalue()


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        [length] = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def damaged_png(data: bytes, chance: random.Random) -> bytes:
    """Its chunks damaged, twice or gone, with checksums that are right."""
    chunks = split_png(data)
    at = chance.randrange(len(chunks))
    kind, body = chunks[at]
    if chance.random() < 0.2:
        chunks.insert(at, chance.choice(chunks))
    elif kind == b"tEXt":
        key, _, text = body.partition(b"\0")
        chunks[at] = kind, key + b"\0" + base64.b64encode(damaged(base64.b64decode(text), chance))
    elif kind == b"IDAT":
        chunks[at] = kind, zlib.compress(damaged(zlib.decompress(body), chance))
    else:
        chunks[at] = kind, damaged(body, chance)
    return join_png(chunks)


def made(number: int) -> tuple[str, bytes]:
    """The file of this number: its suffix, and what is in it."""
    if number < len(HARMFUL):
        suffix, make = list(HARMFUL.values())[number]
        return suffix, make()
    chance = random.Random(number)
    suffix, data = SEEDS[number % len(SEEDS)]
    kinds: list[Callable[[bytes, random.Random], bytes]] = [damaged]
    if data.startswith(b"PK"):
        kinds.append(damaged_zip)
    elif data.startswith(b"\x89PNG"):
        kinds.append(damaged_png)
    elif suffix in (".pt", ".bin", ".ckpt", ".optim"):
        kinds.append(damaged_pickle)
    try:
        for _ in range(chance.choice([1, 1, 2, 3])):
            data = chance.choice(kinds)(data, chance)
    except Exception:  # what splits files raises anything on those too damaged to be damaged with skill
        pass
    return suffix, data


# --- the readers, watched


def memory(what: str) -> int:
    """This process's memory in bytes, now ("VmRSS") or at its peak since it was last forgotten ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024


def main(first: int, count: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))  # rather than all the machine has
    outcomes: Counter[str] = Counter()
    slowest = largest = (0, -1)
    failed = []
    with TemporaryDirectory() as folder:
        for number in range(first, first + count):
            suffix, data = made(number)
            path = Path(folder, f"cat{suffix}")
            path.write_bytes(data)
            del data
            ctypes.CDLL(None).malloc_trim(0)  # what making the file took
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            before = memory("VmRSS")
            faulthandler.dump_traceback_later(60, exit=True, file=sys.stdout)  # where even a signal does nothing
            print(end=f"\r{number}", file=sys.stderr, flush=True)  # the last one, where all ends at once
            began = time.process_time()
            try:
                READERS.get(suffix, load_embedding)(path)
                outcome = "read"
            except UserError as error:
                outcome = "refused"
                if len(str(error)) > 1000:
                    failed.append(f"{number}: a message of {len(str(error))} letters")
            except Exception as error:
                outcome = "failed"
                failed.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
            took = time.process_time() - began
            faulthandler.cancel_dump_traceback_later()
            peak = memory("VmHWM") - before
            outcomes[f"{suffix} {outcome}"] += 1
            slowest, largest = max(slowest, (took, number)), max(largest, (peak, number))
            if took > MAX_SECONDS or peak > MAX_PEAK_BYTES:
                failed.append(f"{number}: {took:.1f} s, {peak / 2**20:.0f} MiB")
            if number < len(HARMFUL):
                print(f"{list(HARMFUL)[number]}: {outcome}, {took:.2f} s, {peak / 2**20:.0f} MiB")
    print(f"{count} files: {', '.join(f'{n} {outcome}' for outcome, n in sorted(outcomes.items()))}")
    print(f"slowest: {slowest[0]:.2f} s (number {slowest[1]}); largest: {largest[0] / 2**20:.0f} MiB ({largest[1]})")
    for each in failed:
        print(f"tests.formats.fuzz.made({each.partition(':')[0]}) {each.partition(':')[2]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
