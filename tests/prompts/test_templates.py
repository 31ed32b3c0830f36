import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.errors import UserError
from textinv_core.prompts.syntax import names_embedding
from textinv_core.prompts.templates import TEMPLATES, render, template_lines


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
    with pytest.raises(UserError, match=says):
        template_lines(template, own)


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
