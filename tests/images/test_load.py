"""Reading folders of real picture files of many kinds."""

import logging
import struct
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textinv_core.errors import UserError
from textinv_core.images import load, load_folder, load_image
from textinv_core.picture import Picture
from textinv_core.picture_kinds import FURTHER_KINDS

# What pillow warns of, and the pack refuses.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

# Two by three, so that a swap of height and width shows; each pixel another colour.
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [128, 64, 32], [0, 0, 0]]], dtype=np.uint8
)
PICTURE = torch.from_numpy(PIXELS).float() / 255


def save(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(PIXELS)).save(path, **options)
    return path


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file that claims to be of that size and breaks off where its pixels should begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", len(header) - 4), struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + size + header + check + struct.pack(">I", 1000) + b"IDAT"


def names(loaded: Iterable[Picture]) -> list[str]:
    return [picture.name for picture in loaded]


def captions_of(loaded: Iterable[Picture]) -> list[str]:
    return [picture.caption for picture in loaded]


# load_image


@pytest.mark.parametrize("kind", [".avif", ".jxl"])
def test_kinds_that_this_pillow_may_open(tmp_path, kind):
    if kind not in FURTHER_KINDS:
        pytest.skip(f"this pillow opens no {kind}")
    grey = Image.new("RGBA", (64, 48), (128, 128, 128, 100))
    save(tmp_path / f"a{kind}", grey)
    [picture] = load_folder(tmp_path, ".")
    assert picture.pixels.shape == (48, 64, 3)
    assert (picture.pixels - 128 / 255).abs().max() < 0.02
    assert (picture.mask - 100 / 255).abs().max() < 0.02


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.TIF", "a.webp"])
def test_every_kind_of_file_gives_its_pixels(tmp_path, name):
    image, mask = load_image(save(tmp_path / name, lossless=True))  # which only webp heeds
    assert image.dtype == mask.dtype == torch.float32
    assert torch.equal(image, PICTURE)
    assert torch.equal(mask, torch.ones(2, 3))


@pytest.mark.parametrize(("name", "byte_order"), [("a.png", "<"), ("a.tif", "<"), ("a.tif", ">")])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name, byte_order):
    grey = np.array([[0, 1000, 65535], [300, 32768, 40000]], dtype=f"{byte_order}u2")
    image, _ = load_image(save(tmp_path / name, Image.fromarray(grey)))
    expected = torch.from_numpy(grey.astype(np.float32)) / 65535
    assert torch.equal(image, expected[..., None].expand(2, 3, 3))


@pytest.mark.parametrize(
    ("values", "white"), [([0.0, 0.25, 1.0], 1), ([0.0, 51.0, 200.0], 255), ([0.0, 9e5, 3e5], 9e5)]
)
def test_float_grey_is_scaled_by_what_its_white_must_be(tmp_path, values, white):
    image, _ = load_image(save(tmp_path / "a.tif", Image.fromarray(np.array([values], dtype=np.float32))))
    assert torch.allclose(image[0, :, 0], torch.tensor(values) / white)


def test_32_bit_integers(tmp_path):
    grey = np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32)
    image, _ = load_image(save(tmp_path / "a.tif", Image.fromarray(grey)))
    assert torch.allclose(image[0, :, 1], torch.tensor([0, 0.5, 1]))


@pytest.mark.parametrize(("mode", "name"), [("1", "a.png"), ("L", "a.png"), ("P", "a.png"), ("YCbCr", "a.tif")])
def test_other_modes_become_rgb(tmp_path, mode, name):
    picture = Image.new("RGB", (3, 2), "white").convert(mode)
    # Compressed: pillow 12.3, the last for Python 3.10, cannot read plain YCbCr of its own.
    image, mask = load_image(save(tmp_path / name, picture, compression="tiff_lzw"))
    assert torch.equal(image, torch.ones(2, 3, 3))
    assert torch.equal(mask, torch.ones(2, 3))


def test_cmyk_jpeg(tmp_path):
    image, _ = load_image(save(tmp_path / "a.jpg", Image.new("CMYK", (3, 2), (0, 255, 255, 0)), quality=100))
    assert image.shape == (2, 3, 3)
    assert torch.allclose(image, torch.tensor([1.0, 0, 0]).expand(2, 3, 3), atol=0.02)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_becomes_the_mask(tmp_path, mode):
    alpha = np.array([[0, 128, 255], [255, 0, 0]], dtype=np.uint8)
    picture = Image.new("RGB", (3, 2), "white")
    picture.putalpha(Image.fromarray(alpha))
    image, mask = load_image(save(tmp_path / "a.png", picture.convert(mode)))
    assert torch.equal(mask, torch.from_numpy(alpha).float() / 255)
    assert torch.equal(image, torch.ones(2, 3, 3)), "colours under transparent places stay"


