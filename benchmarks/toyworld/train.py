"""Trains the toy world from nothing, stage after stage; deterministic, and it goes on where it was stopped.

    python -m benchmarks.toyworld.train vae --state STATE
    python -m benchmarks.toyworld.train text --state STATE
    python -m benchmarks.toyworld.train unet --state STATE
    python -m benchmarks.toyworld.train export --state STATE --out textinv_core/toyworld

`vae` learns to put pictures into latents and back; `text` learns to read captions, from what they say about the
pictures, in the place of CLIP's training; `unet` learns to draw, with both frozen, as SD's did.
"""

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from benchmarks.toyworld import models, world

# Until which step a stage's rates are those of a training of how many steps. The VAE's was first meant to be shorter.
PLANS = {"vae": [(2000, 2200), (3000, 3000)], "text": [(1500, 1500)], "unet": [(3600, 3600)]}
BATCH = {"vae": 8, "text": 128, "unet": 64}
RATE = {"vae": 1e-3, "text": 1e-3, "unet": 1e-3}
SCENES = 40_000
EMA = 0.999
SAVE_EVERY = 250


@dataclass(frozen=True)
class Making:
    """A world in the making. folder: what a stopped training goes on from. seed: 0 for the shipped world's."""

    folder: Path
    seed: int = 0
    text_width: int = models.WIDTH

    def rng(self, stage: str, step: int) -> np.random.Generator:
        return np.random.default_rng([*([self.seed] if self.seed else []), list(PLANS).index(stage), step])


def rate_at(stage: str, step: int, plan: list[tuple[int, int]]) -> float:
    """Warms up over 100 steps and goes down to nothing over the last third."""
    steps = next(steps for until, steps in plan if step < until)
    return RATE[stage] * min(1.0, (step + 1) / 100, (steps - step) / (steps / 3))


def save_whole(what: Any, file: Path) -> None:
    torch.save(what, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


class Stage:
    """A stage's weights, optimizer and log, kept in a file from time to time."""

    def __init__(self, name: str, module: nn.Module, making: Making, plan: list[tuple[int, int]]):
        self.name, self.module, self.making, self.plan, self.step = name, module, making, plan, 0
        self.steps = plan[-1][0]
        self.file, self.log = making.folder / f"{name}.pt", making.folder / f"{name}.csv"
        self.optimizer = torch.optim.AdamW(module.parameters(), RATE[name], betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self.rows: list[list[Any]] = []
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step, self.rows = state["average"], state["step"], state["rows"]

    def save(self) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average, "step": self.step, "rows": self.rows}
        save_whole(state, self.file)
        with self.log.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["step", "loss", "measure", "seconds"], *self.rows])

    def run(self, loss_of: Any) -> None:
        """loss_of: rng -> (loss, another figure for the log)."""
        recent, started = [], time.monotonic()
        before = self.rows[-1][-1] if self.rows else 0
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(self.name, self.step, self.plan)
            loss, measure = loss_of(self.making.rng(self.name, self.step))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(EMA, self.step / (self.step + 10))
            with torch.no_grad():
                for key, value in self.module.state_dict().items():
                    self.average[key].lerp_(value, 1 - decay) if value.is_floating_point() else None
            recent.append((loss.item(), torch.as_tensor(measure).item()))
            if self.step % 50 == 0:
                means = [f"{sum(column) / len(recent):.5f}" for column in zip(*recent, strict=True)]
                self.rows.append([self.step, *means, round(before + time.monotonic() - started)])
                print(self.name, *self.rows[-1], flush=True)
                recent = []
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                self.save()


def trained(name: str, module: nn.Module, folder: Path) -> nn.Module:
    """The module with a finished stage's averaged weights."""
    module.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True)["average"])
    return module.eval().requires_grad_(False)


# Stages


def train_vae(making: Making, plan: list[tuple[int, int]]) -> None:
    vae = models.vae().train()

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pictures = world.draw([world.random_scene(rng)[0] for _ in range(BATCH["vae"])]).permute(0, 3, 1, 2) * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        error = vae.decode(posterior.sample(noise)).sample - pictures
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + 5e-4 * kl, error.abs().mean()

    Stage("vae", vae, making, plan).run(loss_of)


ATTRIBUTES = {**dict.fromkeys(world.PARTS, len(world.COLOURS) + 1), "head": 2, "length": 2, "position": 3}


def label(attribute: str, value: Any) -> int:
    if attribute in world.PARTS:
        return len(world.COLOURS) if value is None else value
    return [*{"head": world.HEADS, "length": world.LENGTHS, "position": world.POSITIONS}[attribute]].index(value)


class Reader(nn.Module):
    """The text encoder with what it is trained by: from a token, what the picture must show."""

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text
        width = text.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in ATTRIBUTES.items()})


def tokenizer(folder: Path) -> CLIPTokenizer:
    models.write_tokenizer(folder / "tokenizer", world.words())
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def token_ids(tokens: CLIPTokenizer, texts: list[str]) -> Tensor:
    found = tokens(texts, padding="max_length", max_length=models.TOKENS, truncation=True, return_tensors="pt")
    return found.input_ids


