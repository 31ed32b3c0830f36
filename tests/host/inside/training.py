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
from textinv.textinv_core.errors import UserError  # noqa: E402
from textinv.textinv_core.hosts import base  # noqa: E402
from textinv.textinv_core.hosts import comfy as comfy_host  # noqa: E402
from textinv.textinv_core.hosts.base import Sampling  # noqa: E402
from textinv.textinv_core.shuffle import ShuffleConfig  # noqa: E402
from textinv.textinv_core.training.examples import Example  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.objective import prediction_losses  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
comfy.model_management.NUM_STREAMS = 2  # as on GPUs
TEXT, NAME = "a red dog", "my-dog"
checkpoint, steps = pack.ARGS[0], int(pack.ARGS[1]) if len(pack.ARGS) > 1 else 24


class Intolerant(nullcontext):
    """In place of `Tolerant`: autograd as it is."""

    keeping = nullcontext


def host_flags():
    management = comfy.model_management
    return management.in_training, management.NUM_STREAMS, management.intermediate_device


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


def condition_of(trainable, prompt, vectors, example):
    return trainable.conditions([prompt], [{NAME: lambda key, _: vectors[key]}], [example.latent])[0]


def fixed_loss(host, embedding, example, draws=8):
    """The loss over fixed noise and timesteps, without training anything."""
    generator = torch.Generator().manual_seed(7)
    with host.trainable(example.latent, draws) as trainable, torch.no_grad():
        condition = condition_of(trainable, f"a photo of embedding:{NAME}", embedding.vectors, example)
        gaussian = torch.randn(draws, *example.latent.shape, generator=generator)
        t = torch.linspace(50, 950, draws).long()
        return float(
            prediction_losses(trainable, example.latent.expand_as(gaussian), gaussian, t, [condition] * draws).mean()
        )


def gradient(host, embedding, example, checkpointing=False):
    """Of one prediction with respect to every vector, by way of `trainable`; the prompt weights the embedding."""
    with host.trainable(example.latent, 1) as trainable:
        if checkpointing:
            trainable.checkpoint_activations()
        rows = {key: value.clone().requires_grad_() for key, value in embedding.vectors.items()}
        loss = one_loss(trainable, rows, example)
        return torch.autograd.grad(loss, list(rows.values())), rows


def one_loss(trainable, rows, example):
    condition = condition_of(trainable, f"(embedding:{NAME}:1.3) on grass", rows, example)
    gaussian = torch.randn(1, *example.latent.shape, generator=torch.Generator().manual_seed(3))
    latent, t = example.latent[None], torch.tensor([400])
    return prediction_losses(trainable, latent, gaussian, t, [condition]).mean()


def plain_gradient(host, embedding, example):
    """The same by plain autograd: text encoder layers that add out of place, cast weights kept, no hooks at all."""

    def out_of_place(self, x, mask=None, optimized_attention=None):
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    original = comfy.clip_model.CLIPLayer.forward
    hooks = base.Tolerant, base.lean
    comfy.clip_model.CLIPLayer.forward = out_of_place
    base.Tolerant, base.lean = lambda *_: Intolerant(), lambda *_: nullcontext()
    try:
        return gradient(host, embedding, example)[0]
    finally:
        comfy.clip_model.CLIPLayer.forward = original
        base.Tolerant, base.lean = hooks


