"""A world small enough to be learnt in hours on a CPU: figures with independently coloured parts, drawn, described in
words, and judged from pixels alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from textinv_core.prompts import TEMPLATES

SIZE = 64  # pixels a side

# Near the corners of the RGB cube, so that a sampled colour has one name.
COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 165, 70),
    "blue": (50, 80, 215),
    "yellow": (245, 215, 60),
    "cyan": (65, 205, 215),
    "pink": (240, 120, 195),
    "black": (35, 33, 40),
    "white": (248, 247, 242),
}
COLOUR_NAMES = tuple(COLOURS)
SKIN = (236, 188, 150)
CLEAR = 45.0  # a third of the distance between the two most alike, pink and white

PARTS = ("background", "hair", "eyes", "shirt", "trousers", "hat")  # the coloured ones, in the order they are kept
OWN_PARTS = PARTS[1:]  # those a character has; the background is the picture's
POSITIONS = {"left": 19, "middle": 32, "right": 45}  # the figure's middle, pixels from the left
HEADS = ("round", "square")
LENGTHS = ("short", "long")
JITTER = [(dx, dy) for dx in (-2, -1, 0, 1, 2) for dy in (-1, 0, 1)]


@dataclass(frozen=True)
class Character:
    """What stays the same of somebody from picture to picture. A colour is an index into COLOUR_NAMES; a hat may be
    None."""

    hair: int
    eyes: int
    shirt: int
    trousers: int
    hat: int | None
    head: str
    length: str


@dataclass(frozen=True)
class Scene(Character):
    """What one picture shows. jitter: pixels (x, y)."""

    background: int
    position: str
    jitter: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Geometry:
    """Where a scene's parts are, without their colours."""

    hat: bool
    head: str
    length: str
    position: str
    jitter: tuple[int, int]


GEOMETRIES = [Geometry(*g) for g in product((False, True), HEADS, LENGTHS, POSITIONS, JITTER)]
INDEX = {geometry: i for i, geometry in enumerate(GEOMETRIES)}


def geometry_of(scene: Scene) -> Geometry:
    return Geometry(scene.hat is not None, scene.head, scene.length, scene.position, scene.jitter)


def _layers(geometry: Geometry, scale: int) -> Image.Image:
    """The index of the part each pixel belongs to, `scale` times enlarged; len(PARTS) is skin."""
    x, y = POSITIONS[geometry.position] + geometry.jitter[0], geometry.jitter[1]
    background, hair, eyes, shirt, trousers, hat = range(len(PARTS))
    skin = len(PARTS)
    picture = Image.new("L", (SIZE * scale, SIZE * scale), background)
    draw = ImageDraw.Draw(picture)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return (x + left) * scale, (y + top) * scale, (x + right) * scale - 1, (y + bottom) * scale - 1

    if geometry.length == "long":
        draw.rounded_rectangle(box(-13, 14, 13, 44), 5 * scale, fill=hair)
    draw.rectangle(box(-8, 48, -1, 63), fill=trousers)
    draw.rectangle(box(1, 48, 8, 63), fill=trousers)
    draw.rectangle(box(-8, 48, 8, 53), fill=trousers)
    draw.rounded_rectangle(box(-12, 35, 12, 50), 4 * scale, fill=shirt)
    draw.rectangle(box(-3, 32, 3, 37), fill=skin)
    if geometry.head == "round":
        draw.ellipse(box(-12, 9, 12, 34), fill=hair)
        draw.ellipse(box(-9, 16, 9, 34), fill=skin)
    else:
        draw.rectangle(box(-12, 10, 12, 24), fill=hair)
        draw.rectangle(box(-9, 16, 9, 34), fill=skin)
    draw.rectangle(box(-7, 21, -2, 27), fill=eyes)
    draw.rectangle(box(2, 21, 7, 27), fill=eyes)
    if geometry.hat:
        draw.rectangle(box(-8, 2, 8, 11), fill=hat)
        draw.rectangle(box(-14, 10, 14, 14), fill=hat)
    return picture


@cache
def coverage() -> Tensor:
    """How much of each pixel each part covers, float32 [geometries, parts + skin, SIZE * SIZE], smooth at the edges."""
    scale = 4
    maps = []
    for geometry in GEOMETRIES:
        layers = torch.from_numpy(np.array(_layers(geometry, scale)))
        whole = torch.nn.functional.one_hot(layers.long(), len(PARTS) + 1).permute(2, 0, 1).float()
        maps.append(torch.nn.functional.avg_pool2d(whole, scale).flatten(1))
    return torch.stack(maps)


def _palette() -> Tensor:
    return torch.tensor([*COLOURS.values()], dtype=torch.float32) / 255