def test_transparent_colour_of_a_palette_is_masked(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), mode="P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for name in ("a.png", "a.gif"):
        image, mask = load_image(save(tmp_path / name, picture, transparency=1))
        assert torch.equal(mask, torch.tensor([[1.0, 0, 1], [1, 0, 1]])), name
        assert torch.equal(image[0, 2], torch.tensor([0.0, 0, 1])), name


def test_palette_without_transparency_is_opaque(tmp_path):
    image, mask = load_image(save(tmp_path / "a.png", Image.fromarray(PIXELS).quantize(8)))
    assert torch.allclose(image, PICTURE, atol=0.01)
    assert torch.equal(mask, torch.ones(2, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_picture_and_mask(tmp_path, orientation):
    upright = np.dstack([PIXELS, np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)])
    # How a camera stores a picture for each orientation: the way back from the turn that readers make.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    image, mask = load_image(path)
    assert torch.equal(image, PICTURE)
    assert torch.equal(mask, torch.from_numpy(upright[..., 3]).float() / 255)


def test_exif_rotated_jpeg(tmp_path):
    halves = np.zeros((16, 32, 3), dtype=np.uint8)
    halves[:, :16] = 255  # left white, right black
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: left becomes top
    image, _ = load_image(save(tmp_path / "a.jpg", Image.fromarray(halves), exif=exif, quality=100))
    assert image.shape == (32, 16, 3)
    assert image[:15].min() > 0.95
    assert image[17:].max() < 0.05


def test_first_frame_of_a_gif(tmp_path):
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    image, _ = load_image(save(tmp_path / "a.gif", red, save_all=True, append_images=[blue]))
    assert torch.equal(image, torch.tensor([1.0, 0, 0]).expand(2, 3, 3))


def broken_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that cannot be read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {
        "truncated.jpg": save(folder / "whole.jpg", noise).read_bytes()[:1000],
        "truncated.png": save(folder / "whole.png", noise).read_bytes()[:1000],
        "text.png": b"this is no picture",
        "empty.png": b"",
        "other_kind.png": b"P6 1 1 255\n\x00\x00\x00",  # a PPM, which pillow would read if asked
        "large.png": png_claiming(11_000, 10_000),
        "bomb.png": png_claiming(60_000, 60_000),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for name in ("whole.jpg", "whole.png"):
        (folder / name).unlink()
    return {name: folder / name for name in files}


def test_broken_files_are_errors_with_a_reason(tmp_path):
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(UserError, match=r"\w"):
            load_image(path)
            pytest.fail(f"{name} was read")


def test_size_is_refused_before_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(png_claiming(11_000, 10_000))
    # Decoding it would end in another error.
    with pytest.raises(UserError, match="11000 x 10000 are more than 100 million"):
        load_image(tmp_path / "a.png")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_image(tmp_path / "a.png")


# load_folder


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a folder `set` of one picture, and a picture outside."""
    save(tmp_path / "outside" / "secret.png")
    save(tmp_path / "root" / "set" / "cat.png")
    return tmp_path / "root"


def test_pictures_masks_captions_and_names_stay_together(tmp_path):
    for i, name in enumerate(["10 ten", "9 nine", "sub/1 one"], start=1):
        picture = Image.new("RGBA", (i, i + 1), (0, 0, 0, i))
        save(tmp_path / f"{name}.png", picture).with_suffix(".txt").write_text(f"words of {name}")
    loaded = list(load_folder(tmp_path, ".", recursive=True))
    assert names(loaded) == ["9 nine", "10 ten", "sub/1 one"]
    assert captions_of(loaded) == ["words of 9 nine", "words of 10 ten", "words of sub/1 one"]
    assert [tuple(picture.pixels.shape) for picture in loaded] == [(3, 2, 3), (2, 1, 3), (4, 3, 3)]
    assert [tuple(picture.mask.shape) for picture in loaded] == [(3, 2), (2, 1), (4, 3)]
    assert [round(float(picture.mask[0, 0]) * 255) for picture in loaded] == [2, 1, 3]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("auto", ["a red house", "blue_house"]),
        ("sidecar", ["a red house", ""]),
        ("filename", ["red_house", "blue_house"]),
        ("none", ["", ""]),
    ],
)
def test_where_captions_come_from(tmp_path, captions, expected):
    save(tmp_path / "01-red_house.png").with_suffix(".txt").write_text("a red house")
    save(tmp_path / "02-blue_house.png")
    assert captions_of(load_folder(tmp_path, ".", captions=captions)) == expected


def test_words_of_the_file_name(tmp_path):
    save(tmp_path / "01-red_house.png")
    assert captions_of(load_folder(tmp_path, ".", word_regex="[a-z]+", join=", ")) == ["red, house"]
    with pytest.raises(ValueError, match="cannot be read"):
        list(load_folder(tmp_path, ".", word_regex="[a-z"))


def test_unknown_captions(tmp_path):
    with pytest.raises(UserError, match=r"'blip'.*auto, sidecar, filename, none"):
        list(load_folder(tmp_path, ".", captions="blip"))


def test_unreadable_files_are_left_out_and_named_in_one_warning(tmp_path, caplog):
    broken = broken_files(tmp_path)
    save(tmp_path / "good.png")
    save(tmp_path / "word.png").with_suffix(".txt").write_bytes(b"\xff\xfe\xfa")
    loaded = list(load_folder(tmp_path, "."))
    assert names(loaded) == ["good", "word"]
    assert captions_of(loaded) == ["good", "word"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.name == "textinv"  # not the root: its first message would have Python show every line twice
    for name in (*broken, "word.txt"):
        assert name in record.getMessage()
    assert record.getMessage().count("\n") == len([*broken, "word.txt"])


def test_no_warning_without_reason(tmp_path, caplog):
    save(tmp_path / "good.png")
    assert names(load_folder(tmp_path, ".")) == ["good"]
    assert not caplog.records


def test_a_folder_without_pictures_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no pictures \(png, .*\)\. Put"):
        list(load_folder(tmp_path, "."))
    save(tmp_path / "deep" / "a.png")
    with pytest.raises(UserError, match="The folders in it have 1: switch recursive on"):
        list(load_folder(tmp_path, "."))


def test_a_folder_of_broken_pictures_says_what_is_wrong(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"(?s)None of the pictures.*text\.png: it is not a picture"):
        list(load_folder(tmp_path, "."))


def test_the_root_may_be_a_link_and_links_inside_it_work(root):
    linked = root.parent / "linked"
    linked.symlink_to(root)
    (root / "alias").symlink_to("set")
    (root / "set" / "dog.png").symlink_to("cat.png")
    assert names(load_folder(linked, "alias")) == ["cat", "dog"]


def test_links_to_outside_are_neither_read_nor_silent(root, caplog):
    outside = root.parent / "outside"
    (outside / "secret.txt").write_text("secret words")
    (root / "set" / "link.png").symlink_to(outside / "secret.png")
    (root / "set" / "cat.txt").symlink_to(outside / "secret.txt")
    (root / "set" / "folder").symlink_to(outside)
    loaded = list(load_folder(root, "set", recursive=True))
    assert names(loaded) == ["cat"]
    assert captions_of(loaded) == ["cat"]
    _, *left_out = caplog.messages[-1].splitlines()
    assert [line.split()[0] for line in left_out] == ["cat.txt:", "link.png:"]
    assert all("outside" in line for line in left_out)
    assert captions_of(load_folder(root, "set", captions="sidecar")) == [""]


# Reading ahead


@pytest.fixture
def read(monkeypatch):
    """The names of the files that `load_folder` has begun to read, in order."""
    begun = []

    def read(path):
        begun.append(path.name)
        return real(path)

    real = load._read
    monkeypatch.setattr(load, "_read", read)
    return begun


def pictures_of(folder, count):
    for n in range(count):
        Image.new("L", (3, 2), n).save(folder / f"{n}.png")
    return load_folder(folder, ".")


def test_a_few_pictures_are_read_ahead_and_no_more(tmp_path, read):
    pictures = pictures_of(tmp_path, 12)
    assert read == []  # nothing before the first is asked for
    for taken in range(1, 5):
        next(pictures)
        deadline = time.monotonic() + 10
        while len(read) < taken + load.AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read) == taken + load.AHEAD


def test_pictures_come_in_order_however_long_each_takes(tmp_path, monkeypatch):
    real, second = load._read, threading.Event()

    def read(path):
        if path.name == "0.png":
            assert second.wait(10)
        if path.name == "1.png":
            second.set()
        return real(path)

    monkeypatch.setattr(load, "_read", read)
    pictures = list(pictures_of(tmp_path, 4))
    assert [picture.name for picture in pictures] == ["0", "1", "2", "3"]
    assert [round(picture.pixels[0, 0, 0].item() * 255) for picture in pictures] == [0, 1, 2, 3]


def test_who_stops_early_stops_the_reading(tmp_path, read):
    pictures = pictures_of(tmp_path, 12)
    next(pictures)
    pictures.close()
    begun = len(read)
    assert begun <= 1 + load.AHEAD
    time.sleep(0.1)
    assert len(read) == begun
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_want_of_memory_comes_at_its_own_picture(tmp_path, monkeypatch):
    real = load._read

    def read(path):
        if path.name == "2.png":
            raise MemoryError
        return real(path)

    monkeypatch.setattr(load, "_read", read)
    pictures = pictures_of(tmp_path, 6)
    assert [next(pictures).name for _ in range(2)] == ["0", "1"]
    with pytest.raises(MemoryError):
        next(pictures)
