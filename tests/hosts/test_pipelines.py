import json
import logging
import os
import socket
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from textinv_core.errors import UserError  # noqa: E402
from textinv_core.hosts import pipelines  # noqa: E402

SD1_KEYS = [
    "model.diffusion_model.time_embed.0.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias",
]
SMALL_TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)


def save_pipeline(folder: Path, variant: str | None = None) -> Path:
    parts = {
        "vae": diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL_TEXT)),
        "tokenizer": pipelines.clip_tokenizer("<|endoftext|>"),
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(4,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=8,
            attention_head_dim=1,
            norm_num_groups=1,
        ),
        "scheduler": diffusers.PNDMScheduler(beta_end=0.03, steps_offset=1, skip_prk_steps=True),
    }
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts, **none).save_pretrained(folder, variant=variant)
    return folder


# --- what comes with the package


@pytest.mark.parametrize(
    ("family", "part", "kind", "millions"),
    [
        # As published, by the sizes the families' weights are known to have.
        ("sd1", "unet", diffusers.UNet2DConditionModel, 859.520964),
        ("sd2", "unet", diffusers.UNet2DConditionModel, 865.910724),
        ("sdxl", "unet", diffusers.UNet2DConditionModel, 2567.463684),
        ("sd1", "vae", diffusers.AutoencoderKL, 83.653863),
        ("sd2", "vae", diffusers.AutoencoderKL, 83.653863),
        ("sdxl", "vae", diffusers.AutoencoderKL, 83.653863),
        ("sd1", "text_encoder", transformers.CLIPTextModel, 123.060480),
        ("sd2", "text_encoder", transformers.CLIPTextModel, 340.387840),
        ("sdxl", "text_encoder", transformers.CLIPTextModel, 123.060480),
        ("sdxl", "text_encoder_2", transformers.CLIPTextModelWithProjection, 694.659840),
    ],
)
def test_the_families_have_their_sizes(family, part, kind, millions):
    config = json.loads((pipelines.CONFIGS / family / part / "config.json").read_text())
    with torch.device("meta"):
        is_text = part.startswith("text")
        model = kind(transformers.CLIPTextConfig(**config)) if is_text else kind.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == round(millions * 1e6)


def test_the_tokenizer_is_clip_s():
    tokenizer = pipelines.clip_tokenizer("<|endoftext|>")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer.get_vocab()) == 49408
    decoded = tokenizer.decode(tokenizer("Déjà, vu!!! 1girl").input_ids[1:-1])
    assert decoded.split() == ["déjà", ",", "vu", "!!!", "1", "girl"]


@pytest.mark.parametrize(("pad", "expected"), [("<|endoftext|>", 49407), ("!", 0)])
def test_padding_is_not_looked_for_in_texts(pad, expected):
    tokenizer = pipelines.clip_tokenizer(pad)
    assert tokenizer("a! b!!", padding="max_length").input_ids == [49406, 320, 256, 321, 748, 49407, *[expected] * 71]


# --- folders


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder(tmp_path, variant):
    pipe = pipelines.load(save_pipeline(tmp_path / "model", variant))
    assert isinstance(pipe, diffusers.StableDiffusionPipeline)
    read = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet", variant=variant)
    expected = read.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in pipe.unet.state_dict().items())
    assert not any(weight.requires_grad for weight in pipe.text_encoder.parameters())
    assert torch.equal(pipe.scheduler.betas, diffusers.PNDMScheduler(beta_end=0.03).betas)


@pytest.fixture
def libraries(capfd):
    """What diffusers and transformers log, and draw as bars, from the test's call of it on."""
    told: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    names = "diffusers", "transformers"
    for name in names:
        logging.getLogger(name).addHandler(listener)

    def begin():
        capfd.readouterr()
        told.clear()
        return lambda: [*told, *capfd.readouterr().err.splitlines()]

    yield begin
    for name in names:
        logging.getLogger(name).removeHandler(listener)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded"])
