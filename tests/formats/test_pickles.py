import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict

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
    with pytest.raises(UserError, match=r"'cat\.pt'") as error:
        read(tmp_path, data)
    assert not (tmp_path / "harm").exists()
    assert "weights_only" not in str(error.value)  # torch would advise to switch the protection off


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


SMALL = {zipped: saved({"clip_l": torch.ones(1, 2), "step": 7}, zipped) for zipped in (True, False)}


@pytest.mark.parametrize("zipped", [True, False])
@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_damaged(tmp_path_factory, zipped, share):
    whole = SMALL[zipped]
    with pytest.raises(UserError, match=r"'cat\.pt' cannot be read as a file of torch"):
        read(tmp_path_factory.mktemp("e"), whole[: int(len(whole) * share)])
