from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.toyworld import world


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng) for _ in range(count)]


def test_the_judge_finds_what_was_drawn():
    drawn = [scene for scene, _ in scenes(200)]
    pictures = world.draw(drawn)
    assert world.judge(pictures) == drawn
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert world.judge(pictures + 0.1 * noise) == drawn


@pytest.mark.parametrize("part", ["background", "hair", "eyes", "shirt", "trousers", "hat"])
def test_a_part_of_another_colour_is_seen_in_that_part_alone(part):
    rng = np.random.default_rng(1)
    for scene, _ in scenes(20, seed=1):
        if getattr(scene, part) is None:
            continue
        taken = {getattr(scene, other) for other in world.PARTS}
        colour = int(rng.choice([c for c in range(len(world.COLOURS)) if c not in taken]))
        changed = replace(scene, **{part: colour})
        assert world.judge(world.draw([changed])) == [changed]


def test_half_a_colour_goes_to_the_nearer_name():
    [scene] = [scene for scene, _ in scenes(1)]
    red, blue = (world.draw([replace(scene, shirt=world.COLOUR_NAMES.index(name))]) for name in ("red", "blue"))
    [seen] = world.judge(0.7 * red + 0.3 * blue)
    assert world.COLOUR_NAMES[seen.shirt] == "red"


def test_a_colour_between_two_is_far_from_both():
    [scene] = [scene for scene, _ in scenes(1)]
    red, blue = (world.draw([replace(scene, shirt=world.COLOUR_NAMES.index(name))]) for name in ("red", "blue"))
    [(_, clear), (_, muddled)] = world.measure(torch.cat([red, 0.5 * red + 0.5 * blue]))
    assert clear["shirt"] == pytest.approx(0, abs=0.01)
    assert muddled["shirt"] == pytest.approx(np.linalg.norm(np.subtract((215, 45, 45), (50, 80, 215))) / 2, abs=0.5)
    assert muddled["shirt"] > world.CLEAR > max(far for part, far in muddled.items() if part != "shirt")


def test_captions_are_true_and_say_so():
    rng = np.random.default_rng(2)
    negations = 0
    for scene, name in scenes(500, seed=2):
        caption = world.caption_of(scene, rng, name)
        assert all(world.right(caption, scene).values())
        negations += len(caption.denies) + ("no hat" in caption.text)
        for part, colour in caption.says.items():
            spoken = part in world.PARTS and colour is not None and name is None
            assert not spoken or f"{world.COLOUR_NAMES[colour]} {part}" in caption.text
        for part, colour in caption.denies.items():
            assert f"no {world.COLOUR_NAMES[colour]} {part}" in caption.text
    assert negations > 20


def test_a_wrong_picture_does_not_pass():
    rng = np.random.default_rng(3)
    for scene, name in scenes(100, seed=3):
        caption = world.caption_of(scene, rng, name)
        for part in caption.says:
            if part in ("hair", "eyes", "shirt", "trousers"):
                wrong = replace(scene, **{part: (getattr(scene, part) + 1) % len(world.COLOURS)})
                assert not world.right(caption, wrong)[part]
        for part, colour in caption.denies.items():
            assert not world.right(caption, replace(scene, **{part: colour}))[part]


def test_held_out_characters_are_nobody_with_a_name():
    held_out = world.held_out_characters(50)
    assert len({*held_out}) == 50
    assert held_out[:10] == world.held_out_characters(10)
    for one in held_out:
        for other in world.named_characters().values():
            parts = world.OWN_PARTS
            assert sum(getattr(one, part) != getattr(other, part) for part in parts) >= 2
        colours = [one.hair, one.eyes, one.shirt, one.trousers, one.hat]
        assert len({*colours}) == 5


def test_portraits_show_one_character_and_keep_a_background_for_later():
    for i, one in enumerate(world.held_out_characters(10)):
        found = world.portraits(one, 8, i)
        assert len({*found}) == 8
        assert all(vars(one).items() <= vars(scene).items() for scene in found)
        assert world.free_colours(vars(one).values())[0] not in {scene.background for scene in found}
        assert found == world.portraits(one, 8, i) != world.portraits(one, 8, i + 1)
