import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.errors import UserError
from textinv_core.prompts.captions import filename_words, filewords


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("0001-red boat.png", "red boat"),
        ("12-34--  red boat.v2.jpg", "red boat.v2"),
        ("boat 7.png", "boat 7"),
        ("2024.png", ""),
        ("a-1.png", "a-1"),
    ],
)
def test_words_of_a_file_name(name, words):
    assert filename_words(f"some/0-folder/{name}") == words
    assert filename_words(name, "") == words


def test_word_regex_and_join():
    assert filename_words("01-red_boat,sea.png", "[a-z]+") == "red boat sea"
    assert filename_words("01-red_boat,sea.png", r"([a-z])[a-z]*", join="+") == "r+b+s"
    assert filename_words("01-red.png", r"\d") == ""  # leading digits go first


@given(st.from_regex(r"[-0-9]{0,4}\s?", fullmatch=True), st.from_regex(r"[a-z][a-z 0-9.-]{0,20}", fullmatch=True))
def test_leading_digits_and_dashes_go_and_nothing_else(prefix, words):
    assert filename_words(f"{prefix}{words}.png") == (words if prefix.strip() else f"{prefix}{words}")
    assert filename_words(f"{prefix}{words}.png", r"[a-z]+", "") == "".join(re.findall("[a-z]", words))


@pytest.mark.parametrize(
    ("regex", "says"), [("(", "cannot be read"), ("a{99999999999}", "cannot be read"), ("(a)(b)", "2 groups")]
)
def test_bad_word_regex(regex, says):
    with pytest.raises(UserError, match=f"{re.escape(repr(regex))} .*{says}"):
        filename_words("a.png", regex)


def test_a_sidecar_goes_before_the_name_and_is_verbatim(tmp_path):
    image = tmp_path / "01-boat.v2.png"
    assert filewords(image) == "boat.v2"
    (tmp_path / "01-boat.v2.txt").write_bytes("\ufeff ein grünes\r\nBoot\n".encode())
    assert filewords(str(image), "[a-z]+", "+") == " ein grünes\r\nBoot\n"
    (tmp_path / "01-boat.v2.txt").write_bytes(b"")
    assert filewords(image) == ""


def test_a_folder_is_no_sidecar(tmp_path):
    (tmp_path / "boat.txt").mkdir()
    assert filewords(tmp_path / "boat.png") == "boat"


def test_bad_sidecars_are_named(tmp_path):
    sidecar = tmp_path / "boat.txt"
    sidecar.write_bytes(b"x" * 65536)
    assert len(filewords(tmp_path / "boat.png")) == 65536
    sidecar.write_bytes(b"x" * 65537)
    with pytest.raises(UserError, match=r"'boat.txt' is larger than 64 KiB"):
        filewords(tmp_path / "boat.png")
    sidecar.write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"'boat.txt' is not UTF-8"):
        filewords(tmp_path / "boat.png")


def test_a_name_that_is_no_text_gives_words_that_are():
    assert filename_words("caf\udce9 au lait.png").encode() == "caf\ufffd au lait".encode()