def draw(scenes: list[Scene]) -> Tensor:
    """Pictures of scenes, float32 [B, SIZE, SIZE, 3] in 0..1."""
    maps = coverage()[[INDEX[geometry_of(scene)] for scene in scenes]]
    colours = [[getattr(scene, part) or 0 for part in PARTS] for scene in scenes]
    skin = (torch.tensor(SKIN) / 255).expand(len(scenes), 1, 3)
    colours = torch.cat([_palette()[torch.tensor(colours)], skin], dim=1)
    return torch.einsum("bpn,bpc->bnc", maps, colours).reshape(-1, SIZE, SIZE, 3)


@cache
def _cores() -> Tensor:
    """Pixels that are of one part alone, float32 [geometries, parts + skin, SIZE * SIZE], 0 or 1."""
    return (coverage() > 0.999).float()


def judge(pictures: Tensor) -> list[Scene]:
    """Which scenes pictures [B, SIZE, SIZE, 3] show, found from their pixels alone; see `measure`."""
    return [scene for scene, _ in measure(pictures)]


def measure(pictures: Tensor) -> list[tuple[Scene, dict[str, float]]]:
    """Which scenes pictures [B, SIZE, SIZE, 3] in 0..1 show, and how far each part's colour is from the one named.

    Of all geometries, the one whose parts are each closest to one colour (skin to the skin's), least squares over the
    pixels that belong to a single part; then the nearest named colour to the median of each part. Far is the Euclidean
    distance of these two in RGB, 0 to 441; `CLEAR` and less is no muddled colour. 0 for no hat.
    """
    pixels = pictures.reshape(len(pictures), SIZE * SIZE, 3).float()
    cores = _cores()
    count = cores.sum(-1).clamp(min=1)  # [G, P]
    sums = torch.einsum("gpn,bnc->bgpc", cores, pixels)
    squares = torch.einsum("gpn,bn->bgp", cores, pixels.square().sum(-1))
    means = sums / count[..., None]
    means[..., -1, :] = torch.tensor(SKIN) / 255
    means = torch.where(cores.sum(-1)[None, ..., None] > 0, means, 0.0)
    residual = squares - 2 * (sums * means).sum(-1) + count * means.square().sum(-1)
    residual = torch.where(cores.sum(-1) > 0, residual, 0.0).sum(-1) / cores.sum((-2, -1))
    found = []
    for picture, best in zip(pixels, residual.argmin(1).tolist(), strict=True):
        geometry = GEOMETRIES[best]
        colours, far = {}, {}
        for part, core in zip(PARTS, cores[best], strict=False):
            if part == "hat" and not geometry.hat:
                colours[part], far[part] = None, 0.0
                continue
            distances = 255 * (_palette() - picture[core > 0].median(0).values).norm(dim=-1)
            colours[part], far[part] = int(distances.argmin()), float(distances.min())
        place = {"position": geometry.position, "jitter": geometry.jitter}
        found.append((Scene(**colours, head=geometry.head, length=geometry.length, **place), far))
    return found


# Characters


def _character(rng: np.random.Generator) -> Character:
    hair, eyes, shirt, trousers, hat = (int(c) for c in rng.integers(len(COLOURS), size=5))
    wears = rng.random() < 0.5
    return Character(
        hair, eyes, shirt, trousers, hat if wears else None, HEADS[rng.integers(2)], LENGTHS[rng.integers(2)]
    )


def _name(rng: np.random.Generator) -> str:
    return "".join(rng.choice([*letters]) for letters in ("bdfgklmnprstvz", "aeiou") * 2)


@cache
def named_characters() -> dict[str, Character]:
    """The ones the world has names for: 96, made up once and for all."""
    rng = np.random.default_rng(20)
    found: dict[str, Character] = {}
    while len(found) < 96:
        found.setdefault(_name(rng), _character(rng))
    return found


def held_out_characters(count: int, seed: int = 1) -> list[Character]:
    """Characters without a name, each of whose colours differ from all named ones' in two parts or more, and whose
    own parts all have different colours, so that one that turns up on another part can be told.

    Among the random scenes that the world has seen there may be one that looks so by chance: as a figure, or as
    somebody in other clothes, who are then described in words.
    """
    rng = np.random.default_rng(seed)
    known = list(named_characters().values())
    found: list[Character] = []
    while len(found) < count:
        one = _character(rng)
        own = [getattr(one, part) for part in OWN_PARTS]
        apart = all(sum(getattr(other, part) != getattr(one, part) for part in OWN_PARTS) >= 2 for other in known)
        if len(set(own)) == len(own) and apart and one not in found:
            found.append(one)
    return found


def demo_character() -> Character:
    """Whom the shipped pictures show."""
    return held_out_characters(9)[8]