def test_a_folder_is_read_without_a_word_of_the_libraries(tmp_path, libraries, kind):
    folder = save_pipeline(tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        [file] = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        if kind == "bin":
            torch.save(weights, file.with_name("pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin"))
            file.unlink()
        elif kind == "sharded":
            in_file = {name: f"{file.stem}-0000{n % 2 + 1}-of-00002.safetensors" for n, name in enumerate(weights)}
            for shard in {*in_file.values()}:
                save_file(
                    {k: v for k, v in weights.items() if in_file[k] == shard}, file.with_name(shard), {"format": "pt"}
                )
            file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": in_file}))
            file.unlink()
    before = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    told = libraries()
    pipelines.load(folder)
    assert told() == []
    assert (diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()) == before
    assert diffusers.utils.logging.is_progress_bar_enabled() and transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("lost", "words"),
    [("*", "has no config.json"), ("*.safetensors", "has no weights, .* only config.json"), ("config.json", "has no")],
)
def test_what_a_folder_lacks_is_our_sentence_alone(tmp_path, libraries, part, lost, words):
    folder = save_pipeline(tmp_path / "model")
    for file in (folder / part).glob(lost):
        file.unlink()
    told = libraries()
    with pytest.raises(UserError, match=rf"{part}.* {words}"):
        pipelines.load(folder)
    assert told() == []


def test_a_tokenizer_without_words_is_refused(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(UserError, match=r"tokenizer in 'model' has no words"):
        pipelines.load(folder)


def test_the_size_a_model_was_made_for_is_known_without_loading_it(tmp_path, monkeypatch):
    folder = save_pipeline(tmp_path / "own")
    config = folder / "unet" / "config.json"
    with pytest.raises(UserError, match="does not say for what size"):
        pipelines.own_size(folder)
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 24}))
    monkeypatch.setattr(pipelines, "_folder", None)
    monkeypatch.setattr(pipelines, "_single_file", None)
    assert pipelines.own_size(folder) == 24  # a VAE without levels: a pixel a cell
    for family, prefix, size in (
        ("sd1", "cond_stage_model.transformer.", 512),
        ("sdxl", "conditioner.embedders.1.model.", 1024),
    ):
        keys = {"model.diffusion_model.x": torch.ones(1), f"{prefix}x": torch.ones(1)}
        save_file(keys, tmp_path / f"{family}.safetensors")
        assert pipelines.own_size(tmp_path / f"{family}.safetensors") == size
        assert pipelines.own_size(tmp_path / f"{family}.safetensors", folder) == 24
    with pytest.raises(FileNotFoundError, match="no model"):
        pipelines.own_size(tmp_path / "none")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no checkpoint of SD1"):
        pipelines.own_size(tmp_path / "other.safetensors")


