"""What can only be seen from inside the host's process: gradients, flags, random state, weights, patches."""

import pytest

from tests.rig import PACK

TOYWORLD = PACK / "textinv_core" / "toyworld"


def test_stubs_are_like_the_host(inside):
    assert inside("stub_drift.py") == []


@pytest.mark.parametrize("checkpoint", ["sd15", pytest.param("sd2v", marks=pytest.mark.long)])
def test_training_inside(inside, checkpoints, checkpoint):
    found = inside("training.py", checkpoints / f"{checkpoint}.safetensors", 16)
    failed = [what for what, value in found.items() if value is False]
    assert not failed
    assert found["loss after"] < 0.95 * found["loss before"]
    assert found["gradient error"] < 1e-5
    assert found["bf16"] > 0.99
    assert found["fp16"] > 0.999
    assert found["slope"] == pytest.approx(1, abs=0.05)
    assert found["batch error"] < 1e-4
    assert found["captions matter"] > 0.01
    assert found["encoded together"] < 1e-4
    assert found["gradient, encoded together"] < 1e-3
    assert found["encoder runs"] == [2, 5]  # the windows of four prompts at once, and the empty one for weights
    assert found["windows"] == [77, 77, 154, 77]


def test_names_in_prompts_mean_the_same_everywhere(inside, checkpoints):
    """Applied, saved, and as `names_embedding` and `render` take the host's parser to be."""
    assert inside("prompts.py", checkpoints / "sd15.safetensors") == []


