"""The rig itself: checkpoints that the stock loader takes for real ones, and a server that says what went wrong."""

import numpy as np
import pytest
from PIL import Image

FAMILIES = {"sd15": "EPS", "sd15_inpaint": "EPS", "sd2v": "V_PREDICTION", "sdxl": "EPS"}


def picture_graph(checkpoint, prompt, seed=1):
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": f"{checkpoint}.safetensors"}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": prompt}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "blurry"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["prompt", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": 2,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": checkpoint}},
    }


def picture(server, graph):
    (reference,) = server.run(graph)["save"]["images"]
    with Image.open(server.file(reference)) as image:
        return np.asarray(image, dtype=float)


@pytest.mark.parametrize("checkpoint", FAMILIES)
def test_checkpoint_makes_pictures_of_its_prompt(server, checkpoint):
    cat = picture(server, picture_graph(checkpoint, "a photo of a cat"))
    dog = picture(server, picture_graph(checkpoint, "a photo of a dog"))
    assert cat.shape == (64, 64, 3)
    assert 10 < cat.std() < 110  # neither one colour nor black and white
    assert np.abs(cat - dog).mean() > 1
    assert "missing" not in server.log_text().lower()


def test_checkpoints_are_taken_for_their_families(inside, checkpoints):
    found = inside("pack.py", *(checkpoints / f"{name}.safetensors" for name in FAMILIES))
    assert found["prediction"] == list(FAMILIES.values())
    assert found["inference"] is True  # as in a prompt: autograd refuses such weights
    assert found["pack"] == "textinv"


def test_pack_is_there(server):
    assert "TextInvTrainEmbedding" in server.get("/object_info")


def test_refused_graph_names_node_and_reason(server):
    graph = picture_graph("no_such", "a cat")
    with pytest.raises(server.Error, match=r"CheckpointLoaderSimple \(model\).*no_such"):
        server.run(graph)


def test_failing_node_says_why(server):
    graph = picture_graph("sd15", "a cat")
    graph["latent"] = {"class_type": "LoadLatent", "inputs": {"latent": "gone.latent"}}
    with pytest.raises(server.Error, match=r"LoadLatent"):
        server.run(graph)


def test_interrupted_graph_is_an_error(server):
    graph = picture_graph("sd15", "a cat", seed=2)
    graph["sampler"]["inputs"]["steps"] = 10_000
    prompt = server.post(graph)
    for _ in range(100):  # ComfyUI forgets an interrupt that comes before the prompt is begun
        server.interrupt()
        try:
            entry = server.wait(prompt, timeout=1)
            break
        except TimeoutError:
            pass
    assert entry["status"]["status_str"] == "error"
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