def test_want_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    def load(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(pipelines, "load_file", load)
    with pytest.raises(RuntimeError, match="allocate"):
        pipelines.load(tmp_path / "a.safetensors")


def test_the_tokenizer_of_a_folder(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    assert pipelines.load(folder).tokenizer("ab").input_ids == [4, 0, 3, 5]


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        pipelines.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no model_index.json"):
        pipelines.load(tmp_path)
    with pytest.raises(UserError, match="leave out model_config"):
        pipelines.load(tmp_path, tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(UserError, match="StableDiffusion3Pipeline"):
        pipelines.load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        pipelines.load(tmp_path)


def test_a_damaged_folder(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        pipelines.load(folder)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_a_folder_that_lacks_weights_is_not_filled_with_random_ones(tmp_path, part, damage):
    folder = save_pipeline(tmp_path / "model")
    [file] = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name, weight in weights.items() if weight.ndim == 2)
    if damage == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(3, 3)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{part} in 'model'.*{name.removeprefix('text_model.')}"):
        pipelines.load(folder)


IS_OLD = int(transformers.__version__.partition(".")[0]) < 5
NEW = pytest.param("", marks=pytest.mark.skipif(IS_OLD, reason="transformers 4 knows no other names than its own"))


@pytest.mark.parametrize("prefix", ["text_model.", NEW])
def test_text_encoders_of_other_versions_of_transformers(tmp_path, prefix):
    folder = save_pipeline(tmp_path / "model")
    file = folder / "text_encoder" / "model.safetensors"
    expected = {name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}
    renamed = {prefix + name: weight for name, weight in expected.items()}
    positions = torch.arange(77)[None]  # older versions keep them, too
    save_file({**renamed, f"{prefix}embeddings.position_ids": positions}, file, {"format": "pt"})
    found = pipelines.load(folder).text_encoder.state_dict()
    assert all(torch.equal(found[name], expected[name.removeprefix("text_model.")]) for name in found)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("model_index.json", "[]", "holds a list"),
        ("model_index.json", "[" * 100_000, "cannot be read as JSON"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "steep"}', "The scheduler .* cannot be read"),
        ("unet/config.json", '{"down_block_types": ["Wild"], "up_block_types": ["Wild"]}', "The unet .* cannot be"),
        ("text_encoder/config.json", '{"num_hidden_layers": "one"}', "The text_encoder .* cannot be read"),
        ("tokenizer/vocab.json", "[", "The tokenizer .* cannot be read"),
    ],
)
def test_a_folder_with_odd_configurations(tmp_path, file, text, words):
    folder = save_pipeline(tmp_path / "model")
    for extra in (folder / "tokenizer").glob("tokenizer.json"):
        extra.unlink()
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words):
        pipelines.load(folder)


def test_inpainting_is_refused(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    wide = diffusers.UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
    wide.save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"takes 9 channels and its VAE gives 4, as in inpainting"):
        pipelines.load(folder)


# --- single files


def test_files_that_are_no_models(tmp_path):
    file = tmp_path / "lora.safetensors"
    for keys in (["lora_unet.weight"], SD1_KEYS[:1], SD1_KEYS[1:]):
        save_file({key: torch.zeros(1) for key in keys}, file)
        with pytest.raises(UserError, match=r"no checkpoint of SD1\.x"):
            pipelines.load(file)
    file.write_bytes(struct.pack("<Q", 100) + b"{}")
    with pytest.raises(UserError, match="cannot be read"):
        pipelines.load(file)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_files_that_are_not_what_they_say(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    weights = {key: torch.zeros(1) for key in SD1_KEYS}
    if suffix == "ckpt":
        torch.save({"state_dict": weights, "epoch": 3}, file)
    else:
        save_file(weights, file)
    with pytest.raises(UserError, match=rf"unet of 'model.{suffix}' is not what .* it should have \[320"):
        pipelines.load(file)
    config = tmp_path / "config"
    with pytest.raises(UserError, match=r"has no config.json"):
        pipelines.load(file, config)


def test_files_that_are_no_dictionaries_of_weights(tmp_path):
    for what in ({"state_dict": torch.zeros(1)}, {"state_dict": {3: torch.zeros(1)}}, [torch.zeros(1)]):
        torch.save(what, tmp_path / "model.ckpt")
        with pytest.raises(UserError, match=r"no checkpoint of SD1\.x"):
            pipelines.load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02h\x00.", b"\x80\x02.", b"\x80\x02}a."])
