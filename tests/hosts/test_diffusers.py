import json
import logging
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.fakes import train  # noqa: E402
from textinv_core.embedding import Embedding  # noqa: E402
from textinv_core.errors import UserError  # noqa: E402
from textinv_core.formats import save_embedding  # noqa: E402
from textinv_core.hosts.base import Sampling  # noqa: E402
from textinv_core.hosts.diffusers import Condition, PipelineHost, load  # noqa: E402
from textinv_core.picture import Picture  # noqa: E402
from textinv_core.training.examples import Example  # noqa: E402
from textinv_core.training.learn import Preview, learn  # noqa: E402
from textinv_core.training.objective import prediction_losses  # noqa: E402
from textinv_core.training.settings import TrainSettings  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz,.:()"
WINDOW = 16
PLAIN = ["a cat, on grass", "", "very"]


def save_tokenizer(folder: Path):
    """One token a letter; the last one of each word is another than inside."""
    folder.mkdir(parents=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": WINDOW}))


def text_config(width: int, act: str) -> "transformers.CLIPTextConfig":
    count = 2 * len(LETTERS)
    return transformers.CLIPTextConfig(
        vocab_size=count + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=count,
        eos_token_id=count + 1,
    )


def save_pipeline(folder: Path, xl: bool, prediction: str) -> Path:
    """A small random pipeline as diffusers saves one."""
    torch.manual_seed(0)
    save_tokenizer(folder / "words")
    parts = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            scaling_factor=0.5,
        ),
        "text_encoder": transformers.CLIPTextModel(text_config(8, "quick_gelu")),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "words"),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
            steps_offset=1, clip_sample=False,
        ),
    }  # fmt: skip
    unet = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "sample_size": 8,
    }
    if xl:
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(text_config(12, "gelu"))
        parts["tokenizer_2"] = transformers.CLIPTokenizer.from_pretrained(folder / "words")
        unet |= {"cross_attention_dim": 20, "addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        unet |= {"projection_class_embeddings_input_dim": 12 + 6 * 4}
        parts["unet"] = diffusers.UNet2DConditionModel(**unet)
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts["unet"] = diffusers.UNet2DConditionModel(**unet)
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline(**parts, **none)
    for encoder in filter(None, (pipe.text_encoder, getattr(pipe, "text_encoder_2", None))):
        for weight in encoder.parameters():  # random ones are so small that prompts hardly differ
            weight.data = weight.data * 3 if weight.ndim == 2 else weight.data + 0.1 * torch.randn_like(weight)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd": save_pipeline(root / "sd", False, "epsilon"),
        "sd_v": save_pipeline(root / "sd_v", False, "v_prediction"),
        "sdxl": save_pipeline(root / "sdxl", True, "epsilon"),
    }


