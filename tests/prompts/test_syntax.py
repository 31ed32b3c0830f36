import pytest

from textinv_core.prompts.syntax import names_embedding


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
