"""What makes two trainings one run, and what does not."""

from dataclasses import replace

import pytest
import torch

from tests.fakes import FakeHost, fake_embedding, fake_pictures
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.identity import differences, facts, identity
from textinv_core.training.settings import TrainSettings

GIVEN = (FakeHost(), fake_pictures(), fake_embedding(), TrainSettings(("a [name]",)), ShuffleConfig())


def given(**changed):
    names = "host", "pictures", "embedding", "settings", "shuffle"
    return facts(**{**dict(zip(names, GIVEN, strict=True)), **changed})


def changed_pictures(**changes):
    first, *others = fake_pictures()
    return {"pictures": [replace(first, **changes), *others]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": TrainSettings(("a [name]",), learning_rate="0.005")}, "learning_rate was 0.002 and is now 0.005"),
        ({"settings": TrainSettings(("the [name]", "a [name]"))}, "template was 1 lines and is now 2 lines"),
        ({"settings": TrainSettings(("a [name]",), seed=1)}, "seed was 0 and is now 1"),
        ({"settings": TrainSettings(("a [name]",), optimizer="sphere")}, "optimizer was adamw and is now sphere"),
        ({"shuffle": ShuffleConfig("all")}, "shuffle mode was off and is now all"),
        ({"embedding": fake_embedding(step=1)}, "the embedding to begin with changed"),
        ({"embedding": fake_embedding(2)}, "the embedding to begin with changed"),
        ({"pictures": fake_pictures(2)}, "the pictures changed, the captions changed, the masks changed"),
        ({"pictures": fake_pictures()[::-1]}, "the pictures changed, the captions changed"),
        (changed_pictures(caption="else"), "the captions changed"),
        (changed_pictures(mask=torch.zeros(16, 24)), "the masks changed"),
        (changed_pictures(pixels=fake_pictures()[0].pixels.nextafter(torch.ones(()))), "the pictures changed"),
    ],
)
def test_what_decides_is_another_run(change, said):
    assert identity(given(**change)) != identity(given())
    assert ", ".join(differences(given(**change), given())) == said


def test_what_does_not_decide_is_the_same_run():
    told = TrainSettings(("a [name]",), steps=7, save_every=3, gradient_checkpointing="on", resume="required")
    assert identity(given(settings=told)) == identity(given())
    assert identity(given(**changed_pictures(name="else"))) == identity(given())


def test_runs_from_before_there_were_optimizers_are_gone_on_with():
    earlier = given()
    del earlier["optimizer"]
    assert identity(earlier) == identity(given())
    assert differences(given(), earlier) == []


def test_other_embeddings_that_prompts_name_decide():
    class Finding(FakeHost):
        def __init__(self, **files):
            super().__init__()
            self.files = files

        def found(self, name):
            return self.files.get(name)

    def about(line="a [name], (embedding:style:0.8)", caption="", **files):
        told = TrainSettings((line,))
        return given(host=Finding(**files), settings=told, **changed_pictures(caption=caption))

    name = fake_embedding().name
    same = about(), about("a [name]", style="a"), about(style="a"), about(style="b"), about("[name]", "embedding:style")
    assert len({identity(each) for each in same}) == len(same)
    assert differences(about(style="b"), about(style="a")) == [
        "what other embeddings the prompts name, or these files, changed"
    ]
    # Its own file may be there or not: what is trained comes before it.
    own = f"a embedding:{name}, [name]"
    assert about(own, **{name: "a"}) == about(own) and "embeddings" not in about(own)["digests"]
    assert identity(about("embedding: , [name]")) != identity(about())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model", "the model, what is patched on it, or its precision or guidance changed"),
        ("clip", "the text encoders, or what is patched on them changed"),
        ("vae", "the VAE changed"),
    ],
)
def test_another_model_is_another_run(part, said):
    class Other(FakeHost):
        def identities(self):
            return {**super().identities(), part: "another"}

    assert identity(given(host=Other())) != identity(given())
    assert differences(given(host=Other()), given()) == [said]