def test_a_ckpt_with_a_broken_pickle(tmp_path, pickled):
    torch.save({"state_dict": {}}, tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as whole, zipfile.ZipFile(tmp_path / "model.ckpt", "w") as broken:
        for name in whole.namelist():
            broken.writestr(name, pickled if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(UserError, match=r"'model.ckpt' cannot be read as a file of torch: .* get it as \.safetensors"):
        pipelines.load(tmp_path / "model.ckpt")


def test_a_suffix_may_be_in_capitals(tmp_path):
    save_file({"lora_unet.weight": torch.zeros(1)}, tmp_path / "lora.SAFETENSORS")
    with pytest.raises(UserError, match=r"no checkpoint of SD1\.x"):
        pipelines.load(tmp_path / "lora.SAFETENSORS")


def test_an_sdxl_that_lacks_what_diffusers_converts(tmp_path):
    keys = [SD1_KEYS[0], "conditioner.embedders.1.model.ln_final.bias"]
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"unet of 'model.safetensors' .* 'label_emb.* Give a folder with its conf"):
        pipelines.load(tmp_path / "model.safetensors")


def test_a_file_for_inpainting_is_called_so(tmp_path):
    weights = {key: torch.zeros(1) for key in SD1_KEYS}
    weights[pipelines.UNET + "input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    weights[pipelines.VAE + "decoder.conv_in.weight"] = torch.zeros(8, 4, 3, 3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"takes 9 channels and its VAE gives 4, as in inpainting"):
        pipelines.load(tmp_path / "model.safetensors")


def test_a_ckpt_that_would_run_code_is_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"state_dict": {}, "callbacks": Harm()}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"would have Python run \w+\.mkdir.* can harm"):
        pipelines.load(tmp_path / "model.ckpt")
    assert not (tmp_path / "harm").exists()


def test_a_ckpt_holds_what_a_safetensors_does(tmp_path):
    shipped = Path(pipelines.__file__).parents[1] / "toyworld" / "toyworld.safetensors"
    weights = load_file(shipped)
    checkpoint = {"state_dict": weights, "epoch": 3, "callbacks": {}, "pytorch-lightning_version": "1.4.2"}
    torch.save(checkpoint, tmp_path / "toyworld.ckpt")
    expected = pipelines.load(shipped, shipped.parent).unet.state_dict()
    after = pipelines.load(tmp_path / "toyworld.ckpt", shipped.parent).unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in expected.items())


# A tuple of the tuple before, twice, and so on: as a key it would be hashed for ever.
ENDLESS = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."


def test_a_ckpt_that_would_freeze_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", ENDLESS)
    with pytest.raises(UserError, match="it has a key that is neither a text nor a number"):
        pipelines.load(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin"), ("text_encoder", "x.any")],
)
def test_weights_of_a_folder_that_are_pickles(tmp_path, part, name):
    """Read where they are harmless. By torch, but only after a look at them: it would freeze."""
    folder = save_pipeline(tmp_path / "model")
    [file] = (folder / part).glob("*.safetensors")
    torch.save(load_file(file), folder / part / name)
    file.unlink()
    if name == "x.any":
        index = {"metadata": {}, "weight_map": dict.fromkeys(torch.load(folder / part / name), name)}
        (folder / part / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert pipelines.load(folder)
    with zipfile.ZipFile(folder / part / name, "w") as archive:
        archive.writestr("archive/data.pkl", ENDLESS)
    with pytest.raises(UserError, match=f"'{name}'.* neither a text nor a number"):
        pipelines.load(folder)


def test_edm_is_refused(tmp_path):
    keys = [SD1_KEYS[0], "conditioner.embedders.1.model.ln_final.bias", "edm_vpred.sigma_max"]
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="EDM"):
        pipelines.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "weights", "expected"),
    [
        ("sd1", {"v_pred": torch.zeros(0)}, {}),
        ("sd2", {}, {}),
        ("sd2", {pipelines.SD2_V_WEIGHT: torch.tensor([0.1, -0.08]).half()}, {}),
        ("sd2", {pipelines.SD2_V_WEIGHT: torch.tensor([0.1, -0.1]).half()}, {"prediction_type": "v_prediction"}),
        ("sdxl", {"ztsnr": torch.zeros(0)}, {}),
        ("sdxl", {"v_pred": torch.zeros(0)}, {"prediction_type": "v_prediction"}),
        (
            "sdxl",
            {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ),
    ],
)
def test_eps_or_v(family, weights, expected):
    assert pipelines._prediction(weights, family) == expected
    scheduler = pipelines._scheduler(pipelines.CONFIGS / family, **expected)
    assert scheduler.config.prediction_type == expected.get("prediction_type", "epsilon")
    last = float(scheduler.alphas_cumprod[-1])
    assert last < 1e-6 if "rescale_betas_zero_snr" in expected else last == pytest.approx(0.00466, rel=1e-2)