def test_a_family_nothing_was_written_for(inside):
    """SD3, small: flow, a transformer, three text encoders; all of it through the host's own code."""
    found = inside("flow.py")
    assert found["widths"] == {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
    assert found["learnt"] == {"clip_l": True, "clip_g": True, "t5xxl": True}
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["velocity"] == 3.0  # noise - latent
    same, other = found["off"]
    assert same == 0 and other > 0.001
    assert set(found["norms"]) == set(found["widths"]) and min(found["norms"].values()) > 0.5


def test_pictures_on_a_model_for_videos(inside):
    """Latents of one frame and five dimensions, two a batch, one of them masked; what videos' VAEs give is shown."""
    seen = inside("video.py", TOYWORLD)
    assert (seen["multiple"], seen["latent"]) == (8, [16, 1, 6, 8])
    assert seen["learnt"] and len(seen["losses"]) == 8
    assert seen["sample"] == [1, 48, 64, 3]
    assert seen["frames"] == [2 * 9, 48, 64, 3]  # three frames of latents are nine of pictures
    low, high = seen["range"]
    assert 0 <= low < high <= 1


def test_pictures_are_those_of_the_host_s_own_nodes(inside):
    """To the bit, by a run's copy of the embedding, with samplers that draw noise on the way among them."""
    assert inside("previews.py", TOYWORLD) == {"shape": [3, 48, 64, 3], "wrong": [], "differ": True}


@pytest.fixture(scope="module")
def patched(inside) -> dict:
    """Trainings on the toy world, patched."""
    return inside("patched.py", TOYWORLD)


@pytest.mark.parametrize("cache", ["easy", "lazy"])
def test_core_s_caches_are_left_out_of_training(patched, cache):
    assert patched[cache] == {
        "losses": patched["plain"],
        "wrappers as before": True,
        "cache as before": True,
        "samples": True,
    }


def test_other_wrappers_of_the_network_take_part(patched):
    assert patched["wrapped"] == {"on the model": 2, "in its options": 2}


def test_all_that_trains_otherwise_has_another_identity(patched):
    marks = patched["marks"]
    identities = {name: tuple(each.values()) for name, each in marks["different"].items()}
    assert len(set(identities.values())) == len(identities), identities
    for wherever in marks["same"]:
        assert wherever == {name: marks["different"][name] for name in wherever}
    assert len(marks["prints"]) == 1  # with all that is patched on it, the base model is the same


def test_what_differs_is_named(patched):
    found = patched["marks"]["different"]

    def differing(name):
        return [part for part, mark in found[name].items() if mark != found["plain"][part]]

    assert differing("patched") == ["model", "clip"]
    assert differing("FreeU") == differing("in the UNet alone") == differing("fp16") == ["model"]
    assert differing("skip 2") == differing("style") == ["clip"]
    assert differing("another VAE") == ["vae"]


def test_an_interrupt_is_heard_between_accumulated_batches(patched):
    assert patched["interrupted"] == [1, True]


def test_pictures_are_encoded_once_a_vae_and_one_can_stop_between_them(patched):
    assert patched["encoded"] == {"stopped": True, "counts": [1, 2, 0, 3], "same bits": True, "other": True}


# Core nodes that a training is computed with, and some that only have to do with how pictures are sampled.
TAKES_PART = (
    "LoraLoader",
    "LoraLoaderBypass",
    "HypernetworkLoader",
    "SetClipHooks",
    "SetClipHooks, CLIP alone",
    "SetClipHooks, scheduled",
    "ModelMergeSimple",
    "CLIPMergeSimple",
    "TomePatchModel",
    "HyperTile",
    "ModelSamplingDiscrete v",
    "ModelSamplingDiscrete x0",
    "ModelSamplingDiscrete lcm",
    "UNetSelfAttentionMultiply",
    "UNetCrossAttentionMultiply",
    "CLIPAttentionMultiply",
)
OF_SAMPLING = (
    "EasyCache",
    "LazyCache",
    "SelfAttentionGuidance",
    "PerturbedAttentionGuidance",
    "APG",
    "CFGZeroStar",
    "CFGNorm",
    "TCFG",
    "FreSca",
    "Mahiro",
    "EpsilonScaling",
    "DifferentialDiffusion",
)


@pytest.fixture(scope="module")
def nodes_before(inside) -> dict:
    """Gradients on the toy world with a core node before Train."""
    return inside("nodes_before.py", TOYWORLD)


@pytest.mark.long
@pytest.mark.parametrize("node", TAKES_PART + OF_SAMPLING)
def test_core_nodes_before_train(nodes_before, node):
    found = nodes_before["nodes"][node]
    # Which tokens are merged changes in leaps.
    assert found["slope"] == pytest.approx(1, abs=0.3 if node == "TomePatchModel" else 0.1)
    assert found["checkpointed"] < 1e-5
    assert found["counts"] == (node in TAKES_PART)
    assert found["changed"] == [] and found["samples"]


@pytest.mark.long
def test_a_hook_lora_that_training_cannot_put_on_the_model_is_told_of_once(nodes_before):
    told = {node: found["told"] for node, found in nodes_before["nodes"].items()}
    [text] = told.pop("SetClipHooks")
    assert "hook LoRA with a strength_model" in text
    assert not any(told.values())


@pytest.mark.long
def test_the_network_is_told_what_a_sampler_tells_it(nodes_before):
    told = nodes_before["told to the network"]
    assert told["uuids"] == [4, 4]  # two batches of two
    assert told["falling"] and told["last"] == 0
    assert told["after each"] == pytest.approx(told["expected"])


# Of the gradients' cosine with those on the numbers that the weights stand for. Where the host also quantises what it
# multiplies them with, the loss itself is another; in four bits so much so that little is left of it behind T5.
ALIKE = {"int4 rotated": {"clip_l": 0.9, "t5xxl": -1}}


@pytest.mark.parametrize(
    "kind",
    [
        "fp8",
        "fp8 native",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in (
                "cast to fp8, fast",
                "int8 rotated",
                "fp8 e5m2",
                "mxfp8",
                "mxfp8 native",
                "nvfp4",
                "nvfp4 native",
                "int8",
                "int8 by channel",
                "int4 rotated",
                "int4 asymmetric",
                "cast to fp8",
                "cast to fp8 e5m2",
            )
        ),
    ],
)
def test_quantised_weights(inside, kind):
    found = inside("quantised.py", kind)[kind]
    assert found["quantised"] > 20 or kind.startswith("cast")
    for key, cosine in found["gradient"].items():
        assert cosine > ALIKE.get(kind, {}).get(key, 0.97), key
    assert found["checkpointed"] < 1e-5
    assert found["unpacked"] <= 2  # of a weight, and of the input that is multiplied with it
    assert found["copied"] == []
    assert found["changed"] == {"end": [], "error": [], "interrupt": []}
    assert found["vectors"] < 1e-5 and found["norms"] < 1e-5
