import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.errors import UserError
from textinv_core.formats import FORMATS, a1111, image_embedding, is_marked
from textinv_core.formats.overlay import written_on

PICTURE = torch.rand(64, 80, 3, generator=torch.Generator().manual_seed(0))
EMBEDDING = Embedding("cat", {"clip_l": torch.tensor([[0.5, -1.0]])}, 7, {"textinv.sd_checkpoint": "81761151"})
TEXT = (
    b'{"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": [[0.5, -1.0]]}}, "name": "cat", '
    b'"step": 7, "sd_checkpoint": "81761151", "sd_checkpoint_name": null, "textinv.encoder": "clip_l"}'
)


@pytest.fixture
def saved(tmp_path):
    save_embedding(EMBEDDING, tmp_path / "saved.png", PICTURE)
    return tmp_path / "saved.png"


def check_holds(path, embedding=EMBEDDING):
    after = load_embedding(path)
    assert (after.name, after.step, after.metadata) == (embedding.name, embedding.step, embedding.metadata)
    assert torch.equal(after.vectors["clip_l"], embedding.vectors["clip_l"])


def a1111_noise(n):
    s, numbers = 0, []
    for _ in range(n):
        s = (1664525 * s + 1013904223) % 2**32
        numbers.append(s % 255)
    return numbers


def a1111_reads(pixels):
    """The reference's reader, number by number: compressed bytes with what follows them."""
    height = len(pixels)
    black = [x for x in range(pixels.shape[1]) if not (pixels[:, x] & 15).any()]
    low, high = pixels[:, : black[0]].flatten(), pixels[:, black[-1] + 1 :].flatten()
    assert len(low) == len(high) and len(low) % (3 * height) == 0
    return bytes(
        ((h ^ g) & 15) << 4 | ((low_ ^ g) & 15)
        for h, low_, g in zip(high.tolist(), low.tolist(), a1111_noise(len(low)), strict=True)
    )


def test_noise():
    assert image_embedding.noise(10).tolist() == [253, 242, 127, 44, 157, 27, 239, 133, 38, 79]
    for n in (0, 1, 2, 3, 4, 5, 1000):
        assert image_embedding.noise(n).tolist() == a1111_noise(n)


def test_the_text_is_a1111s_to_the_byte(saved):
    with Image.open(saved) as image:
        assert image.text == {"sd-ti-embedding": base64.b64encode(TEXT).decode()}
    assert b"tEXtsd-ti-embedding\0" + base64.b64encode(TEXT) in saved.read_bytes()


def test_the_pixels_are_a1111s(saved):
    pixels = np.array(Image.open(saved))
    compressed = zlib.compress(TEXT, 9)
    stripe = a1111_reads(pixels)
    assert zlib.decompressobj().decompress(stripe) == TEXT
    assert stripe == (compressed * len(stripe))[: len(stripe)]  # over and over, to the end of the stripe
    width = len(stripe) // (64 * 3)
    assert pixels.shape == (64, width + 1 + 80 + 1 + width, 3)
    assert not pixels[:, [width, width + 81]].any()
    picture = (PICTURE * 255).round().numpy().astype(np.uint8)
    assert (pixels[:, width + 1 : width + 81] == written_on(picture, "<cat>", ("", "[81761151]", "1v 7s"))).all()


@pytest.mark.parametrize("extra", range(7))
def test_the_width_of_stripes(extra):
    """n bytes are brought to a multiple of the height, then of three times that; each time by at least one."""
    height, text = 1, bytes(range(extra))
    n = len(zlib.compress(text, 9))
    size = n + (height - n % height)
    size += 3 * height - size % (3 * height)
    left, right = image_embedding.stripes(text, height, torch.ones(4))
    assert left.shape == right.shape == (height, size // 3, 3)


def test_the_dots_of_stripes():
    shades = np.arange(0, 250, 25, dtype=np.uint8)
    dots = image_embedding.ornament(32, 32, shades)
    assert not (dots & 0x0F).any()
    assert dots[13, 1].tolist() == [shades[2] & 0xF0] * 3  # the third dot downwards: 4 to the right
    assert dots[5, 5].tolist() == [shades[6] & 0xF0] * 3  # five a column; the second of the second column
    assert not dots[2:9, 9].any()  # between dots
    assert dots[5, 13].tolist() == [shades[11 % 10] & 0xF0] * 3  # after the last shade the first


def test_dots_have_the_shades_of_the_first_vector(monkeypatch):
    seen = []
    monkeypatch.setattr(
        image_embedding, "ornament", lambda w, h, shades: seen.append(shades) or np.zeros((h, w, 3), np.uint8)
    )
    image_embedding.stripes(b"x", 64, torch.tensor([0.0, -2.0, 1.0] + [1.5] * 2000))
    assert seen[0][:4].tolist() == [0, 255, 127, 191]
    assert len(seen[0]) == 1024
    assert seen[1].tolist() == seen[0].tolist()[::-1]


@pytest.mark.filterwarnings("error")
def test_vectors_that_are_zero_have_stripes_too(tmp_path):
    embedding = Embedding("cat", {"clip_l": torch.zeros(1, 768)}, 0)
    save_embedding(embedding, tmp_path / "cat.png", PICTURE)
    check_holds(tmp_path / "cat.png", embedding)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=3000), st.integers(16, 130))
