"""TextInvLoadImages: which folders it takes, when it runs again, what it gives."""

import os

import pytest
import torch
from PIL import Image


@pytest.fixture
def node(node_classes):
    return node_classes["TextInvLoadImages"]


@pytest.fixture
def pictures(input_directory):
    """A folder `set` with a half transparent picture `cat`, 3 wide and 2 high, and a folder in it."""
    (input_directory / "set" / "more").mkdir(parents=True)
    Image.new("RGBA", (3, 2), (255, 0, 0, 51)).save(input_directory / "set" / "cat.png")
    Image.new("RGB", (5, 4), "blue").save(input_directory / "set" / "more" / "07 a dog.png")
    (input_directory / "set" / "cat.txt").write_text("a red cat")
    return input_directory


def execute(node, folder="set", recursive=True, captions="auto", regex="", join=" ", **more):
    return node.execute(
        folder=folder,
        recursive=recursive,
        captions=captions,
        filename_word_regex=regex,
        filename_join_string=join,
        **more,
    )


def fingerprint(node, **inputs):
    # The host passes every input.
    others = {"captions": "auto", "filename_word_regex": "", "filename_join_string": " ", "folder_text": ""}
    return node.fingerprint_inputs(**{"folder": "set", "recursive": False, **others, **inputs})


def test_outputs(node, pictures):
    images, captions, masks, names = execute(node).args
    assert [tuple(image.shape) for image in images] == [(1, 2, 3, 3), (1, 4, 5, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 2, 3), (1, 4, 5)]
    assert torch.equal(images[0][0, 0, 0], torch.tensor([1.0, 0, 0]))
    assert torch.equal(masks[0], torch.full((1, 2, 3), 0.2))
    assert captions == ["a red cat", "a dog"]
    assert names == ["cat", "more/07 a dog"]


def test_settings_are_passed_on(node, pictures):
    assert execute(node, recursive=False)[3] == ["cat"]
    assert execute(node, captions="filename", regex="[a-z]+", join="_")[1] == ["cat", "a_dog"]


def test_folder_text_wins_unless_empty(node, pictures):
    assert execute(node, folder="set", folder_text="set/more")[3] == ["07 a dog"]
    assert execute(node, folder="set/more", folder_text=" ")[3] == ["07 a dog"]


@pytest.mark.parametrize("inputs", [{"folder": "cats "}, {"folder": ".", "folder_text": "cats "}])
def test_spaces_can_belong_to_a_folder(node, pictures, inputs):
    for name, picture in (("cats", "other"), ("cats ", "this")):
        (pictures / name).mkdir()
        Image.new("RGB", (3, 2)).save(pictures / name / f"{picture}.png")
    assert node.validate_inputs(**inputs) is True
    assert execute(node, **inputs)[3] == ["this"]
    assert fingerprint(node, **inputs) != fingerprint(node, folder="cats")


def test_choices(node, pictures):
    def options():
        return next(i for i in node.define_schema().inputs if i.id == "folder").options

    assert options() == [".", "set", "set/more"]
    (pictures / "set 2").mkdir()
    assert options() == [".", "set", "set/more", "set 2"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"folder": "set"},
        {"folder": "."},
        {"folder": "set/more", "folder_text": ""},
        {"folder": "gone", "folder_text": "set"},
        {"folder": None, "folder_text": ""},
        {"folder": "gone", "folder_text": None},
    ],
)
def test_validation_takes_any_folder_there_is(node, pictures, inputs):
    assert node.validate_inputs(**inputs) is True


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"folder": ".."}, "nothing outside is read"),
        ({"folder": "set", "folder_text": "/etc"}, "nothing outside is read"),
        ({"folder": "set", "folder_text": "C:\\"}, "nothing outside is read"),
        ({"folder": "sets"}, "There is: set."),
    ],
)
def test_validation_refuses_with_a_sentence(node, pictures, inputs, message):
    assert message in node.validate_inputs(**inputs)


def test_execution_refuses_linked_folders_outside(node, pictures):
    with pytest.raises(ValueError, match="nothing outside is read"):
        execute(node, folder="..")


def test_runs_again_when_a_file_changes(node, pictures):
    before = fingerprint(node)
    assert fingerprint(node) == before
    os.utime(pictures / "set" / "more" / "07 a dog.png", ns=(1, 1))
    assert fingerprint(node) == before, "not loaded without `recursive`"
    assert fingerprint(node, recursive=True) != before
    (pictures / "set" / "cat.txt").write_text("another cat")
    assert fingerprint(node) != before


@pytest.mark.parametrize("linked", ["folder", "recursive", "folder_text"])
def test_runs_again_for_any_change_when_the_folder_is_linked(node, pictures, linked):
    before = fingerprint(node, **{linked: None})
    assert fingerprint(node, **{linked: None}) == before
    os.utime(pictures / "set" / "more" / "07 a dog.png", ns=(1, 1))
    assert fingerprint(node, **{linked: None}) != before