def free_colours(taken: Iterable[object]) -> list[int]:
    return [colour for colour in range(len(COLOURS)) if colour not in set(taken)]


def pictured(character: Character, rng: np.random.Generator, backgrounds: Sequence[int] = ()) -> Scene:
    """The character somewhere, on one of some backgrounds, or of all colours it does not have: its outline shows."""
    return Scene(
        background=int(rng.choice(backgrounds or free_colours(vars(character).values()))),
        **vars(character),
        position=str(rng.choice([*POSITIONS])),
        jitter=JITTER[rng.integers(len(JITTER))],
    )


def portraits(character: Character, count: int, seed: int) -> list[Scene]:
    """Scenes to learn a character from, no two alike. The first colour it does not have is never behind it: that
    background is kept for asking for something new."""
    rng = np.random.default_rng([seed, count])
    found: dict[Scene, None] = {}
    while len(found) < count:
        found[pictured(character, rng, free_colours(vars(character).values())[1:])] = None
    return [*found]


# Captions

# How captions begin: as the trainer's own subject prompts do, so that those mean nothing in particular here too.
OPENINGS = (*("[name]",) * 12, *("a photo of [name]", "a picture of [name]") * 4, *TEMPLATES["subject"])
PLACES = {"left": "at the left", "middle": "at the centre", "right": "at the right"}


@dataclass(frozen=True)
class Caption:
    """Words, and what they say: attribute -> what it must be; part -> a colour (or more) it must not be."""

    text: str
    says: dict[str, object]
    denies: dict[str, int]


def caption_of(scene: Scene, rng: np.random.Generator, name: str | None = None, most: int = 8) -> Caption:
    """Some of what a scene shows, in words, in any order. `name`: who it is, if it is somebody.

    With a name, all that is the same as that character's goes without saying, mostly.
    """
    says: dict[str, object] = {}
    denies: dict[str, int] = {}
    attributes = [*PARTS, "head", "position", "length"]
    known = vars(named_characters()[name]) if name else {}
    different = [a for a in known if getattr(scene, a) != known[a]]
    others = [str(a) for a in rng.permutation([a for a in attributes if a not in different])]
    count = int(rng.integers(0, most + 1)) if not name else int(rng.integers(0, 3))
    pieces = []
    for attribute in different + others[:count]:
        value = getattr(scene, attribute)
        if attribute == "hat" and value is None:
            pieces.append("no hat")
        elif attribute in PARTS:
            wrong = int(rng.integers(len(COLOURS)))
            if not name and attribute not in ("hat", "background") and wrong != value and rng.random() < 0.06:
                pieces.append(f"no {COLOUR_NAMES[wrong]} {attribute}")
                denies[attribute] = wrong
                continue
            pieces.append(f"{COLOUR_NAMES[value]} {attribute}")
        elif attribute == "position":
            pieces.append(PLACES[value])
        else:
            pieces.append(f"{value} {'hair' if attribute == 'length' else 'head'}")
        says[attribute] = value
    pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    text = str(rng.choice(OPENINGS)).replace("[name]", name or "a figure")
    for i, piece in enumerate(pieces):
        text += (" with " if i == 0 and rng.random() < 0.3 else " and " if rng.random() < 0.15 else ", ") + piece
    for attribute in known:
        if attribute not in says:
            says[attribute] = known[attribute]
    return Caption(text, says, denies)


def random_scene(rng: np.random.Generator) -> tuple[Scene, str | None]:
    """Anybody, or in one of three pictures somebody with a name, perhaps in other clothes."""
    if rng.random() >= 0.35:
        return pictured(_character(rng), rng), None
    names = named_characters()
    name = str(rng.choice([*names]))
    scene = pictured(names[name], rng)
    while rng.random() < 0.35:
        part = str(rng.choice(OWN_PARTS))
        colour = int(rng.choice(free_colours([scene.background])))
        scene = replace(scene, **{part: None if part == "hat" and rng.random() < 0.4 else colour})
    return scene, name


def words() -> list[str]:
    """All words captions are made of."""
    text = [*OPENINGS, *PLACES.values(), *COLOURS, *PARTS, *HEADS, *LENGTHS, *named_characters()]
    together = " ".join([*text, "a figure head with and no"]).replace("[name]", " ")
    return list(dict.fromkeys(re.findall(r"[a-z]+", together.lower())))


def right(caption: Caption, seen: Scene) -> dict[str, bool]:
    """Attribute by attribute, whether a picture judged to be `seen` shows what its caption says."""
    result = {attribute: getattr(seen, attribute) == value for attribute, value in caption.says.items()}
    return result | {part: getattr(seen, part) != colour for part, colour in caption.denies.items()}