def train_text(making: Making, plan: list[tuple[int, int]]) -> None:
    tokens, words = tokenizer(making.folder), world.words()
    reader = Reader(models.text_encoder(words, making.text_width)).train()
    vocab = tokens.get_vocab()
    named_by = {part: vocab[part + "</w>"] for part in world.PARTS}

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, float]:
        pairs = [world.random_scene(rng) for _ in range(BATCH["text"])]
        captions = [world.caption_of(scene, rng, name) for scene, name in pairs]
        ids = token_ids(tokens, [caption.text for caption in captions])
        hidden = reader.text(ids).last_hidden_state
        end = (ids == tokens.eos_token_id).int().argmax(1)
        at_end = hidden[torch.arange(len(ids)), end]
        at_last = hidden[:, -1]
        losses, right, said = [], 0, 0
        for attribute, head in reader.heads.items():
            # What a caption leaves open is learnt as open: any value, as the pictures have it.
            labels = torch.tensor([label(attribute, getattr(scene, attribute)) for scene, _ in pairs])
            logits = head(at_end)
            losses.append(nn.functional.cross_entropy(logits, labels))
            losses.append(nn.functional.cross_entropy(head(at_last), labels))
            told = torch.tensor([attribute in caption.says for caption in captions])
            right += int((logits.argmax(1) == labels)[told].sum())
            said += int(told.sum())
            if attribute in named_by:
                at = ids == named_by[attribute]
                where = at.any(1)
                there = hidden[torch.arange(len(ids)), at.int().argmax(1)][where]
                losses.append(nn.functional.cross_entropy(head(there), labels[where]))
        return torch.stack(losses).mean(), right / said

    Stage("text", reader, making, plan).run(loss_of)


def frozen(making: Making) -> tuple[nn.Module, nn.Module]:
    """VAE, with latents of SD's scale, and text encoder."""
    vae = trained("vae", models.vae(), making.folder)
    with torch.no_grad():
        rng = np.random.default_rng(0)
        pictures = world.draw([world.random_scene(rng)[0] for _ in range(256)]).permute(0, 3, 1, 2) * 2 - 1
        models.scale_latents(vae, vae.encode(pictures).latent_dist.mean.std().item())
    reader = trained("text", Reader(models.text_encoder(world.words(), making.text_width)), making.folder)
    return vae, reader.text


def scene_latents(vae: nn.Module, making: Making) -> tuple[list, Tensor]:
    """SCENES scenes with their names, and their latents float32 [SCENES, 4, 8, 8] as the UNet takes them."""
    rng, folder = making.rng("unet", 2**40), making.folder
    pairs = [world.random_scene(rng) for _ in range(SCENES)]
    file = folder / "latents.pt"
    if not file.exists() or file.stat().st_mtime < (folder / "vae.pt").stat().st_mtime:
        found = []
        with torch.no_grad():
            for i in range(0, SCENES, 100):
                pictures = world.draw([scene for scene, _ in pairs[i : i + 100]]).permute(0, 3, 1, 2) * 2 - 1
                found.append(vae.encode(pictures).latent_dist.mean * models.VAE["scaling_factor"])
        save_whole(torch.cat(found), file)
    return pairs, torch.load(file, weights_only=True)


def train_unet(making: Making, plan: list[tuple[int, int]]) -> None:
    vae, text = frozen(making)
    pairs, latents = scene_latents(vae, making)
    tokens = tokenizer(making.folder)
    unet = models.unet(making.text_width).train()
    alphas = models.scheduler().alphas_cumprod
    # An error in eps weighs as one in v would, within bounds: what text alone decides, it decides under much noise.
    weights = (1 / alphas).clamp(max=20)

    def loss_of(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(SCENES, size=BATCH["unet"])
        texts = [world.caption_of(*[pairs[i][0], rng, pairs[i][1]]).text for i in chosen]
        texts = ["" if rng.random() < 0.1 else each for each in texts]
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        latent = latents[torch.from_numpy(chosen)]
        t = torch.randint(1000, (len(chosen),), generator=noise)
        gaussian = torch.randn(latent.shape, generator=noise)
        alpha = alphas[t][:, None, None, None]
        with torch.no_grad():
            hidden = text(token_ids(tokens, texts)).last_hidden_state
        predicted = unet(alpha.sqrt() * latent + (1 - alpha).sqrt() * gaussian, t, hidden).sample
        error = (predicted - gaussian).square().mean((1, 2, 3))
        return (error * weights[t]).mean(), error.mean()

    Stage("unet", unet, making, plan).run(loss_of)


def export(making: Making, out: Path) -> None:
    """Write what ships: weights in LDM's keys, configs and tokenizer, and pictures of a character without a name."""
    vae, text = frozen(making)
    unet = trained("unet", models.unet(making.text_width), making.folder)
    models.write_configs(out, world.words(), making.text_width)
    save_file(models.ldm_state(unet, vae, text), out / "toyworld.safetensors", {"format": "pt"})
    (out / "pictures").mkdir(exist_ok=True)
    for i, picture in enumerate(world.draw(world.portraits(world.demo_character(), 8, 0))):
        pixels = (picture * 255).round().byte().numpy()
        Image.fromarray(pixels).save(out / "pictures" / f"{i + 1}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*PLANS, "export"])
    parser.add_argument("--state", type=Path, required=True, help="a folder for what a stopped training goes on from")
    parser.add_argument("--steps", type=int, help="instead of the number the shipped world had")
    parser.add_argument("--out", type=Path, help="where export writes")
    parser.add_argument(
        "--seed", type=int, default=0, help="another world than the shipped one; the same for each stage"
    )
    parser.add_argument(
        "--text-width", type=int, default=models.WIDTH, help="of the text encoder; the same for each stage"
    )
    arguments = parser.parse_args()
    if arguments.stage == "export" and not arguments.out:
        parser.error("export needs --out")
    arguments.state.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    making = Making(arguments.state, arguments.seed, arguments.text_width)
    if arguments.stage == "export":
        export(making, arguments.out)
        return
    plan = [(arguments.steps, arguments.steps)] if arguments.steps else PLANS[arguments.stage]
    {"vae": train_vae, "text": train_text, "unet": train_unet}[arguments.stage](making, plan)


if __name__ == "__main__":
    main()