def test_stripes_give_back_any_text(text, height):
    left, right = image_embedding.stripes(text, height, torch.tensor([0.1, 0.7, 0.3]))
    black = np.zeros((height, 1, 3), np.uint8)
    picture = np.full((height, 5, 3), 200, np.uint8)
    assert image_embedding.from_pixels(np.concatenate([left, black, picture, black, right], 1)) == text


@pytest.mark.parametrize("shade", [0, 8, 255])
def test_any_picture_will_do(tmp_path, shade):
    save_embedding(EMBEDDING, tmp_path / "cat.png", torch.full((64, 64, 3), shade / 255))
    Image.open(tmp_path / "cat.png").save(tmp_path / "pixels.png")
    check_holds(tmp_path / "pixels.png")


def with_border(image):
    wide = Image.new("RGB", (image.width + 20, image.height + 10))
    wide.paste(image, (7, 3))
    return wide


@pytest.mark.parametrize("change", [lambda image: image, with_border, lambda image: image.convert("RGBA")])
def test_without_its_text_there_are_the_pixels(saved, tmp_path, change):
    change(Image.open(saved)).save(tmp_path / "pixels.png")
    with Image.open(tmp_path / "pixels.png") as image:
        assert not image.text
    check_holds(tmp_path / "pixels.png")


@pytest.mark.skipif(not features.check("webp"), reason="this pillow reads no webp")
def test_lossless_webp(saved, tmp_path):
    Image.open(saved).save(tmp_path / "cat.webp", lossless=True)
    check_holds(tmp_path / "cat.webp")
    with pytest.raises(UserError, match=r"only written to \.png"):
        save_embedding(EMBEDDING, tmp_path / "dog.webp", PICTURE)


@pytest.mark.skipif(".avif" not in FORMATS, reason="this pillow reads no avif")
def test_lossless_avif():
    """Written by avifenc from the pixels alone."""
    check_holds(Path(__file__).parents[1] / "recorded" / "embedding.avif")


def test_lossless_jxl(saved, tmp_path):
    pytest.importorskip("pillow_jxl", reason="pillow's plugin for jxl is not installed")
    Image.open(saved).save(tmp_path / "cat.jxl", lossless=True)
    check_holds(tmp_path / "cat.jxl")


def test_a_mark_is_told_from_pixels(saved, tmp_path):
    assert is_marked(saved)
    Image.open(saved).save(tmp_path / "pixels.png")
    assert not is_marked(tmp_path / "pixels.png")


@pytest.mark.parametrize(
    ("step", "facts", "below"),
    [
        (1500, {"textinv.sd_checkpoint_name": "v1-5", "textinv.sd_checkpoint": "8176"}, ("v1-5", "[8176]", "8v 1500s")),
        (0, {"textinv.sd_checkpoint_name": "a\nb\x1b" + "c" * 200}, ("ab" + "c" * 96, "", "8v 0s")),
        (None, {}, ("", "", "8v")),
    ],
)
def test_what_stands_below(step, facts, below):
    vectors = {"clip_l": torch.ones(8, 768), "clip_g": torch.ones(2, 1280)}
    assert image_embedding.footers(Embedding("cat", vectors, step, facts)) == below


def test_the_text_goes_first_and_gives_the_name(saved, tmp_path):
    other = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [[1.0] * 768]}}, "name": "my cat-500", "step": 499})
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(other.encode()).decode())
    Image.open(saved).save(tmp_path / "00012.png", pnginfo=info)
    after = load_embedding(tmp_path / "00012.png")
    assert (after.name, after.step) == ("my_cat-500", 499)
    assert torch.equal(after.vectors["clip_l"], torch.ones(1, 768))


