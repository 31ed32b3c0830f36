import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textinv_core.errors import UserError
from textinv_core.formats import pickles
from textinv_core.formats.pickles import dump, load

DATA = {"vectors": {"*": torch.arange(2 * 768.0).reshape(2, 768)}, "name": "cat", "step": 7}


def saved(data, zipped=True, **options):
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped, **options)
    return file.getvalue()


def read(tmp_path, data, max_bytes=2**26):
    (tmp_path / "cat.pt").write_bytes(data)
    return load(tmp_path / "cat.pt", max_bytes)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_limit_is_the_callers(tmp_path, zipped):
    data = saved(DATA, zipped)
    assert read(tmp_path, data, max_bytes=len(data))["step"] == 7
    with pytest.raises(UserError, match=r"'cat\.pt' was not opened: it has 0 MiB, and 0 are the most that is read"):
        read(tmp_path, data, max_bytes=len(data) - 1)


def test_what_is_dumped_comes_back_and_is_no_zip(tmp_path):
    data = dump(DATA)
    assert not data.startswith(b"PK")
    after = read(tmp_path, data)
    assert torch.equal(after["vectors"]["*"], DATA["vectors"]["*"]) and after["step"] == 7


KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
KINDS += [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16]
VIEWS = [
    lambda rows: rows,
    lambda rows: rows.T,
    lambda rows: rows[1:, ::2],
    lambda rows: rows[:0],
    lambda rows: rows[0, 0],
    lambda rows: rows[:1].expand(7, -1),
    lambda rows: torch.nn.Parameter(rows, requires_grad=False),
]


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3),
    height=st.integers(1, 5),
    width=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_tensors_are_torchs(tmp_path_factory, zipped, kinds, views, height, width, seed):
    if not zipped:  # torch writes float8 into old files, but reads none from them
        kinds = [kind for kind in kinds if "float8" not in str(kind)]
    drawn = torch.randn(height, width, generator=torch.Generator().manual_seed(seed)) * 30
    data = {str(n): [view(rows) for view in views] for n, rows in enumerate(map(drawn.to, kinds))}
    file = saved(data, zipped)
    expected = torch.load(io.BytesIO(file), weights_only=True)
    after = read(tmp_path_factory.mktemp("e"), file)
    assert after.keys() == expected.keys()
    for key in expected:
        for theirs, ours in zip(expected[key], after[key], strict=True):
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            assert torch.equal(ours.float(), theirs.float())
        assert len({each.untyped_storage().data_ptr() for each in after[key] if each.numel()}) <= 1


