"""What prompt a line makes, and whether it names what is trained."""

import pytest

from tests.fakes import fake_embedding, fake_example
from textinv_core.errors import TrainingError
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import check

NAMED = "embedding:cat"


def behind_whitespace(prompt, name):
    """A host's whose template stands right before the prompt."""
    return f" embedding:{name}" in prompt


def everywhere(prompt, name):
    return f"embedding:{name}" in prompt


def nowhere(prompt, name):
    return False


@pytest.mark.parametrize(
    ("line", "caption", "names", "expected"),
    [
        ("[name] there", "", everywhere, f"{NAMED} there"),
        ("[name] there", "", behind_whitespace, f" {NAMED} there"),
        ("[filewords] there", NAMED, behind_whitespace, f" {NAMED} there"),
        ("a [name] there", "", behind_whitespace, f"a {NAMED} there"),
        ("[filewords]", "a dog", behind_whitespace, "a dog"),
        ("[filewords]", "", behind_whitespace, ""),
        ("[name], [name]", "", behind_whitespace, f"{NAMED}, {NAMED}"),  # found at its second place
    ],
)
def test_a_name_at_the_start_is_put_where_the_host_finds_it(line, caption, names, expected):
    learnable = LearnableEmbedding(fake_embedding(), names=names)
    assert learnable.prompt(line, fake_example(0, caption=caption)) == expected


def test_by_itself_it_reads_prompts_as_the_host_s_clip_does():
    learnable = LearnableEmbedding(fake_embedding())
    assert learnable.prompt("[name]", fake_example(0)) == NAMED
    assert learnable.is_named(f"a ({NAMED}:1.2)") and not learnable.is_named("embedding:catty")


def test_the_host_says_whether_a_prompt_names_it():
    asked = []

    def names(prompt, name):
        asked.append((prompt, name))
        return True

    assert LearnableEmbedding(fake_embedding(), names=names).is_named("whatever")
    assert asked == [("whatever", "cat")]


def test_a_training_whose_prompts_the_host_finds_no_name_in_does_not_start():
    told = TrainSettings(("a [name]",), 1)
    check(LearnableEmbedding(fake_embedding(), names=everywhere), [fake_example(0)], told)
    with pytest.raises(TrainingError, match="names the embedding"):
        check(LearnableEmbedding(fake_embedding(), names=nowhere), [fake_example(0)], told)