def test_a_picture_of_several_encoders_is_called_after_its_file(tmp_path):
    vectors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    save_embedding(Embedding("cat", vectors, 7), tmp_path / "dog.png", PICTURE)
    after = load_embedding(tmp_path / "dog.png")
    assert (after.name, after.step) == ("dog", None)
    assert all(torch.equal(after.vectors[key], vectors[key]) for key in vectors)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (torch.ones(1, 64, 64, 3), r"is \[1, 64, 64, 3\], not \[height, width, 3\]"),
        (torch.ones(64, 64, 4), r"is \[64, 64, 4\]"),
        (torch.ones(0, 64, 3), r"is \[0, 64, 3\]"),
    ],
)
def test_what_is_no_picture_is_our_mistake(tmp_path, picture, says):
    with pytest.raises(ValueError, match=says) as error:
        save_embedding(EMBEDDING, tmp_path / "cat.png", picture)
    assert type(error.value) is ValueError
    assert not list(tmp_path.iterdir())


def test_a_png_without_a_picture_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a picture"):
        save_embedding(EMBEDDING, tmp_path / "cat.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_too_low_for_its_stripes_is_refused(tmp_path):
    """With one pixel a column, some column of the stripes is bound to be black."""
    embedding = Embedding("cat", {"clip_l": torch.rand(8, 768, generator=torch.Generator().manual_seed(0))})
    with pytest.raises(UserError, match=r"picture of 9 x 1 cannot hold the embedding: take another one, of 64 x 64"):
        save_embedding(embedding, tmp_path / "cat.png", torch.ones(1, 9, 3))


def test_a_list_of_dictionaries_is_called_after_the_file(tmp_path):
    parts = [{"a": {"TORCHTENSOR": [[0.5] * 768]}}, {"b": {"TORCHTENSOR": [[0.5] * 1280]}}]
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(parts).encode()).decode())
    Image.new("L", (8, 8)).save(tmp_path / "cow.png", pnginfo=info)
    embedding = load_embedding(tmp_path / "cow.png")
    assert (embedding.name, sorted(embedding.vectors)) == ("cow", ["clip_g", "clip_l"])


def test_what_is_too_large_for_any_picture_is_not_the_pictures_fault(tmp_path):
    sd3 = {"clip_l": torch.rand(75, 768), "clip_g": torch.rand(75, 1280), "t5xxl": torch.rand(75, 4096)}
    with pytest.raises(UserError, match=r"the embedding has .* MiB, and pictures are read with 8 .*\.safetensors"):
        save_embedding(Embedding("cat", sd3), tmp_path / "cat.png", torch.ones(64, 64, 3))


def grey(width=90, height=64, shade=77):
    return np.full((height, width, 3), shade, np.uint8)


def with_black_columns(*columns):
    pixels = grey()
    pixels[:, list(columns)] = 0
    return pixels


@pytest.mark.parametrize(
    "pixels",
    [
        grey(),
        grey(shade=0),
        grey(1, 1),
        with_black_columns(40),
        with_black_columns(40, 41),
        with_black_columns(20, 60),
        with_black_columns(1, 89),
        np.random.default_rng(0).integers(0, 256, (64, 90, 3), np.uint8),
    ],
)
def test_other_pictures_have_none(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match=r"'cat\.png' is a picture without an embedding.*get the original"):
        load_embedding(tmp_path / "cat.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: image.crop((2, 0, image.width, image.height)),
        lambda image: image.convert("L"),
    ],
)
def test_changed_pictures_have_none(saved, tmp_path, change):
    change(Image.open(saved)).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match="cropped, resized or compressed"):
        load_embedding(tmp_path / "cat.png")


def with_text(path, text, **options):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", text, **options)
    Image.fromarray(grey()).save(path, pnginfo=info)


