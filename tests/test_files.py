import os
from pathlib import Path

import pytest

from textinv_core.files import numbered, readable_stem, sweep, write_atomically


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "x.csv"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two\r\n\0")
    assert path.read_bytes() == b"two\r\n\0"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, failing):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def fail(*_):
        raise KeyboardInterrupt  # as the host's interrupt, no Exception

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle):
        calls.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def spy_replace(source, target):
        calls.append(("replace", os.path.dirname(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "x", b"12345")
    assert calls == [("fsync", 5), ("replace", str(tmp_path))]


def test_the_longest_name_works(tmp_path):
    write_atomically(tmp_path / ("x" * 255), b"1")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "x", b"1")


def test_numbered_takes_the_next_free_number(tmp_path):
    path = tmp_path / "my.cat.safetensors"
    assert numbered(path) == path
    path.touch()
    assert numbered(path) == tmp_path / "my.cat_2.safetensors"
    (tmp_path / "my.cat_2.safetensors").touch()
    (tmp_path / "my.cat_4.safetensors").touch()
    assert numbered(path) == tmp_path / "my.cat_3.safetensors"


def test_numbered_minds_files_of_other_suffixes(tmp_path):
    (tmp_path / "cat.pt").touch()
    (tmp_path / "cat_2.bin").touch()
    assert numbered(tmp_path / "cat.png", (".pt", ".bin")) == tmp_path / "cat_3.png"
    assert numbered(tmp_path / "cat.png") == tmp_path / "cat.png"


@pytest.mark.skipif(os.name == "nt", reason="names are no bytes on Windows")
@pytest.mark.parametrize(
    ("name", "text"), [(b"a cat.png", "a cat"), ("café.png".encode(), "café"), (b"\xe9.png", "\ufffd")]
)
def test_any_name_is_text_that_can_be_written(name, text):
    assert readable_stem(os.fsdecode(name)) == text
    assert readable_stem(name.decode("ascii", "surrogateescape")) == text  # where the locale is C


def test_what_a_killed_process_was_writing_is_swept_up(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    write_atomically(tmp_path / "inside" / "kept", b"1")
    (tmp_path / ".own.tmp").write_bytes(b"")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as where it is killed before
    monkeypatch.setattr(os, "replace", lambda *_: None)
    write_atomically(tmp_path / "inside" / "lost", b"2")
    monkeypatch.undo()
    assert len([*(tmp_path / "inside").iterdir()]) == 2
    sweep(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"kept", ".own.tmp"}
