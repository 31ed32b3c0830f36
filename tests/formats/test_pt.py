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

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.formats import pt

ROWS = torch.arange(2 * 768.0).reshape(2, 768)
DATA = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": ROWS}, "name": "cat", "step": 7}


def saved(data, zipped, **options):
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped, **options)
    return file.getvalue()


def read(tmp_path, data):
    (tmp_path / "cat.pt").write_bytes(data)
    return load_embedding(tmp_path / "cat.pt")


class A1111(pickle.Unpickler):
    """What A1111 opens: few names, no others; storages stay empty, for it only looks whether the file is harmless."""

    NAMES = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage")

    def find_class(self, module, name):
        assert f"{module}.{name}" in self.NAMES
        return super().find_class(module, name)

    def persistent_load(self, pid):
        assert pid[0] == "storage"
        return torch.storage.TypedStorage(pid[4], dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("widths", [{"clip_l": 768}, {"clip_l": 768, "clip_g": 1280}])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a1111_opens_our_files(tmp_path, widths, suffix):
    path = tmp_path / f"cat{suffix}"
    vectors = {key: torch.randn(2, width) for key, width in widths.items()}
    save_embedding(Embedding("cat", vectors, 7, {"textinv.base_model": "abc"}), path)
    assert not zipfile.is_zipfile(path)  # of a zip it would know only some members
    with open(path, "rb") as file:
        data = [A1111(file).load() for _ in range(5)][3]
    if len(widths) == 1 and suffix == ".pt":
        assert data["string_to_param"].keys() == {"*"}
        assert (data["name"], data["step"]) == ("cat", 7)
        data = data["string_to_param"]
    assert sorted(rows.shape for rows in data.values()) == sorted(rows.shape for rows in vectors.values())


def test_a_view_is_saved_alone(tmp_path):
    large = torch.zeros(1000, 768)
    save_embedding(Embedding("cat", {"clip_l": large[:1]}), tmp_path / "cat.pt")
    assert (tmp_path / "cat.pt").stat().st_size < 5000


@pytest.mark.parametrize(
    "rows", [ROWS, torch.nn.Parameter(ROWS), ROWS.half(), ROWS.bfloat16(), ROWS.double(), ROWS.T.contiguous().T]
)
@pytest.mark.parametrize(
    ("kind", "zipped"), [(dict, True), (dict, False), (OrderedDict, True), (torch.nn.ParameterDict, True)]
)
def test_reads_what_torch_saved(tmp_path, zipped, rows, kind):
    terms = kind({"*": torch.nn.Parameter(rows) if kind is torch.nn.ParameterDict else rows})
    after = read(tmp_path, saved({**DATA, "string_to_param": terms}, zipped))
    assert after.step == 7
    assert torch.equal(after.vectors["clip_l"], rows.detach().float())


class Calls:
    """Pickled as a call, which opening the file would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", [lambda evil: {"*": evil}, lambda evil: {**DATA, "string_to_param": evil}])
def test_nothing_in_a_file_is_run(tmp_path, zipped, protocol, place):
    data = saved(place(Calls(os.mkdir, str(tmp_path / "harm"))), zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"'cat\.pt'") as error:
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
    with pytest.raises(
        ValueError, match=rf"'cat\.pt' was not opened: it would have Python run {re.escape(name)}.*harm"
    ):
        read(tmp_path, data)


def test_harm_in_any_of_the_pickles_is_seen(tmp_path):
    whole = saved(DATA, False)
    first = pickle.dumps(Calls(os.mkdir, str(tmp_path / "harm")), protocol=2)
    with pytest.raises(ValueError, match="was not opened"):
        read(tmp_path, first + whole)
    magic_and_version = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001))
    with pytest.raises(ValueError, match="was not opened"):
        read(tmp_path, magic_and_version + first + whole)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_one_value_repeated_without_end_is_refused(tmp_path, zipped):
    shape = (10**7, 768)
    data = saved({"*": torch.ones(1).expand(shape)}, zipped)
    assert len(data) < 5000
    with pytest.raises(ValueError, match=re.escape(f"of shape {list(shape)}, not vectors")):
        read(tmp_path, data)


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
    with pytest.raises(ValueError, match=r"'cat\.pt' cannot be read as a file of torch"):
        read(tmp_path, saved({"*": Declares(shape)}, zipped))


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(DATA, True))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        new.writestr(f"{old.namelist()[0].partition('/')[0]}/data/99", bytes(2**22))
    assert len(file.getvalue()) < 20_000
    monkeypatch.setattr(pt, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"'cat\.pt' cannot be read as a file of torch: it unpacks to 4 MiB"):
        read(tmp_path, file.getvalue())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_too_long_for_an_embedding_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(pt, "MAX_PICKLE_BYTES", 1000)
    assert read(tmp_path, saved(DATA, zipped)).step == 7
    with pytest.raises(ValueError, match="cannot be read as a file of torch"):
        read(tmp_path, saved({**DATA, "note": "x" * 1000}, zipped))


SMALL = {zipped: saved({"clip_l": torch.ones(1, 2), "step": 7}, zipped) for zipped in (True, False)}


@pytest.mark.parametrize("zipped", [True, False])
@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_damaged(tmp_path_factory, zipped, share):
    whole = SMALL[zipped]
    with pytest.raises(ValueError, match=r"'cat\.pt' cannot be read as a file of torch"):
        read(tmp_path_factory.mktemp("e"), whole[: int(len(whole) * share)])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None)
@given(data=st.data())
def test_one_wrong_byte_is_at_worst_a_value_error(tmp_path_factory, zipped, data):
    whole = SMALL[zipped]
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    try:
        assert read(tmp_path_factory.mktemp("e"), changed).vectors
    except ValueError as error:
        assert "cat" in str(error)