def encoded(vectors, **more):
    return base64.b64encode(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors}}, **more}).encode()).decode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("?", "holds no embedding that can be read"),
        (base64.b64encode(b"{").decode(), "holds no embedding that can be read"),
        (base64.b64encode(b"[" * 200_000).decode(), "holds no embedding that can be read"),
        (base64.b64encode(b"[1]").decode(), "it holds a list"),
        (base64.b64encode(b"null").decode(), "without an embedding"),
        (encoded([[1.0], [1.0, 2.0]]), "holds no embedding that can be read"),
        (encoded([["os.system"]]), "holds no embedding that can be read"),
        (encoded({"a": 1}), "holds no embedding that can be read"),
        (encoded([[float("nan")] * 768]), "not finite"),
        (encoded([[1e400] * 768]), "not finite"),
        (encoded([[1.0] * 77]), "width 77"),
        (encoded([]), "not vectors"),
        (encoded([[]] * 10_000), "its text has more than 10000 lists"),
        ("", "holds no embedding that can be read"),
    ],
)
def test_text_that_is_no_embedding(tmp_path, text, says):
    with_text(tmp_path / "cat.png", text)
    with pytest.raises(UserError, match=rf"'cat\.png'.*{says}"):
        load_embedding(tmp_path / "cat.png")


def test_text_without_end_is_refused(tmp_path, monkeypatch):
    with_text(tmp_path / "cat.png", "A" * 5_000_000, zip=True)  # 5 kB in the file
    with pytest.raises(UserError, match=r"'cat\.png' holds no embedding that can be read"):
        load_embedding(tmp_path / "cat.png")
    monkeypatch.setattr(image_embedding, "MAX_JSON_BYTES", 2**20)
    with_text(tmp_path / "cat.png", base64.b64encode(b" " * 2**22).decode())
    with pytest.raises(UserError, match="its text has 4 MiB, embeddings have 1 at most"):
        load_embedding(tmp_path / "cat.png")


@pytest.mark.parametrize("rows", [1, 7, 63, 64, 1000])
def test_it_does_not_matter_how_many_rows_are_looked_at_together(saved, tmp_path, monkeypatch, rows):
    with_border(Image.open(saved)).convert("RGBA").save(tmp_path / "pixels.png")
    monkeypatch.setattr(image_embedding, "ROWS", rows)
    check_holds(tmp_path / "pixels.png")


def test_75_vectors_of_t5_are_not_too_much_text(tmp_path):
    """What embeddings have at most, with every digit a float32 can have."""
    rows = torch.rand(75, 4096, generator=torch.Generator().manual_seed(0)) * -1e-5
    text = image_embedding.to_json(a1111.to_data(Embedding("cat", {"t5xxl": rows}), "cat.png"))
    with_text(tmp_path / "cat.png", base64.b64encode(text).decode())
    assert torch.equal(load_embedding(tmp_path / "cat.png").vectors["t5xxl"], rows)
    assert len(text) > 0.8 * image_embedding.MAX_JSON_BYTES


def test_pixels_that_unpack_without_end_are_none(saved, tmp_path, monkeypatch):
    Image.open(saved).save(tmp_path / "pixels.png")
    monkeypatch.setattr(image_embedding, "MAX_JSON_BYTES", len(TEXT))
    check_holds(tmp_path / "pixels.png")
    monkeypatch.setattr(image_embedding, "MAX_JSON_BYTES", len(TEXT) - 1)
    with pytest.raises(UserError, match="without an embedding"):
        load_embedding(tmp_path / "pixels.png")


@pytest.mark.parametrize(("width", "height"), [(4000, 2501), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_not_decoded(tmp_path, width, height):
    file = io.BytesIO()
    Image.fromarray(grey()).save(file, "PNG")
    whole = file.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    (tmp_path / "cat.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    with pytest.raises(UserError, match=r"'cat\.png' holds no embedding that can be read.*pixels"):
        load_embedding(tmp_path / "cat.png")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_of_a_picture_cut_short_the_text_may_be_whole(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    check_holds(saved)
    with Image.open(io.BytesIO(whole)) as image:
        image.save(saved)  # without its text
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"'saved\.png'.*Is it whole"):
        load_embedding(saved)


def test_what_is_written_can_be_read_however_large_the_picture_is(tmp_path):
    save_embedding(EMBEDDING, tmp_path / "large.png", torch.zeros(1, 1, 1).expand(3000, 4000, 3))
    with Image.open(tmp_path / "large.png") as image:
        height, width = image.height, image.width
        image.save(tmp_path / "unmarked.png")
    assert abs(width / height - 4 / 3) < 0.01 and 6_500_000 < width * height <= 7_100_000
    check_holds(tmp_path / "large.png")
    check_holds(tmp_path / "unmarked.png")


def test_a_text_is_read_whatever_the_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(TEXT).decode())
    Image.new("L", (4000, 3000)).save(tmp_path / "large.png", pnginfo=info)
    check_holds(tmp_path / "large.png")
