"""Saving and loading embeddings: which files there are to choose from, and what is written beside what."""

import logging
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from textinv_core import Embedding, load_embedding, save_embedding

CAT = Embedding("cat", {"clip_l": torch.randn(2, 768)}, 7, {"textinv.base_model": "abc"})
SDXL = Embedding("cat", {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, 7)
PICTURE = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    """ComfyUI's embeddings folder, a second one, and its LoRAs' folder, all empty."""
    import folder_paths

    made = {name: tmp_path / name for name in ("embeddings", "more", "loras")}
    for folder in made.values():
        folder.mkdir()
    kinds = folder_paths.folder_names_and_paths
    monkeypatch.setitem(kinds, "embeddings", ([str(made["embeddings"]), str(made["more"])], kinds["embeddings"][1]))
    monkeypatch.setitem(kinds, "loras", ([str(made["loras"])], kinds["loras"][1]))
    return made


@pytest.fixture
def load(node_classes, folders):
    return node_classes["TextInvLoadEmbedding"]


@pytest.fixture
def save(node_classes, folders, monkeypatch):
    import server

    node = node_classes["TextInvSaveEmbedding"]
    shown = []
    page = SimpleNamespace(send_progress_text=lambda text, node_id: shown.append((text, node_id)))
    monkeypatch.setattr(server.PromptServer, "instance", page, raising=False)
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="7"), raising=False)

    def save(embedding, format, overwrite=False, image=None):
        """The name of the file that was written, and what the node says of it."""
        output = node.execute(embedding, format, overwrite, image)
        text = output.ui.as_dict()["text"][0]
        assert text.endswith(f"\n{output[0]}") and shown.pop() == (text, "7")
        return os.path.relpath(output[0], folders["embeddings"]), text.removesuffix(f"\n{output[0]}")

    return save


def listed(load):
    [name] = load.define_schema().inputs
    return name.options


def bundle(path, *names):
    tensors = {f"bundle_emb.{name}.clip_l": torch.full((1, 768), float(i)) for i, name in enumerate(names)}
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2), **tensors}, path)


def test_all_that_can_be_read_is_listed_and_loads(load, folders):
    folder = folders["embeddings"]
    (folder / "sub").mkdir()
    for name in ("a.safetensors", "b.pt", "sub/c.bin", "sub/d.png"):
        save_embedding(CAT, folder / name, PICTURE[0] if name.endswith("png") else None)
    Image.open(folder / "sub/d.png").save(folder / "e.png")  # the pixels alone
    save_embedding(CAT, folders["more"] / "f.pt")
    (folder / "note.txt").write_text("cat")
    entries = listed(load)
    assert entries == ["a.safetensors", "b.pt", "e.png", "f.pt", "sub/c.bin", "sub/d.png"]
    for entry in entries:
        assert load.validate_inputs(name=entry) is True
        assert torch.equal(load.execute(name=entry)[0].vectors["clip_l"], CAT.vectors["clip_l"])


def test_pictures_that_only_show_something_are_not_listed(load, folders, pack, monkeypatch):
    folder = folders["embeddings"]
    save_embedding(CAT, folder / "cat.safetensors")
    for name in ("cat.preview.png", "cat.png", "other.png"):
        Image.fromarray((PICTURE[0] * 255).numpy().astype(np.uint8)).save(folder / name)
    assert listed(load) == ["cat.safetensors"]
    save_embedding(CAT, folder / "cat.png", PICTURE[0])  # what says so in its text is no mere preview
    assert listed(load) == ["cat.png", "cat.safetensors"]


def test_previews_are_not_decoded(load, folders, monkeypatch):
    save_embedding(CAT, folders["embeddings"] / "cat.pt")
    Image.new("RGB", (64, 64)).save(folders["embeddings"] / "cat.png")
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("decoded"))
    assert listed(load) == ["cat.pt"]


def test_each_embedding_in_a_lora_is_listed_and_loads(load, folders):
    (folders["loras"] / "sub").mkdir()
    bundle(folders["loras"] / "sub" / "style.safetensors", "<cat>", "v1.5 > dog")
    bundle(folders["loras"] / "plain.safetensors")
    bundle(folders["embeddings"] / "a > b.safetensors", "cow")
    entries = listed(load)
    assert entries == [
        "a > b.safetensors > cow",
        "lora: sub/style.safetensors > <cat>",
        "lora: sub/style.safetensors > v1.5 > dog",
    ]
    loaded = [load.execute(name=entry)[0] for entry in entries]
    assert [(each.name, each.vectors["clip_l"][0, 0].item()) for each in loaded] == [
        ("cow", 0),
        ("cat", 0),
        ("v1_5_dog", 1),
    ]