def rewritten(data, change):
    """A zip whose members (name, content) are changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(*change(name, old.read(name)))
    return file.getvalue()


def test_numbers_of_other_processors(tmp_path):
    def swapped(name, content):
        if name.endswith("byteorder"):
            return name, b"big"
        return name, np.frombuffer(content, "<f4").astype(">f4").tobytes() if "/data/" in name else content

    data = rewritten(saved(DATA), swapped)
    expected = torch.load(io.BytesIO(data), weights_only=True)["vectors"]["*"]
    assert torch.equal(expected, DATA["vectors"]["*"])
    assert torch.equal(read(tmp_path, data)["vectors"]["*"], expected)


def test_tensors_are_not_made_into_others(tmp_path):
    """torch.load takes what BUILD has for a tensor as arguments of `set_`."""
    data = saved({"a": torch.ones(4), "b": torch.zeros(4)}, zipped=False)
    assert read(tmp_path, data)["a"].tolist() == [1] * 4
    before, after = b"tq\x0cRq\rX\x01\x00\x00\x00b", b"tq\x0cRq\r)bX\x01\x00\x00\x00b"
    assert data.count(before) == 1
    with pytest.raises(UserError, match="it changes a tensor"):
        read(tmp_path, data.replace(before, after))


@pytest.mark.parametrize("order", [b"", b"middle", b"little\n", b"big" * 9])
def test_an_order_of_bytes_that_nobody_knows(tmp_path, order):
    data = rewritten(saved(DATA), lambda name, content: (name, order if name.endswith("byteorder") else content))
    with pytest.raises(UserError, match="order of its bytes is unknown"):
        read(tmp_path, data)


@pytest.mark.parametrize("length", range(1, 9))
def test_numbers_that_lie_anywhere_in_a_zip(tmp_path, length):
    data = rewritten(saved(DATA), lambda name, content: (name.replace("archive", "a" * length), content))
    rows = read(tmp_path, data)["vectors"]["*"]
    assert torch.equal(rows, DATA["vectors"]["*"])
    assert rows.data_ptr() % 4 == 0


def test_the_same_numbers_cannot_be_two_lengths(tmp_path):
    data = saved({"a": torch.ones(4), "b": torch.ones(2)})
    data = rewritten(data, lambda name, content: (name, content.replace(b"X\1\0\0\x001", b"X\1\0\0\x000")))
    with pytest.raises(UserError, match="the same numbers twice"):
        read(tmp_path, data)


def test_the_same_numbers_cannot_be_of_two_kinds(tmp_path):
    """torch.load takes all of them for the first kind."""
    data = saved({"a": torch.ones(4), "b": torch.ones(4, dtype=torch.int32)})
    data = rewritten(data, lambda name, content: (name, content.replace(b"X\1\0\0\x001", b"X\1\0\0\x000")))
    with pytest.raises(UserError, match="the same numbers twice"):
        read(tmp_path, data)


def test_files_are_read_inside_comfyui_too(tmp_path):
    with torch.inference_mode():
        assert torch.equal(read(tmp_path, saved(DATA))["vectors"]["*"], DATA["vectors"]["*"])


def test_two_members_of_one_name_are_refused(tmp_path):
    file = io.BytesIO(saved(DATA))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data.pkl", archive.read("archive/data.pkl"))
    with pytest.raises(UserError, match="two members of one name"):
        read(tmp_path, file.getvalue())
    file = io.BytesIO(rewritten(saved(DATA), lambda *member: member))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/DATA.PKL", archive.read("archive/data.pkl"))  # which torch would take
    with pytest.raises(UserError, match="two members of one name"):
        read(tmp_path, file.getvalue())


def with_two_lists(in_64_bits):
    """A zip of zeros for zipfile, of ones for torch: there is another list of members before the last."""
    data, lists = b"", []
    for number in (1, 0):
        part = rewritten(saved({"a": torch.full((4,), number)}), lambda *member: member)
        size, start = struct.unpack_from("<II", part, len(part) - 10)
        listed = bytearray(part[start : start + size])
        for match in re.finditer(b"PK\1\2", part[start : start + size]):
            # To the places in the last one zipfile adds the length of the other, which it takes for something before.
            further = len(data) - (0 if in_64_bits or number else size)
            [place] = struct.unpack_from("<I", listed, match.start() + 42)
            struct.pack_into("<I", listed, match.start() + 42, place + further)
        lists.append(bytes(listed))
        data += part[:start]
    count, size = lists[0].count(b"PK\1\2"), len(lists[0])
    if not in_64_bits:
        return data + b"".join(lists) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, len(data), 0)
    first = len(data) + size
    for listed in lists:
        data += listed + struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, len(data))
    data += struct.pack("<4sIQI", b"PK\6\7", 0, first, 1)
    return data + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)


@pytest.mark.parametrize("in_64_bits", [False, True])
def test_a_zip_with_two_lists_of_members_is_refused(tmp_path, in_64_bits):
    data = with_two_lists(in_64_bits)
    assert torch.load(io.BytesIO(data), weights_only=True)["a"].tolist() == [1] * 4
    with pytest.raises(UserError, match="its list of members is not at its end"):
        read(tmp_path, data)


@pytest.mark.parametrize("end", [b"PK\5\6" + bytes(18), b"PK\5\6", bytes(30), b"PK\6\7" + bytes(38), b""])
def test_a_zip_without_a_list_of_members(tmp_path, end):
    with pytest.raises(UserError, match="cannot be read as a file of torch"):
        read(tmp_path, b"PK\3\4" + end)


def test_the_state_of_an_optimizer(tmp_path):
    """A1111 keeps it beside an embedding as `.optim`."""
    rows = torch.nn.Parameter(torch.ones(2, 768))
    optimizer = torch.optim.AdamW([rows], lr=0.005)
    (rows * torch.arange(768)).sum().backward()
    optimizer.step()
    expected = optimizer.state_dict()
    after = read(tmp_path, saved({"hash": "41a2", "optimizer_state_dict": expected}))
    assert after["hash"] == "41a2"
    assert after["optimizer_state_dict"]["param_groups"] == expected["param_groups"]
    assert all(
        torch.equal(after["optimizer_state_dict"]["state"][0][key], expected["state"][0][key])
        for key in expected["state"][0]
    )
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 768))])
    other.load_state_dict(after["optimizer_state_dict"])


def test_a_checkpoint_is_mapped_and_never_written_to(tmp_path):
    data = saved({"state_dict": {"a": torch.ones(300_000, dtype=torch.float16)}})
    (tmp_path / "model.ckpt").write_bytes(data)
    with pytest.raises(UserError, match="its tensors would take 1 MiB, and 1 are"):
        load(tmp_path / "model.ckpt", 1_100_000)
    weights = load(tmp_path / "model.ckpt")["state_dict"]["a"]
    weights.zero_()
    assert (tmp_path / "model.ckpt").read_bytes() == data


@pytest.mark.parametrize("zipped", [True, False])
def test_the_same_numbers_again_and_again_are_too_many(tmp_path, zipped):
    data = saved({f"e{n}": torch.ones(1).expand(10**5, 830) for n in range(9)}, zipped)
    assert len(data) < 5000
    with pytest.raises(UserError, match="its tensors would take 2850 MiB, and 64 are the most"):
        read(tmp_path, data)
    with pytest.raises(UserError, match="its tensors would take 2850 MiB, and 0 are the most"):
        load(tmp_path / "cat.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_nothing_can_be_too_many_too(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr("textinv_core.formats.unpickle.MAX_TENSORS", 8)
    assert len(read(tmp_path, saved([torch.empty(0) for _ in range(8)], zipped))) == 8
    with pytest.raises(UserError, match="more than 8 tensors"):
        read(tmp_path, saved([torch.empty(0) for _ in range(9)], zipped))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")  # to open it would wait for a writer
    (tmp_path / "device.pt").symlink_to("/dev/zero")
    for name, what in (("folder.pt", "a folder"), ("pipe.pt", "a pipe"), ("device.pt", "a pipe or a device")):
        with pytest.raises(UserError, match=rf"'{name}' was not opened: it is .*{what}"):
            load(tmp_path / name, 2**26)


class Calls:
    """Pickled as a call, which opening the file would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", [lambda evil: {"*": evil}, lambda evil: {**DATA, "vectors": evil}])
