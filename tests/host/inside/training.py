"""What training does to and with the host's own objects, measured in its process; prints one JSON object.

training.py CHECKPOINT [STEPS]
"""

import copy
import json
import logging
from contextlib import nullcontext

import pack
import torch

root = pack.load_pack()

import comfy.clip_model  # noqa: E402
import comfy.ldm.modules.attention as comfy_attention  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
from comfy.sd1_clip import SDTokenizer  # noqa: E402
from textinv.textinv_core.dataset import Example  # noqa: E402
from textinv.textinv_core.embedding import Embedding, initial_vectors  # noqa: E402
from textinv.textinv_core.hosts import comfy as host  # noqa: E402
from textinv.textinv_core.shuffle import ShuffleConfig  # noqa: E402
from textinv.textinv_core.training.loop import train  # noqa: E402
from textinv.textinv_core.training.loss import prediction_loss  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402

logging.disable(logging.INFO)
comfy.model_management.NUM_STREAMS = 2  # as on GPUs
TEXT = "a red dog"
checkpoint, steps = pack.ARGS[0], int(pack.ARGS[1]) if len(pack.ARGS) > 1 else 24


def host_flags():
    return comfy.model_management.in_training, comfy.model_management.NUM_STREAMS


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def same(a, b):
    """Whether two conditionings are the same to the bit, pooled output included."""
    pooled = [c[0][1]["pooled_output"] for c in (a, b)]
    return torch.equal(a[0][0], b[0][0]) and torch.equal(*pooled)


def largest_difference(a, b):
    return float(((a - b).abs().max() / b.abs().max()).detach())