def test_names_that_cannot_be_shown_are_not_listed(load, folders):
    bundle(folders["loras"] / "style.safetensors", "a\x1b[31m", "b")
    assert listed(load) == ["lora: style.safetensors > b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
def test_one_file_does_not_cost_the_list(load, folders, monkeypatch, caplog):
    module = sys.modules["textinv_pack.nodes.embedding_files"]
    real = module.load_embedding
    monkeypatch.setattr(module, "load_embedding", lambda path: 1 / 0 if path.endswith("bad.png") else real(path))
    Image.new("RGB", (64, 64)).save(folders["embeddings"] / "bad.png")
    os.mkfifo(folders["loras"] / "pipe.safetensors")
    os.mkfifo(folders["embeddings"] / "pipe.safetensors")
    save_embedding(CAT, folders["embeddings"] / "cow.pt")
    bundle(folders["loras"] / "style.safetensors", "cat")
    assert listed(load) == ["cow.pt", "lora: style.safetensors > cat"]
    assert "bad.png' was left out of the list" in caplog.text


def test_the_list_is_made_anew_each_time_and_files_are_looked_into_once(load, folders, monkeypatch):
    looked_into = []
    module = sys.modules["textinv_pack.nodes.embedding_files"]
    real = module.list_bundled
    monkeypatch.setattr(module, "list_bundled", lambda path: looked_into.append(path) or real(path))
    bundle(folders["loras"] / "style.safetensors", "cat")
    assert listed(load) == listed(load) == ["lora: style.safetensors > cat"]
    assert len(looked_into) == 1
    bundle(folders["loras"] / "style.safetensors", "cat", "dog")
    save_embedding(CAT, folders["embeddings"] / "cow.pt")
    assert listed(load) == ["cow.pt", "lora: style.safetensors > cat", "lora: style.safetensors > dog"]


def test_what_takes_long_does_not_hold_up_the_server(load, folders, monkeypatch, caplog):
    module = sys.modules["textinv_pack.nodes.embedding_files"]
    go_on = threading.Event()
    real = module.list_bundled
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "list_bundled", lambda path: go_on.wait(10) and real(path))
    bundle(folders["loras"] / "slow.safetensors", "cat")
    with caplog.at_level(logging.INFO, "textinv"):
        assert "lora: slow.safetensors > cat" not in listed(load)
        assert "Still looking for embeddings" in caplog.text
        caplog.clear()
        monkeypatch.setattr(module, "PATIENCE", 5)  # for the next thread, not for asking again
        asked = time.monotonic()
        listed(load)
    assert time.monotonic() - asked < 4 and not caplog.text
    go_on.set()
    module._listing.join()
    assert listed(load) == ["lora: slow.safetensors > cat"]


def test_embeddings_in_loras_stay_listed_while_they_are_looked_for_again(load, folders, monkeypatch):
    module = sys.modules["textinv_pack.nodes.embedding_files"]
    bundle(folders["loras"] / "style.safetensors", "cat")
    assert listed(load) == ["lora: style.safetensors > cat"]
    save_embedding(CAT, folders["embeddings"] / "cow.pt")
    go_on = threading.Event()
    real = module._entries
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "_entries", lambda *which: (which[0] == "loras" and go_on.wait(10), real(*which))[1])
    meanwhile = listed(load)
    go_on.set()
    module._listing.join()
    assert meanwhile == ["cow.pt", "lora: style.safetensors > cat"]


def test_one_lora_does_not_fill_the_list(load, folders):
    bundle(folders["loras"] / "style.safetensors", *map(str, range(1200)))
    assert len(listed(load)) == 1000
    assert load.validate_inputs(name="lora: style.safetensors > 1199") is True


def test_entries_of_windows_are_found(load, folders):
    (folders["embeddings"] / "sub").mkdir()
    save_embedding(CAT, folders["embeddings"] / "sub" / "cat.pt")
    save_embedding(CAT, folders["embeddings"].parent / "secret.pt")
    assert load.validate_inputs(name="sub\\cat.pt") is True
    assert "There is no embedding" in load.validate_inputs(name="..\\secret.pt")


