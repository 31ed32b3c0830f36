import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.prompts import TEMPLATES, filename_words, filewords, names_embedding, render, template_lines

# --- filewords


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
    with pytest.raises(ValueError, match=f"{re.escape(repr(regex))} .*{says}"):
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
    with pytest.raises(ValueError, match=r"'boat.txt' is larger than 64 KiB"):
        filewords(tmp_path / "boat.png")
    sidecar.write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"'boat.txt' is not UTF-8"):
        filewords(tmp_path / "boat.png")


# --- templates


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - {"none"}))
def test_templates_of_our_own(template):
    lines = template_lines(template)
    assert len(set(lines)) == len(lines) >= 20
    for line in lines:
        counts = Counter(re.findall(r"\[\w+\]", line))
        assert counts == ({"[name]": 1, "[filewords]": 1} if "filewords" in template else {"[name]": 1})
        assert names_embedding(render(line, "x1", "a cat"), "x1")


def test_none_is_the_caption_alone():
    assert [render(line, "x", "a cat") for line in template_lines("none")] == ["a cat"]


def test_own_lines():
    assert template_lines("custom", "  a [name] \n\n \t\r\n[filewords] by [name]") == (
        "a [name]",
        "[filewords] by [name]",
    )


@pytest.mark.parametrize(
    ("template", "own", "says"),
    [
        ("custom", "a [name]\na [nam]", "'a \\[nam\\]' does not say"),
        ("custom", "[filewords]", "does not say"),
        ("custom", " \n ", "no lines"),
        ("custom", "", "no lines"),
        ("portrait", "a [name]", "'portrait'.*subject, style, subject_filewords, style_filewords, none or custom"),
    ],
)
def test_bad_templates(template, own, says):
    with pytest.raises(ValueError, match=says):
        template_lines(template, own)


# --- prompts


@pytest.mark.parametrize(
    ("line", "caption", "prompt"),
    [
        ("a photo of [name]", "", "a photo of embedding:x"),
        ("[name]", "", "embedding:x"),
        ("[filewords], [name] at night", "a cat", "a cat, embedding:x at night"),
        ("[filewords]", "[name] the [name]", "embedding:x the embedding:x"),
        ("[filewords]", "[filewords]", "[filewords]"),  # replaced once
        ("a,[name]", "", "a, embedding:x"),
        ("[name], b", "", "embedding:x, b"),
        ("[name],", "", "embedding:x,"),
        ("[name],b", "", "embedding:x ,b"),
        ("[name].", "", "embedding:x ."),
        ("[name]:1.3", "", "embedding:x :1.3"),
        ("([name]:1.2)", "", "( embedding:x :1.2)"),
        ("[name][name]", "", "embedding:x embedding:x"),
        ("by embedding:[name]!", "", "by embedding:x !"),
        ("a\n[name]\nb", "", "a\nembedding:x\nb"),
    ],
)
def test_render(line, caption, prompt):
    assert render(line, "x", caption) == prompt


awkward = st.lists(
    st.sampled_from(["[name]", "[filewords]", "(", ")", "\\(", "\\)", ":1.2", ":", ",", " ", "\n", "<", "[", "a", ":("])
    | st.text(max_size=3),
    max_size=10,
).map("".join)


@given(awkward, awkward, awkward)
def test_what_is_rendered_is_found(before, after, caption):
    assert names_embedding(render(f"{before}[name]{after}", "my-cat_2", caption), "my-cat_2")


@pytest.mark.parametrize(
    "prompt",
    [
        "embedding:x",
        "a embedding:x cat",
        "embedding:x, cat",
        "embedding: x",
        "a\tembedding:x\nb",
        "(embedding:x:1.3)",
        "(embedding:x)",
        "((embedding:x) a:0.5)",
        "(a)embedding:x",
        "embedding:x(a)",
        "(a embedding:x :1.2)",
        "embedding:x<lora>",
        "embedding:x[1]",
        "embedding:,x,",
        "embedding:y embedding:x",
        "a \\( embedding:x \\)",
        "(embedding:x\\(a\\) embedding:x:1.1)",
    ],
)
def test_prompts_that_name_it(prompt):
    assert names_embedding(prompt, "x")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "x",
        "a cat",
        "a,embedding:x",
        "embedding:x,cat",
        "embedding:x.",
        "embedding:x:1.3",
        "(embedding:x:big)",
        "[embedding:x]",
        "<embedding:x>",
        "Embedding:x",
        "embedding:X",
        "embedding:xy",
        "embedding:y x",
        "(embedding:x",
        ") embedding:x)",
        "\\(embedding:x\\)",
        "embedding:x\\)",
        "embedding:x embedding:",  # fails as a whole
    ],
)
def test_prompts_that_do_not(prompt):
    assert not names_embedding(prompt, "x")