def everything(module):
    return {name: id(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}


def create(clip, name="my-dog", vectors=0):
    rows = {key: initial_vectors(found, vectors, True) for key, found in host.text_vectors(clip, TEXT).items()}
    return Embedding(name, rows, step=0)


def condition_of(trainable, prompt, vectors, example, name="my-dog"):
    return trainable.conditions([prompt], name, [lambda key, _: vectors[key]], [example.latent])[0]


def fixed_loss(model, clip, embedding, example, draws=8):
    """The loss over fixed noise and timesteps, without training anything."""
    generator = torch.Generator().manual_seed(7)
    with host.trainable(model, clip, example.latent, draws) as trainable, torch.no_grad():
        condition = condition_of(trainable, f"a photo of embedding:{embedding.name}", embedding.vectors, example)
        gaussian = torch.randn(draws, *example.latent.shape, generator=generator)
        t = torch.linspace(50, 950, draws).long()
        return float(prediction_loss(trainable, example.latent.expand_as(gaussian), gaussian, t, [condition] * draws))


def gradient(model, clip, embedding, example, precision="auto", checkpointing=False):
    """Of one prediction with respect to every vector, by way of `trainable`; the prompt weights the embedding."""
    with host.trainable(model, clip, example.latent, 1, precision) as trainable:
        if checkpointing:
            trainable.checkpoint_activations()
        rows = {key: value.clone().requires_grad_() for key, value in embedding.vectors.items()}
        loss = one_loss(trainable, embedding.name, rows, example)
        return torch.autograd.grad(loss, list(rows.values())), rows


def one_loss(trainable, name, rows, example):
    condition = condition_of(trainable, f"(embedding:{name}:1.3) on grass", rows, example)
    gaussian = torch.randn(1, *example.latent.shape, generator=torch.Generator().manual_seed(3))
    latent, t = example.latent[None], torch.tensor([400])
    return prediction_loss(trainable, latent, gaussian, t, [condition])


def plain_gradient(model, clip, embedding, example):
    """The same by plain autograd: text encoder layers that add out of place, cast weights kept, no hooks at all."""

    def out_of_place(self, x, mask=None, optimized_attention=None):
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    original = comfy.clip_model.CLIPLayer.forward
    hooks = host.tolerating_inplace, host.lean
    comfy.clip_model.CLIPLayer.forward = out_of_place
    host.tolerating_inplace, host.lean = lambda _: nullcontext(), lambda *_: nullcontext()
    try:
        return gradient(model, clip, embedding, example)[0]
    finally:
        comfy.clip_model.CLIPLayer.forward = original
        host.tolerating_inplace, host.lean = hooks


def main():
    result = {}
    model, clip, vae = pack.load_checkpoint(checkpoint)
    with torch.inference_mode():
        before = encode(clip, f"{TEXT} on grass")
        images = [torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        latents = host.encode_images(model, vae, images)
        embedding = create(clip)
        applied = host.apply_embedding(clip, embedding)
        result["untrained is the init text"] = same(encode(applied, "embedding:my-dog on grass"), before)
        with torch.inference_mode(False):
            examples = [
                Example(latent.clone(), caption)
                for latent, caption in zip(latents, ("on grass", "in snow"), strict=True)
            ]
            example = examples[0]

        with host.untouched_random_state():
            picture = host.generate(model, applied, vae, "embedding:my-dog", example.latent, 2, 5)
        encoder_before, model_before = everything(clip.cond_stage_model), everything(model.model)
        random_before = torch.random.get_rng_state()
        flags = *host_flags(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        result["loss before"] = fixed_loss(model, clip, embedding, example)
        settings = TrainSettings(("[name] [filewords]",), steps, "0.02", batch_size=2, gradient_accumulation=1)
        with host.trainable(model, clip, example.latent, 2) as trainable:
            result["casts share no buffers"] = comfy.model_management.NUM_STREAMS == 0
            *_, last = train(trainable, examples, embedding, settings, ShuffleConfig("all"))
            trained = last.embedding()
        result["loss after"] = fixed_loss(model, clip, trained, example)
        result["every encoder learns"] = all(
            not torch.equal(trained.vectors[key], embedding.vectors[key]) for key in embedding.vectors
        )

        gradients, rows = gradient(model, clip, embedding, example)
        plain = plain_gradient(model, clip, embedding, example)
        result["gradient error"] = max(largest_difference(a, b) for a, b in zip(gradients, plain, strict=True))
        checkpointed, _ = gradient(model, clip, embedding, example, checkpointing=True)
        result["checkpointing changes nothing"] = all(
            torch.equal(a, b) for a, b in zip(checkpointed, gradients, strict=True)
        )
        for precision in ("bf16", "fp16"):
            rough, _ = gradient(model, clip, embedding, example, precision)
            pairs = zip(rough, gradients, strict=True)
            result[precision] = min(float(torch.cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in pairs)
        # Along the gradient the loss changes by its norm: a difference of second order against it.
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        ends = []
        with host.trainable(model, clip, example.latent, 1) as trainable, torch.no_grad():
            for sign in (1, -1):
                moved = {
                    key: row + sign * 1e-3 * g / norm for (key, row), g in zip(rows.items(), gradients, strict=True)
                }
                ends.append(float(one_loss(trainable, embedding.name, moved, example)))
        result["slope"] = (ends[0] - ends[1]) / 2e-3 / float(norm)

        with host.trainable(model, clip, example.latent, 2) as trainable, torch.no_grad():
            conditions = [
                condition_of(trainable, f"embedding:my-dog {e.caption}", embedding.vectors, e) for e in examples
            ]
            gaussian = torch.randn(2, *example.latent.shape, generator=torch.Generator().manual_seed(1))
            t = torch.tensor([300, 600])
            both = trainable.predict(gaussian, t, conditions)
            single = [trainable.predict(gaussian[i : i + 1], t[i : i + 1], conditions[i : i + 1]) for i in range(2)]
            swapped = trainable.predict(gaussian, t, conditions[::-1])
        result["batch error"] = largest_difference(both, torch.cat(single))
        result["captions matter"] = largest_difference(swapped, both)

        # Prompts of one and of two windows, with weights and without, encoded together and one by one.
        prompts = ["a embedding:my-dog", "(embedding:my-dog:1.3) on grass", "embedding:my-dog " + "very " * 90, "none"]
        with host.trainable(model, clip, example.latent, 1) as trainable:
            rows = {key: value.clone().requires_grad_() for key, value in embedding.vectors.items()}
            lookups = [lambda key, _, n=n: rows[key] * n for n in range(1, 5)]
            latents = [example.latent] * 4
            runs = []
            hooks = [
                encoder.model.register_forward_hook(lambda module, given, _: runs.append(len(given[0])))
                for encoder in host.encoders(clip).values()
            ]
            batch = trainable.conditions(prompts, "my-dog", lookups, latents)
            result["encoder runs"] = len(runs) // len(rows), max(runs)
            for hook in hooks:
                hook.remove()
            single = zip(prompts, lookups, strict=True)
            each = [trainable.conditions([p], "my-dog", [look], latents[:1])[0] for p, look in single]
            pairs = [(a[key].cond, b[key].cond) for a, b in zip(batch, each, strict=True) for key in b]
            result["encoded together"] = max(largest_difference(a, b) for a, b in pairs)
            result["windows"] = [condition["c_crossattn"].cond.shape[1] for condition in batch]
            gradients_of = [
                torch.autograd.grad(sum(c[key].cond.square().sum() for c in of for key in c), list(rows.values()))
                for of in (batch, each)
            ]
            result["gradient, encoded together"] = max(map(largest_difference, *gradients_of))

        skipping = clip.clone()
        skipping.clip_layer(-3)
        with host.trainable(model, skipping, example.latent, 1) as trainable, torch.no_grad():
            condition = condition_of(trainable, f"{TEXT} on grass", embedding.vectors, example)
        skipped = encode(skipping, f"{TEXT} on grass")
        result["clip skip respected"] = torch.equal(condition["c_crossattn"].cond, skipped[0][0])
        result["clip skip matters"] = not torch.equal(skipped[0][0], before[0][0])

        def attention_sage(q, k, v, heads, **_):  # like the real one: no gradient
            return q.detach()

        q = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2))
        attended = [
            host.differentiable_attention(a, q, q, q, 2) for a in (attention_sage, comfy_attention.attention_basic)
        ]
        result["attention without backward is replaced"] = torch.allclose(*attended)

        mute = copy.copy(clip)
        mute.tokenizer = copy.copy(clip.tokenizer)
        for attribute, tokenizer in vars(mute.tokenizer).items():
            if isinstance(tokenizer, SDTokenizer):
                silent = copy.copy(tokenizer)
                silent.embedding_directory = None
                setattr(mute.tokenizer, attribute, silent)
        try:
            host.widths(mute)
            result["no embeddings, refused by name"] = False
        except ValueError as error:
            result["no embeddings, refused by name"] = type(clip.cond_stage_model).__name__ in str(error)

        for end in ("error", "interrupt"):
            try:
                with host.trainable(model, clip, example.latent, 1, "bf16"):
                    raise (RuntimeError if end == "error" else comfy.model_management.InterruptProcessingException)()
            except (RuntimeError, comfy.model_management.InterruptProcessingException):
                pass
        after = encode(clip, f"{TEXT} on grass")
        result["conditioning as before"] = same(after, before)
        result["random state as before"] = torch.equal(torch.random.get_rng_state(), random_before)
        with host.untouched_random_state():
            again = host.generate(model, applied, vae, "embedding:my-dog", example.latent, 2, 5)
        result["picture as before"] = torch.equal(picture, again)
        result["random state as before, sampling"] = torch.equal(torch.random.get_rng_state(), random_before)
        flags_after = *host_flags(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result["flags as before"] = flags == flags_after
        result["weights the same objects"] = (
            everything(clip.cond_stage_model) == encoder_before and everything(model.model) == model_before
        )
    print(json.dumps(result))


main()
