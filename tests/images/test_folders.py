"""Which folders may be read, and what is listed."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from textinv_core.errors import UserError
from textinv_core.images import contained_folder, folder_fingerprint, list_images, list_subfolders


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path)
    return path


def relative_names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


# Listing


def test_natural_order(tmp_path):
    names = ["01.png", "1.png", "a.png", "a/9.png", "a/10.png", "a1.png", "b/1.png", "I1.jpg", "i2.png", "I10.png"]
    for name in reversed(names):
        save(tmp_path / name)
    assert relative_names(list_images(tmp_path, recursive=True), tmp_path) == names


def test_only_pictures_that_are_not_hidden(tmp_path):
    for name in ["a.PNG", "b.jpeg", ".c.png", "deep/d.png", ".cache/e.png"]:
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "folder.png").mkdir()
    assert relative_names(list_images(tmp_path), tmp_path) == ["a.PNG", "b.jpeg"]
    assert relative_names(list_images(tmp_path, recursive=True), tmp_path) == ["a.PNG", "b.jpeg", "deep/d.png"]


def test_subfolders(tmp_path):
    for name in ["set10", "set2/b/c/d/too deep", "set2/a", ".hidden"]:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    assert list_subfolders(tmp_path) == ["set2", "set2/a", "set2/b", "set2/b/c", "set2/b/c/d", "set10"]
    assert list_subfolders(tmp_path, limit=2) == ["set2", "set10"], "upper levels first"
    assert list_subfolders(tmp_path / "nowhere") == []


# What may be read


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a folder `set` of one picture, and a picture outside."""
    save(tmp_path / "outside" / "secret.png")
    save(tmp_path / "root" / "set" / "cat.png")
    return tmp_path / "root"


@pytest.mark.parametrize("folder", ["set", "./set", " set ", "set/", "set\\", "set/../set", "set/./"])
def test_folders_inside(root, folder):
    assert contained_folder(root, folder).samefile(root / "set")


@pytest.mark.parametrize("folder", ["", ".", "set/.."])
def test_the_root_itself(root, folder):
    assert contained_folder(root, folder).samefile(root)


@pytest.mark.parametrize(
    "folder",
    ["..", "../outside", "set/../../outside", "..\\outside", "link", "link/..", "C:\\x", "C:", "\\\\host\\x", "a\0b"],
)
def test_folders_outside_are_refused(root, folder):
    (root / "link").symlink_to(root.parent / "outside")
    with pytest.raises(UserError, match="nothing outside is read"):
        contained_folder(root, folder)


def test_absolute_paths_are_refused_even_into_the_root(root):
    for folder in (str(root.parent / "outside"), str(root / "set"), "/"):
        with pytest.raises(UserError, match="nothing outside is read"):
            contained_folder(root, folder)


def test_a_name_that_begins_like_the_root_is_outside(root):
    (root.parent / "root2").mkdir()
    with pytest.raises(UserError, match="nothing outside is read"):
        contained_folder(root, "../root2")


def test_links_that_go_in_circles(root):
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    with pytest.raises(UserError, match="There is no folder 'a'"):
        contained_folder(root, "a")


def test_missing_folder_says_what_there_is(root):
    (root / "other").mkdir()
    with pytest.raises(UserError, match=r"no folder 'sat' .* There is: other, set\."):
        contained_folder(root, "sat")
    with pytest.raises(UserError, match="is a file"):
        contained_folder(root, "set/cat.png")


# Odd names. Unix allows nearly all of these; Windows refuses to make most, which is as well.
ODD = [
    "cats ",
    " cats",
    "cats",
    "a\\b",
    "a",
    "b",
    "d:cats",
    "C:",
    "\\",
    "b\\..\\outside",
    "~",
    "line\nbreak",
    "\u3000",
    "\udcff",
]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_with_an_odd_name_is_listed_and_taken(tmp_path, name):
    try:
        (tmp_path / name).mkdir()
    except (OSError, ValueError):
        pytest.skip("no folder can have this name here")
    save(tmp_path / name / "cat.png")
    (listed,) = list_subfolders(tmp_path)
    assert relative_names(list_images(contained_folder(tmp_path, listed)), tmp_path / name) == ["cat.png"]
    assert folder_fingerprint(tmp_path, listed)


def test_the_exact_name_comes_before_a_likely_one(tmp_path):
    for name in ("cats", "cats ", "a\\b", "a/b"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("cats", "cats ", "a\\b", "a/b"):
        assert contained_folder(tmp_path, name).samefile(tmp_path / name), name
    assert contained_folder(tmp_path, " cats").samefile(tmp_path / "cats")
    assert contained_folder(tmp_path, "a\\b\\").samefile(tmp_path / "a" / "b")


any_name = st.one_of(st.sampled_from(ODD), st.text("ab ./\\:~\n\u3000\udcff", min_size=1, max_size=6)).filter(
    lambda name: "/" not in name and name not in (".", "..")
)


@settings(deadline=None)
@given(st.lists(st.lists(any_name, min_size=1, max_size=3), max_size=6))
def test_every_listed_folder_is_taken_for_itself(paths):
    with tempfile.TemporaryDirectory() as folder:
        for names in paths:
            os.makedirs(os.path.join(folder, *names), exist_ok=True)
        for listed in list_subfolders(folder):
            assert contained_folder(folder, listed).samefile(f"{folder}/{listed}"), listed


PIECES = ["..", ".", "/", "\\", " ", "set", "link", "inner", "outside", "C:", "~", "\0", "\ud800", "..\\outside"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@example("link")
@example("link/../outside")
@example("..\\outside/../../outside")
@example("a" * 5000)
def test_nothing_outside_is_ever_taken(folder):
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent, "root")
        for made in ("set/inner", "C:", "..\\outside", "../outside/inner"):
            (root / made).mkdir(parents=True)
        (root / "link").symlink_to(Path(parent, "outside"))
        (root / "set" / "link").symlink_to(Path(parent))
        try:
            taken = contained_folder(root, folder)
        except UserError:
            return
        real, real_root = os.path.realpath(taken), os.path.realpath(root)
        assert os.path.isdir(real) and (real + os.sep).startswith(real_root + os.sep)


# folder_fingerprint


def test_fingerprint_changes_with_every_file(tmp_path):
    seen = []

    def changed() -> bool:
        seen.append(folder_fingerprint(tmp_path, "."))
        assert folder_fingerprint(tmp_path, ".") == seen[-1], "the same folder gives the same fingerprint"
        return seen[-1] not in seen[:-1]

    path = save(tmp_path / "a.png")
    assert changed()
    save(tmp_path / "b.png")
    assert changed(), "a picture was added"
    (tmp_path / "a.txt").write_text("words")
    assert changed(), "a caption was added"
    (tmp_path / "a.txt").write_text("other words")
    assert changed(), "a caption was changed"
    os.utime(path, ns=(1, 1))
    assert changed(), "a picture has another time"
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert changed(), "a picture was renamed"
    (tmp_path / "c.png").unlink()
    assert changed(), "a picture was removed"
    (tmp_path / "other.md").write_text("no matter")
    save(tmp_path / "deep" / "d.png")
    assert not changed(), "what is not loaded does not count"
    assert folder_fingerprint(tmp_path, ".", recursive=True) not in seen


def test_fingerprint_refuses_what_loading_refuses(tmp_path):
    with pytest.raises(UserError, match="nothing outside is read"):
        folder_fingerprint(tmp_path, "..")