def main():
    result = {}
    model, clip, vae = pack.load_checkpoint(checkpoint)
    host = comfy_host.ComfyHost(clip, model, vae)
    with torch.inference_mode():
        before = encode(clip, f"{TEXT} on grass")
        images = [torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        latents = host.encode(images)
        embedding = host.create_embedding(NAME, TEXT, 0)
        applied = host.apply(embedding)
        result["untrained is the init text"] = same(encode(applied, "embedding:my-dog on grass"), before)
        with torch.inference_mode(False):
            examples = [
                Example(latent.clone(), caption)
                for latent, caption in zip(latents, ("on grass", "in snow"), strict=True)
            ]
            example = examples[0]

        picture = host.sample(["embedding:my-dog"], [5], example.latent.shape, Sampling(2), [embedding])
        encoder_before, model_before = everything(clip.cond_stage_model), everything(model.model)
        random_before = torch.random.get_rng_state()
        flags = *host_flags(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        result["loss before"] = fixed_loss(host, embedding, example)
        settings = TrainSettings(("[name] [filewords]",), steps, "0.02", batch_size=2, gradient_accumulation=1)
        with host.trainable(example.latent, 2) as trainable:
            result["casts share no buffers"] = comfy.model_management.NUM_STREAMS == 0
            learnable = LearnableEmbedding(embedding, ShuffleConfig("all"))
            *_, last = Training(trainable, examples, learnable, settings).steps()
            trained = last.learnt
        result["loss after"] = fixed_loss(host, trained, example)
        result["every encoder learns"] = all(
            not torch.equal(trained.vectors[key], embedding.vectors[key]) for key in embedding.vectors
        )

        gradients, rows = gradient(host, embedding, example)
        plain = plain_gradient(host, embedding, example)
        result["gradient error"] = max(largest_difference(a, b) for a, b in zip(gradients, plain, strict=True))
        checkpointed, _ = gradient(host, embedding, example, checkpointing=True)
        result["checkpointing changes nothing"] = all(
            torch.equal(a, b) for a, b in zip(checkpointed, gradients, strict=True)
        )
        for precision in ("bf16", "fp16"):
            rough, _ = gradient(comfy_host.ComfyHost(clip, model, vae, precision), embedding, example)
            pairs = zip(rough, gradients, strict=True)
            result[precision] = min(float(torch.cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in pairs)
        # Along the gradient the loss changes by its norm: a difference of second order against it.
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        ends = []
        with host.trainable(example.latent, 1) as trainable, torch.no_grad():
            for sign in (1, -1):
                moved = {
                    key: row + sign * 1e-3 * g / norm for (key, row), g in zip(rows.items(), gradients, strict=True)
                }
                ends.append(float(one_loss(trainable, moved, example)))
        result["slope"] = (ends[0] - ends[1]) / 2e-3 / float(norm)

        with host.trainable(example.latent, 2) as trainable, torch.no_grad():
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
        with host.trainable(example.latent, 1) as trainable:
            rows = {key: value.clone().requires_grad_() for key, value in embedding.vectors.items()}
            lookups = [{NAME: lambda key, _, n=n: rows[key] * n} for n in range(1, 5)]
            latents = [example.latent] * 4
            runs = []
            hooks = [
                encoder.model.register_forward_hook(lambda module, given, _: runs.append(len(given[0])))
                for encoder in host.encoders.values()
            ]
            batch = trainable.conditions(prompts, lookups, latents)
            result["encoder runs"] = len(runs) // len(rows), max(runs)
            for hook in hooks:
                hook.remove()
            single = zip(prompts, lookups, strict=True)
            each = [trainable.conditions([p], [of_prompt], latents[:1])[0] for p, of_prompt in single]
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
        with comfy_host.ComfyHost(skipping, model).trainable(example.latent, 1) as trainable, torch.no_grad():
            condition = condition_of(trainable, f"{TEXT} on grass", embedding.vectors, example)
        skipped = encode(skipping, f"{TEXT} on grass")
        result["clip skip respected"] = torch.equal(condition["c_crossattn"].cond, skipped[0][0])
        result["clip skip matters"] = not torch.equal(skipped[0][0], before[0][0])

        def attention_sage(q, k, v, heads, **_):  # like the real one: no gradient
            return q.detach()

        q = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2))
        attended = [
            comfy_host.differentiable_attention(a, q, q, q, 2)
            for a in (attention_sage, comfy_attention.attention_basic)
        ]
        result["attention without backward is replaced"] = torch.allclose(*attended)

        told = []
        listener = logging.Handler()
        listener.emit = told.append
        logging.root.addHandler(listener)
        with host.trainable(example.latent, 1) as trainable:
            for _ in range(3):
                trainable.conditions(["a embedding:nowhere"], [{}], [example.latent])
        logging.root.removeHandler(listener)
        missing = [record for record in told if "nowhere" in record.getMessage()]
        result["a name that is not there is told of once"] = len(missing) == 1 and not logging.root.filters

        mute = copy.copy(clip)
        mute.tokenizer = copy.copy(clip.tokenizer)
        for attribute, tokenizer in vars(mute.tokenizer).items():
            if isinstance(tokenizer, SDTokenizer):
                silent = copy.copy(tokenizer)
                silent.embedding_identifier = "no name at all:"
                setattr(mute.tokenizer, attribute, silent)
        try:
            comfy_host.ComfyHost(mute).widths  # noqa: B018
            result["no embeddings, refused by name"] = False
        except UserError as error:
            result["no embeddings, refused by name"] = type(clip.cond_stage_model).__name__ in str(error)

        for end in ("error", "interrupt"):
            try:
                with comfy_host.ComfyHost(clip, model, vae, "bf16").trainable(example.latent, 1):
                    raise (RuntimeError if end == "error" else comfy.model_management.InterruptProcessingException)()
            except (RuntimeError, comfy.model_management.InterruptProcessingException):
                pass
        after = encode(clip, f"{TEXT} on grass")
        result["conditioning as before"] = same(after, before)
        result["random state as before"] = torch.equal(torch.random.get_rng_state(), random_before)
        again = host.sample(["embedding:my-dog"], [5], example.latent.shape, Sampling(2), [embedding])
        result["picture as before"] = torch.equal(picture, again)
        result["random state as before, sampling"] = torch.equal(torch.random.get_rng_state(), random_before)
        flags_after = *host_flags(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result["flags as before"] = flags == flags_after
        result["weights the same objects"] = (
            everything(clip.cond_stage_model) == encoder_before and everything(model.model) == model_before
        )
    print(json.dumps(result))


main()