def test_nothing_in_a_file_is_run(tmp_path, zipped, protocol, place):
    data = saved(place(Calls(os.mkdir, str(tmp_path / "harm"))), zipped, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"'cat\.pt' was not opened: it would have Python run \w+\.mkdir"):
        read(tmp_path, data)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "true", f"{os.system.__module__}.system"),
        (eval, "1", "__builtin__.eval"),
        (bytearray, 2**45, "__builtin__.bytearray"),  # torch would make it
        (torch.Tensor, 3, "torch.Tensor"),
    ],
)
def test_harmful_files_are_named_and_what_they_want(tmp_path, zipped, function, argument, name):
    data = saved({"*": Calls(function, argument)}, zipped)
    with pytest.raises(UserError, match=rf"'cat\.pt' was not opened: it would have Python run {re.escape(name)}.*harm"):
        read(tmp_path, data)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_torch_did_not_write_is_named_too(tmp_path, protocol):
    with pytest.raises(UserError, match=r"it would have Python run \w+\.system, which no file of its kind needs.*harm"):
        read(tmp_path, pickle.dumps(Calls(os.system, "true"), protocol))


def test_what_a_file_asks_for_does_nothing_to_a_terminal(tmp_path):
    with pytest.raises(UserError, match="would have Python run") as error:
        read(tmp_path, b"c\x1b[31m\n" + b"x" * 999 + b"\n.")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_harm_in_any_of_the_pickles_is_seen(tmp_path):
    whole = saved(DATA, False)
    first = pickle.dumps(Calls(os.mkdir, str(tmp_path / "harm")), protocol=2)
    with pytest.raises(UserError, match="was not opened"):
        read(tmp_path, first + whole)
    magic_and_version = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001))
    with pytest.raises(UserError, match="was not opened"):
        read(tmp_path, magic_and_version + first + whole)
    assert not (tmp_path / "harm").exists()


class Declares(Calls):
    """A tensor said to be of `shape`, on a storage of one number."""

    def __init__(self, shape):
        strides = torch.empty(shape, device="meta").stride()
        storage = torch.ones(1).storage()
        super().__init__(torch._utils._rebuild_tensor_v2, storage, 0, shape, strides, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(2, 768), (2**40, 768)])
def test_shapes_beyond_what_is_there_are_refused(tmp_path, zipped, shape):
    with pytest.raises(UserError, match=r"'cat\.pt' cannot be read as a file of torch"):
        read(tmp_path, saved({"*": Declares(shape)}, zipped))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(DATA, True))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        new.writestr(f"{old.namelist()[0].partition('/')[0]}/data/99", bytes(2**22))
    assert len(file.getvalue()) < 20_000
    with pytest.raises(UserError, match=r"'cat\.pt' cannot be read as a file of torch: it is compressed"):
        read(tmp_path, file.getvalue())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_without_end_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    assert read(tmp_path, saved(DATA, zipped))["step"] == 7
    with pytest.raises(UserError, match="cannot be read as a file of torch"):
        read(tmp_path, saved({**DATA, "note": "x" * 1000}, zipped))


SMALL = {zipped: saved({"clip_l": torch.ones(1, 2), "step": 7}, zipped) for zipped in (True, False)}


@pytest.mark.parametrize("zipped", [True, False])
@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_damaged(tmp_path_factory, zipped, share):
    whole = SMALL[zipped]
    with pytest.raises(UserError, match=r"'cat\.pt' cannot be read as a file of torch"):
        read(tmp_path_factory.mktemp("e"), whole[: int(len(whole) * share)])
