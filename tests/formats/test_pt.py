import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.errors import UserError

ROWS = torch.arange(2 * 768.0).reshape(2, 768)
DATA = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": ROWS}, "name": "cat", "step": 7}


def saved(data, zipped=True, **options):
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
    ("kind", "zipped"),
    [(dict, True), (dict, False), (OrderedDict, True), (torch.nn.ParameterDict, True), (torch.nn.ParameterDict, False)],
)
def test_reads_what_torch_saved(tmp_path, zipped, rows, kind):
    terms = kind({"*": torch.nn.Parameter(rows) if kind is torch.nn.ParameterDict else rows})
    after = read(tmp_path, saved({**DATA, "string_to_param": terms}, zipped))
    assert after.step == 7
    assert torch.equal(after.vectors["clip_l"], rows.detach().float())


@pytest.mark.parametrize("zipped", [True, False])
def test_what_an_embedding_does_not_need_is_refused(tmp_path, zipped):
    with pytest.raises(UserError, match=r"'cat\.pt' was not opened: it would have Python run torch\.Tensor.*harm"):
        read(tmp_path, saved({**DATA, "hook": torch.Tensor}, zipped))


@pytest.mark.parametrize("zipped", [True, False])
def test_one_value_repeated_without_end_is_refused(tmp_path, zipped):
    shape = (10**7, 768)
    data = saved({"*": torch.ones(1).expand(shape)}, zipped)
    assert len(data) < 5000
    with pytest.raises(UserError, match="its tensors would take 29297 MiB, and 64 are the most"):
        read(tmp_path, data)


SMALL = {zipped: saved({"clip_l": torch.ones(1, 2), "step": 7}, zipped) for zipped in (True, False)}


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
    except UserError as error:
        assert "cat" in str(error)