@pytest.mark.parametrize(
    "name",
    [
        "cow.pt",
        "",
        ".",
        "../secret.pt",
        "/etc/passwd",
        "lora: cat.pt",
        "cat.pt > ",
        "a\0.pt",
        "cat.txt",
        "sub",
        "lora: ",
    ],
)
def test_what_is_not_there_is_a_sentence_and_nothing_outside_is_opened(load, folders, name):
    save_embedding(CAT, folders["embeddings"].parent / "secret.pt")
    (folders["embeddings"] / "sub").mkdir()
    (folders["embeddings"] / "cat.txt").write_text("cat")
    assert "There is no embedding" in load.validate_inputs(name=name)


def test_looking_for_an_entry_takes_no_time(load):
    asked = time.monotonic()
    assert "There is no embedding" in load.validate_inputs(name="a.pt > " * 20_000)
    assert time.monotonic() - asked < 2


def test_a_file_that_is_new_need_not_be_in_the_list(load, folders):
    listed(load)
    save_embedding(CAT, folders["embeddings"] / "new.bin")
    assert load.validate_inputs(name="new.bin") is True


def test_it_runs_again_when_the_file_changes(load, folders):
    bundle(folders["loras"] / "style.safetensors", "cat")
    entry = "lora: style.safetensors > cat"
    before = load.fingerprint_inputs(name=entry)
    assert load.fingerprint_inputs(name=entry) == before
    bundle(folders["loras"] / "style.safetensors", "cat", "dog")
    assert load.fingerprint_inputs(name=entry) != before


@pytest.mark.parametrize(
    ("embedding", "format", "says"),
    [
        (CAT, "safetensors", "Saved as embedding:cat"),
        (CAT, "pt", "Saved as embedding:cat"),
        (CAT, "bin", "Saved as embedding:cat\nSteps and model are not in this kind of file; safetensors has them."),
        (SDXL, "pt", "Saved as embedding:cat\nSteps and model are not in this kind of file; safetensors has them."),
        (CAT, "png", "Saved in a picture: for Load Embedding and A1111. Prompts do not find it."),
    ],
)
def test_every_format_is_written_and_what_it_is_good_for_is_said(save, folders, embedding, format, says):
    assert save(embedding, format, image=PICTURE) == (f"cat.{format}", says)
    written = load_embedding(folders["embeddings"] / f"cat.{format}").vectors
    assert all(torch.equal(written[key], embedding.vectors[key]) for key in embedding.vectors)
    assert (folders["embeddings"] / "cat.preview.png").exists() == (format != "png")


def test_a_new_file_hides_none_and_is_hidden_by_none(save, folders):
    files = [save(CAT, format, image=PICTURE)[0] for format in ("pt", "safetensors", "bin", "png", "png", "pt")]
    assert files == ["cat.pt", "cat_2.safetensors", "cat_3.bin", "cat.png", "cat_2.png", "cat_4.pt"]
    assert load_embedding(folders["embeddings"] / "cat_2.png").name == "cat_2"


def test_what_overwriting_hides_is_said(save, folders):
    save(CAT, "safetensors")
    assert save(CAT, "pt", overwrite=True) == (
        "cat.pt",
        "Saved as embedding:cat\nPrompts find cat.safetensors instead, as long as it is there.",
    )
    assert save(CAT, "safetensors", overwrite=True) == ("cat.safetensors", "Saved as embedding:cat")


def test_the_longest_name_can_be_numbered(save):
    longest = Embedding("x" * 100, CAT.vectors)
    assert [save(longest, "png", image=PICTURE)[0] for _ in range(2)] == [f"{'x' * 100}.png", f"{'x' * 100}_2.png"]


def test_a_picture_with_alpha_will_do(save, folders):
    save(CAT, "png", image=torch.cat([PICTURE, PICTURE[..., :1]], -1))
    assert load_embedding(folders["embeddings"] / "cat.png").name == "cat"