@pytest.fixture(params=["sd", "sd_v", "sdxl"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def host(folders, kind) -> PipelineHost:
    return load(folders[kind])


@pytest.fixture
def sdxl(folders) -> PipelineHost:
    return load(folders["sdxl"])


@pytest.fixture
def sd(folders) -> PipelineHost:
    return load(folders["sd"])


def theirs(folder: Path):
    """The same model, read by diffusers itself."""
    return diffusers.DiffusionPipeline.from_pretrained(folder)


LATENT = torch.zeros(4, 8, 6)


def vectors(host: PipelineHost, n: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(n, width, generator=generator) for key, width in host.widths.items()}


def encode(host: PipelineHost, prompts: list[str], rows=None) -> list[Condition]:
    rows = rows or vectors(host)
    with torch.no_grad(), host.trainable(LATENT, len(prompts)) as model, torch.no_grad():
        lookups = [{"my-dog": lambda key, _: rows[key]}] * len(prompts)
        return model.conditions(prompts, lookups, [LATENT] * len(prompts))


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(ours, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def close_conditions(ours: Condition, expected: Condition) -> bool:
    return all(a is b is None or close(a, b) for a, b in zip(ours, expected, strict=True))


# --- against diffusers itself


def test_prompts_are_encoded_as_by_the_pipeline(host, folders, kind):
    ours = encode(host, PLAIN)
    for prompt, condition in zip(PLAIN, ours, strict=True):
        expected = theirs(folders[kind]).encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        assert close(condition.text, expected[0])
        if kind == "sdxl":
            assert close(condition.pooled, expected[2])
    assert not close(ours[0].text, ours[1].text)


def test_sizes_are_those_of_the_pipeline(sdxl, folders):
    [condition] = encode(sdxl, ["a"])
    size = (64, 48)  # of a latent of 8x6 cells
    expected = theirs(folders["sdxl"])._get_add_time_ids(size, (0, 0), size, torch.float32, 12)
    assert torch.equal(condition.sizes, expected)


def test_noise_and_target_are_the_scheduler_s(host, folders, kind):
    scheduler = theirs(folders[kind]).scheduler
    generator = torch.Generator().manual_seed(2)
    latent, gaussian = torch.randn(2, 3, 4, 4, 4, generator=generator)
    t = torch.tensor([0, 400, 999])
    with host.trainable(LATENT, 3) as model:
        schedule = model.noise_schedule
    noisy = scheduler.add_noise(latent, gaussian, t)
    assert close(schedule.add_noise(latent, gaussian, t), noisy)
    target = scheduler.get_velocity(latent, gaussian, t) if kind == "sd_v" else gaussian
    assert close(schedule.target(latent, gaussian, t), target)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "theirs_is", "levels"),
    [
        ("", "", diffusers.DPMSolverMultistepScheduler, {}),
        ("dpmpp_2m", "karras", diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        ("euler", "normal", diffusers.EulerDiscreteScheduler, {}),
        ("euler", "karras", diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    ],
)
def test_pictures_are_those_of_the_pipeline(host, folders, kind, sampler, scheduler, theirs_is, levels):
    reference = theirs(folders[kind])
    reference.scheduler = theirs_is.from_config(host.pipe.scheduler.config, **levels)
    reference.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    size = {"width": 16, "height": 24}
    more = {"original_size": (96, 64), "target_size": (96, 64)} if kind == "sdxl" else {}  # sizes, as for real VAEs
    expected = reference(
        ["a cat"] * 2, negative_prompt=["dog"] * 2, latents=noise, num_inference_steps=5, guidance_scale=4.0,
        output_type="pt", **size, **more,
    ).images  # fmt: skip
    ours = host.sample(["a cat"] * 2, [3, 4], (4, 12, 8), Sampling(5, 4.0, "dog", sampler, scheduler))
    assert ours.shape == (2, 24, 16, 3) and ours.dtype == torch.float32
    assert 0 <= ours.min() < ours.max() <= 1
    assert torch.allclose(ours, expected.movedim(1, -1), atol=1e-4)


# --- prompts


def test_an_embedding_made_of_a_text_encodes_as_the_text(host):
    rows = host.text_vectors("cat")
    assert {key: value.shape[0] for key, value in rows.items()} == dict.fromkeys(host.widths, 3)
    prompts = ["a embedding:my-dog, so", "embedding:my-dog embedding:my-dog", "embedding:my-dog<x"]
    texts = ["a cat, so", "cat cat", "cat <x"]
    for ours, expected in zip(encode(host, prompts, rows), encode(host, texts), strict=True):
        assert close_conditions(ours, expected)


def test_occurrences_are_counted_for_each_prompt_and_encoder(sdxl):
    asked = []

    def lookup(key, occurrence):
        asked.append((key, occurrence))
        return vectors(sdxl)[key]

    with sdxl.trainable(LATENT, 2) as model:
        prompts = ["embedding:my-dog embedding:my-dog", "embedding:my-dog"]
        model.conditions(prompts, [{"my-dog": lookup}] * 2, [LATENT] * 2)
    assert asked == [(key, occurrence) for key in ("clip_l", "clip_g") for occurrence in (0, 1, 0)]


def test_other_embeddings(sd, caplog):
    other = Embedding("other", vectors(sd, 2, seed=7))
    named, expected = "a embedding:other", "a embedding:my-dog"
    [ours] = encode(sd.knowing([other]), [named])
    assert close_conditions(ours, encode(sd, [expected], dict(other.vectors))[0])
    with caplog.at_level(logging.WARNING, "textinv"):
        [ours] = encode(sd, ["a embedding:unknown"])
    assert "'unknown'" in caplog.text
    assert close_conditions(ours, encode(sd, ["a"])[0])


def test_a_name_that_is_not_loaded_is_told_of_once(sdxl, caplog, tmp_path):
    host = sdxl.knowing([])
    picture = [Picture(torch.rand(16, 16, 3), torch.ones(16, 16), "", "0")]
    settings = TrainSettings(template=("embedding:missing [name]", "[name] embedding:missing"), steps=3, batch_size=2)
    with caplog.at_level(logging.WARNING, "textinv"):
        list(
            learn(
                host,
                picture,
                host.create_embedding("my-dog", "a embedding:missing", 1),
                settings,
                tmp_path,
                preview=Preview(steps=1),
            )
        )
    assert caplog.text.count("'missing'") == 1


def test_windows_follow_one_another(sd):
    first, second = "a" * (WINDOW - 2), "bcd"
    [both] = encode(sd, [first + second])
    assert both.text.shape == (1, 2 * WINDOW, 8)
    # The last letter of a word is another token than inside, so the first window is not that of a word of its own.
    assert close(both.text[:, WINDOW:], encode(sd, [second])[0].text)


def test_an_encoder_with_more_vectors_may_have_a_window_more(sdxl):
    rows = vectors(sdxl) | {"clip_g": vectors(sdxl, WINDOW)["clip_g"]}
    [condition] = encode(sdxl, ["embedding:my-dog"], rows)
    assert condition.text.shape == (1, WINDOW, 20)


def test_weights_move_away_from_the_empty_prompt(sd):
    plain, weighted, empty = (c.text for c in encode(sd, ["ab cd", "ab (cd:1.5)", ""]))
    expected = plain.clone()
    expected[:, 3:5] += 0.5 * (plain - empty)[:, 3:5]
    assert close(weighted, expected)
    literal, group = (c.text for c in encode(sd, [r"\(cd:1.5\)", "(cd:1.5)"]))
    assert not close(literal, group)


def test_no_text_makes_no_vectors(host):
    assert all(rows.shape == (0, host.widths[key]) for key, rows in host.text_vectors("").items())


def test_prompts_of_different_lengths_in_one_batch(host):
    prompts = ["a embedding:my-dog", "b" * 40 + " embedding:my-dog", "c" * 20]
    conditions = encode(host, prompts)
    assert [c.text.shape[1] // WINDOW for c in conditions] == [1, 4, 2]
    noisy = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([5, 500, 900])
    with host.trainable(LATENT, 3) as model, torch.no_grad():
        together = model.predict(noisy, t, conditions)
        alone = [model.predict(noisy[i : i + 1], t[i : i + 1], [conditions[i]]) for i in range(3)]
    assert close(together, torch.cat(alone))
    for prompt, condition in zip(prompts, conditions, strict=True):
        assert close_conditions(condition, encode(host, [prompt])[0])


# --- embeddings and words


def test_keys_and_widths(sd, sdxl):
    assert sd.widths == {"clip_l": 8}
    assert sdxl.widths == {"clip_l": 8, "clip_g": 12}


def test_an_encoder_of_sd2_s_width_is_clip_h(sd):
    sd.pipe.text_encoder = transformers.CLIPTextModel(text_config(1024, "gelu"))
    assert sd.widths == {"clip_h": 1024}


def test_embeddings_that_do_not_fit(sdxl):
    bad = Embedding("bad", {"clip_l": torch.zeros(1, 8), "clip_g": torch.zeros(1, 8)})
    message = r"'bad' does not fit this model: .*\(SDXL's\).* 8 for clip_l, 12 for clip_g"
    for refused in (
        lambda: sdxl.check_fits(bad),
        lambda: sdxl.sample(["a"], [0], LATENT.shape, Sampling(), [bad]),
        lambda: sdxl.knowing([bad]),
    ):
        with pytest.raises(UserError, match=message):
            refused()


def test_nearest_words(sdxl):
    rows = {key: value * 3 for key, value in sdxl.text_vectors("ab").items()}
    nearest = sdxl.nearest_words(Embedding("e", rows), 2)
    for key in ("clip_l", "clip_g"):
        (first, second), (last, _) = nearest[key]
        assert (first[0], last[0]) == ("a-", "b")
        assert first[1] == pytest.approx(1, abs=1e-5)
        assert -1 <= second[1] < first[1]
    huge = {key: value / value.norm() * 1e38 for key, value in rows.items()}
    assert sdxl.nearest_words(Embedding("e", huge), 1)["clip_l"][0][0][1] == pytest.approx(1, abs=1e-5)
    every = sdxl.nearest_words(Embedding("e", rows), 1000)["clip_l"][0]
    assert {word for word, similarity in every if similarity > -2} == {*LETTERS, *(f"{c}-" for c in LETTERS)}


# --- pictures


def test_latents(host):
    image = torch.rand(16, 12, 4, generator=torch.Generator().manual_seed(1))
    assert host.latent_multiple == 2
    [latent], [again] = (host.encode([image]) for _ in range(2))
    assert latent.shape == (4, 8, 6) and latent.dtype == torch.float32
    assert torch.equal(latent, again)
    with torch.no_grad():
        mean = host.pipe.vae.encode(image[None, ..., :3].movedim(-1, 1) * 2 - 1).latent_dist.mean
    assert torch.equal(latent, 0.5 * mean[0])


def test_a_picture_depends_on_its_own_seed_alone(host):
    def make(*seeds):
        return host.sample(["a cat"] * len(seeds), seeds, (4, 8, 8), Sampling(3))

    three = make(5, 6, 5)
    assert torch.allclose(three[0], three[2], atol=1e-5)
    assert torch.allclose(make(6)[0], three[1], atol=1e-5)
    assert not torch.allclose(three[0], three[1], atol=1e-2)
    random_state = torch.get_rng_state()
    make(5)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_each_picture_may_have_its_own_prompt(host):
    def make(prompts, *seeds):
        return host.sample(prompts, seeds, (4, 8, 8), Sampling(3, negative="fog"))

    both = make(["a cat", "a red dog"], 5, 6)
    assert torch.allclose(both[0], make(["a cat"], 5)[0], atol=1e-5)
    assert torch.allclose(both[1], make(["a red dog"], 6)[0], atol=1e-5)


def test_pictures_with_embeddings(host):
    def make(prompt, *embeddings, **more):
        return host.sample([prompt], [1], (4, 8, 8), Sampling(2, **more), embeddings)

    words = Embedding("my-cat", host.text_vectors("cat"), 0)
    assert torch.allclose(make("a embedding:my-cat", words), make("a cat"), atol=1e-5)
    expected = make("a", negative="cat")
    assert torch.allclose(make("a", words, negative="embedding:my-cat"), expected, atol=1e-5)
    assert not torch.allclose(make("a"), expected, atol=1e-4)


def test_shapes_of_latents(sd):
    assert sd.latent_shape(16, 24) == (4, 12, 8)
    assert sd.latent_shape() == (4, 8, 8)  # what the UNet was made for
    assert sd.latent_shape(height=24) == (4, 12, 8)


@pytest.mark.parametrize(("width", "height"), [(15, 16), (16, 15), (-2, 16)])
def test_sizes_that_cannot_be(sd, width, height):
    with pytest.raises(UserError, match=f"{width}x{height} pixels .* multiples of 2"):
        sd.latent_shape(width, height)


# --- training


def loss_of(model, rows, prompts=("a embedding:my-dog", "embedding:my-dog so")) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(len(prompts), 4, 8, 6, generator=generator)
    gaussian = torch.randn(latents.shape, generator=generator)
    lookups = [{"my-dog": lambda key, _: rows[key]}] * len(prompts)
    conditions = model.conditions(prompts, lookups, list(latents))
    return prediction_losses(model, latents, gaussian, torch.tensor([300, 700])[: len(prompts)], conditions).mean()


def gradients(host: PipelineHost, checkpointed: bool = False) -> list[torch.Tensor]:
    rows = {key: value.requires_grad_() for key, value in vectors(host).items()}
    with host.trainable(LATENT, 2) as model:
        if checkpointed:
            model.checkpoint_activations()
        return list(torch.autograd.grad(loss_of(model, rows), list(rows.values())))


def test_gradients_are_those_of_the_loss(host):
    host.pipe.unet.double()
    for encoder in host.encoders.values():
        encoder.model.double()
    by_autograd = gradients(host)
    rows = vectors(host)
    with host.trainable(LATENT, 2) as model, torch.no_grad():
        for (key, value), gradient in zip(rows.items(), by_autograd, strict=True):
            step = 1e-3 * gradient / gradient.norm()
            ahead, behind = (float(loss_of(model, {**rows, key: value + sign * step})) for sign in (1, -1))
            assert (ahead - behind) / 2e-3 == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_checkpointing_changes_no_gradient_and_runs_blocks_again(host):
    runs = []
    behind_text = [host.pipe.unet.mid_block, *host.pipe.unet.up_blocks]
    inside = [m.conv1 for block in behind_text for m in block.modules() if type(m).__name__ == "ResnetBlock2D"]
    hooks = [m.register_forward_hook(lambda *_: runs.append(1)) for m in inside]
    plain = gradients(host)
    once = len(runs)
    assert once == len(inside)
    again = gradients(host, checkpointed=True)
    assert len(runs) == once + 2 * once
    for hook in hooks:
        hook.remove()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(again, plain, strict=True))


def test_half_precision(sdxl, folders):
    half = load(folders["sdxl"], dtype=torch.bfloat16)
    assert half.pipe.vae.dtype == torch.float32 and half.pipe.unet.dtype == torch.bfloat16
    for rough, exact in zip(gradients(half), gradients(sdxl), strict=True):
        assert rough.dtype == torch.float32
        assert torch.cosine_similarity(rough.flatten(), exact.flatten(), 0) > 0.95
    picture = half.sample(["a"], [1], (4, 8, 8), Sampling(2))
    assert picture.dtype == torch.float32 and picture.isfinite().all()
    with half.trainable(LATENT, 1) as model:
        assert model.dtype == torch.bfloat16


def test_everything_is_put_back(folders):
    with torch.inference_mode():
        host = load(folders["sdxl"])
    pipe = host.pipe
    pipe.unet = load(folders["sdxl"]).pipe.unet.requires_grad_(True).train()
    modules = [m for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2) for m in part.modules()]

    def state():
        return [
            (m.training, "forward" in vars(m), *((id(p), p.requires_grad) for p in m.parameters())) for m in modules
        ]

    before = state()
    with torch.inference_mode():
        for failing in (False, True):
            try:
                with host.trainable(LATENT, 2) as model:
                    assert not any(m.training for m in modules)
                    assert not any(p.requires_grad or p.is_inference() for m in modules for p in m.parameters())
                    rows = {key: value.clone().requires_grad_() for key, value in vectors(host).items()}
                    assert loss_of(model, rows).requires_grad
                    model.checkpoint_activations()
                    if failing:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
            assert state() == before
            assert torch.is_inference_mode_enabled()


def test_other_predictions_are_refused(sd):
    sd.pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(UserError, match="'sample'"), sd.trainable(LATENT, 1):
        pass


def test_training(host):
    latent = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(8))
    examples = [Example(latent, "on grass"), Example(-latent, "in snow")]
    embedding = Embedding("my-dog", vectors(host), 0)
    settings = TrainSettings(
        ("[name] [filewords]",), 3, "0.01", batch_size=2, gradient_accumulation=1, gradient_checkpointing="on"
    )
    with host.trainable(latent, 2) as model:
        *_, last = train(model, examples, embedding, settings)
    assert all((last.learnt.vectors[key] - rows).abs().min() > 0 for key, rows in embedding.vectors.items())


# What a run says of its file


@pytest.mark.parametrize("n", [1, 3, 2 * WINDOW])
def test_a_saved_file_read_by_diffusers_gives_what_was_trained(host, tmp_path, n):
    learnt = Embedding("My-dog", vectors(host, n), 7)
    save_embedding(learnt, file := tmp_path / "My-dog-7.safetensors")
    before = {name: rows.clone() for name, rows in host.pipe.text_encoder.state_dict().items()}
    words = [len(encoder.tokenizer) for encoder in host.encoders.values()]
    state = torch.get_rng_state()
    assert host.read_back(learnt, file) == 0
    assert host.read_back(Embedding("My-dog", vectors(host, n, seed=2), 7), file) > 0.01
    # And nothing of it stays in the pipeline.
    after = host.pipe.text_encoder.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(rows, after[name]) for name, rows in before.items())
    assert [len(encoder.tokenizer) for encoder in host.encoders.values()] == words
    assert all(
        e.model.config.vocab_size == e.table.weight.shape[0] == 2 * len(LETTERS) + 2 for e in host.encoders.values()
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_file_is_no_conditioning(sd, tmp_path):
    learnt = Embedding("my-dog", vectors(sd), 7)
    save_embedding(learnt, file := tmp_path / "my-dog.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="my-dog"):
        sd.read_back(learnt, file)


# Which model it is


def test_all_that_trains_otherwise_has_another_identity(folders):
    def read(kind="sd", **more):
        return load(folders[kind], **more)

    def edited(part, kind="sd"):
        host = read(kind)
        with torch.no_grad():
            [*getattr(host.pipe, part).parameters()][-1].mul_(1.01)
        return host

    def knowing(seed):
        host = read()
        return host.knowing([Embedding("style", vectors(host, seed=seed))])

    plain = read().identities()
    assert plain == read().identities()
    assert [*plain] == ["model", "clip", "vae"]
    changed = {
        "prediction": (read("sd_v"), {"model"}),
        "half": (read(dtype=torch.float16), {"model", "clip"}),
        "unet": (edited("unet"), {"model"}),
        "text": (edited("text_encoder"), {"clip"}),
        "vae": (edited("vae"), {"vae"}),
        "style": (knowing(1), {"clip"}),
        "other style": (knowing(2), {"clip"}),
    }
    marks = {name: host.identities() for name, (host, _) in changed.items()}
    for name, (_, parts) in changed.items():
        assert {part for part in plain if marks[name][part] != plain[part]} == parts, name
    assert marks["style"] != marks["other style"]
    sdxl = read("sdxl").identities()
    assert edited("text_encoder_2", "sdxl").identities() | {"clip": ""} == sdxl | {"clip": ""}
    assert edited("text_encoder_2", "sdxl").identities() != sdxl


def test_nothing_but_the_model_counts_for_its_identity(sd):
    before = sd.identities()
    with sd.trainable(LATENT, 1):
        assert sd.identities() == before
    sd.sample(["a"], [1], LATENT.shape, Sampling(2))
    assert sd.identities() == before