def test_a_png_without_a_picture_is_refused_before_the_graph_runs(node_classes, folders):
    node = node_classes["TextInvSaveEmbedding"]
    assert node.validate_inputs(format="png") == (
        "A png needs a picture to keep the embedding in: connect one to `image`, or choose another format."
    )
    assert node.validate_inputs(format="png", image=None) is True  # linked
    assert node.validate_inputs(format="pt") is True
    assert node.validate_inputs(format=None) is True  # linked
    assert "There is no format 'ckpt': choose one of safetensors" in node.validate_inputs(format="ckpt")
    with pytest.raises(ValueError, match="A png needs a picture"):
        node.execute(CAT, "png", False)
    for linked in ("ckpt", "/../../cat.pt", "x/../../cat.pt"):
        with pytest.raises(ValueError, match="There is no format"):
            node.execute(CAT, linked, False)
    assert not any(folders["embeddings"].iterdir())


ALONE = "{} alone does nothing: connect {} too, to start near your pictures, or disconnect {}."


def test_pictures_without_a_vision_model_are_refused_before_the_graph_runs(node_classes):
    node = node_classes["TextInvCreateEmbedding"]
    for there, missing in (("clip_vision", "images"), ("images", "clip_vision")):
        for linked in ((None,), []):
            assert node.validate_inputs(name=["cat"], **{there: linked}) == ALONE.format(there, missing, there)
        with pytest.raises(ValueError, match=f"{there} alone does nothing"):
            node.execute(**{there: ["given"]}, clip=["clip"], name=["cat"], init_text=["a"], vectors=[1])
    assert node.validate_inputs(name=["cat"], clip_vision=(None,), images=(None,)) is True
    assert node.validate_inputs(name=["cat"]) is node.validate_inputs(name=(None,)) is True
    assert "cannot be called 'a b'" in node.validate_inputs(name=["a b"])


@pytest.fixture
def said(node_classes, monkeypatch):
    """What Create Embedding, number 5, says on the page."""
    said = []
    page = SimpleNamespace(send_progress_text=lambda text, node_id: said.append((text, node_id)))
    monkeypatch.setattr(sys.modules["textinv_pack.nodes.embedding"].PromptServer, "instance", page, raising=False)
    hidden = SimpleNamespace(unique_id="5")
    monkeypatch.setattr(node_classes["TextInvCreateEmbedding"], "hidden", hidden, raising=False)
    return said


def test_which_text_encoders_take_part_is_said(create, said):
    create(clip=["one", "other"])
    assert said == [("For one.", "5"), ("For other.", "5")]


@pytest.fixture
def create(node_classes, said, monkeypatch):
    """Create Embedding on a host that only writes down what it is asked for."""
    module = sys.modules["textinv_pack.nodes.embedding"]

    class Host(SimpleNamespace):
        def create_embedding(self, *given):
            return (self.clip, *given)

        def about_encoders(self):
            return f"For {self.clip}."

    monkeypatch.setattr(module, "ComfyHost", lambda clip: Host(clip=clip))
    monkeypatch.setattr(module, "_near", lambda pictures, *given: (*pictures, *given))

    def create(**lists):
        given = {"clip": ["clip"], "name": ["cat"], "init_text": ["a dog"], "vectors": [2], **lists}
        return node_classes["TextInvCreateEmbedding"].execute(**given)[0]

    return create


def test_lists_make_an_embedding_each_as_before(create):
    assert create() == [("clip", "cat", "a dog", 2)]
    assert create(name=["a", "b", "c"], vectors=[1, 2]) == [
        ("clip", "a", "a dog", 1),
        ("clip", "b", "a dog", 2),
        ("clip", "c", "a dog", 2),
    ]


def test_all_pictures_are_for_one_embedding(create):
    [made] = create(clip_vision=["vision"], images=[torch.zeros(2, 4, 6, 3), torch.zeros(1, 8, 8, 4)])
    *pictures, embedding, clip, vision = made
    assert [tuple(picture.shape) for picture in pictures] == [(4, 6, 3), (4, 6, 3), (8, 8, 3)]
    assert (embedding, clip, vision) == (("clip", "cat", "a dog", 2), "clip", "vision")


@pytest.mark.parametrize("images", [[], [torch.zeros(0, 4, 6, 3)]])
def test_what_is_connected_but_brings_nothing_is_named(create, images):
    with pytest.raises(ValueError, match="images is empty: the node connected to it gave no pictures"):
        create(clip_vision=["vision"], images=images)
    with pytest.raises(ValueError, match="clip_vision is empty: the node connected to it gave no model"):
        create(clip_vision=[], images=[torch.zeros(1, 4, 6, 3)])
