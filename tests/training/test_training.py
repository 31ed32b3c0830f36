import copy
import math
import weakref
from dataclasses import dataclass, replace
from itertools import groupby, islice

import pytest
import torch

from tests.fakes import (
    FakeModel,
    Interrupted,
    fake_embedding,
    fake_example,
    fake_examples,
    fixed,
    numbered_embedding,
    same,
    train,
)
from textinv_core.embedding import Embedding
from textinv_core.errors import TrainingError, UserError
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.chance import STREAMS, chance
from textinv_core.training.examples import Example
from textinv_core.training.learnable import Learnable, LearnableEmbedding
from textinv_core.training.objective import prediction_losses
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training

LINES = ("a embedding:cat of [name]", "[name]", "look at [name] there", "[filewords] and [name]", "[name], [filewords]")


def settings(steps=6, template=("a picture of [name]",), **more):
    return TrainSettings(tuple(template), steps, **{"gradient_accumulation": 1, **more})


def snapshots(*arguments):
    """Every Progress of a training with the vectors it had then."""
    return [(progress, progress.learnt) for progress in train(*arguments)]


def trained(*arguments):
    return snapshots(*arguments)[-1][1]


def faint(factor, change=lambda prediction, call: prediction):
    """The prediction's gradient is `factor` of what it is; the prediction itself is as it was."""
    return lambda prediction, call: change(factor * prediction + (1 - factor) * prediction.detach(), call)


# The fake model's gradients are larger than a real one's: 65536 times that is more than fp16 can hold.
FP16 = 0.005


@pytest.fixture
def gradients(monkeypatch):
    """The gradients that reach the optimizer: one list a step, one tensor an encoder, which are of different widths."""
    seen = []

    class Recording(torch.optim.AdamW):
        def step(self, closure=None):
            rows = [row for group in self.param_groups for row in group["params"]]
            seen.append(
                [
                    torch.stack([torch.zeros_like(row) if row.grad is None else row.grad.clone() for row in of_encoder])
                    for _, of_encoder in groupby(rows, len)
                ]
            )
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return seen


# Learning


def test_the_loss_on_fixed_noise_falls():
    model, examples, embedding = FakeModel(), fake_examples(), fake_embedding()
    t = torch.arange(40, 1000, 40)
    gaussian = torch.randn(len(t), 3, 4, 6, generator=torch.Generator().manual_seed(3))

    def loss(embedding):
        latents = torch.stack([examples[i % 3].latent for i in range(len(t))])
        condition = model.condition("a embedding:cat", {"cat": lambda key, _: embedding.vectors[key]}, latents[0])
        return float(prediction_losses(model, latents, gaussian, t, [condition] * len(t)).mean())

    after = trained(model, examples, embedding, settings(60, ["a [name]"], learning_rate="0.02"))
    assert loss(after) < 0.8 * loss(embedding)


def test_every_vector_of_both_encoders_learns():
    before = fake_embedding(3, 2)
    after = trained(FakeModel(), fake_examples(), before, settings(1, learning_rate="0.005"))
    for key, rows in after.vectors.items():
        # Adam's first step is the learning rate, whatever the gradient: no weight decay comes on top.
        assert torch.allclose((rows - before.vectors[key]).abs(), torch.full_like(rows, 0.005), rtol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed):
        return trained(
            FakeModel(),
            fake_examples(5),
            fake_embedding(),
            settings(8, LINES, batch_size=2, seed=seed),
            ShuffleConfig("all", "occurrence"),
        )

    torch.manual_seed(1)
    first = run(7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, run(7))
    assert not same(first, run(8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_are_float32_and_copies_whatever_the_model_is(dtype):
    embedding = fake_embedding(metadata={"textinv.base": "sd"})
    originals = {key: rows.clone() for key, rows in embedding.vectors.items()}
    steps = snapshots(FakeModel(dtype, faint(FP16)), fake_examples(), embedding, settings(3))
    # Of earlier steps too: an embedding taken from a Progress does not change later on.
    assert not same(steps[0][1], steps[1][1]) and not same(steps[1][1], steps[2][1])
    after = steps[-1][1]
    assert (after.name, after.step, after.metadata) == ("cat", 3, {"textinv.base": "sd"})
    assert all(rows.dtype == torch.float32 and not rows.requires_grad for rows in after.vectors.values())
    assert all(torch.equal(embedding.vectors[key], originals[key]) for key in originals)
    assert all(rows.grad is None and not rows.requires_grad for rows in embedding.vectors.values())


# What chance decides


def test_every_stream_has_numbers_of_its_own_at_every_place():
    def drawn(seed, stream, *place):
        return tuple(torch.rand(4, generator=chance(seed, stream, *place)).tolist())

    places = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**40,)]
    everything = [(seed, stream, *place) for seed in (5, 2**64 - 1) for stream in STREAMS for place in places]
    assert len({drawn(*what) for what in everything}) == len(everything)
    assert drawn(5, "noise", 7) == drawn(5, "noise", 7)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_training_that_goes_on_sees_what_it_would_have_seen(accumulation):
    # Ten pictures of two sizes: an epoch of three batches of the one and two of the other, left in the midst of one.
    examples = fake_examples(6) + fake_examples(4, (6, 4))
    shuffle = ShuffleConfig("all", "occurrence")

    def run(start, steps):
        model = FakeModel()
        told = settings(steps, LINES, batch_size=2, learning_rate="0", gradient_accumulation=accumulation)
        list(train(model, examples, fake_embedding(step=start), told, shuffle))
        return model

    whole, parts = run(0, 9), [run(0, 4), run(4, 9)]
    calls = [call for part in parts for call in part.calls]
    assert len(whole.calls) == len(calls) == 9 * accumulation
    for a, b in zip(whole.calls, calls, strict=True):
        assert torch.equal(a.noisy, b.noisy) and torch.equal(a.t, b.t) and a.prompts == b.prompts
    asked = [each for part in parts for each in part.asked]
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(whole.asked, asked, strict=True))


@pytest.mark.parametrize("per", ["sample", "occurrence", "batch"])
def test_orders_do_not_depend_on_when_a_host_asks_for_them(per):
    class Backwards(FakeModel):
        def conditions(self, prompts, lookups, latents):
            # As a host that encodes several times, and the last prompt first.
            for lookup in reversed(lookups):
                lookup["cat"]("clip_g", 1)
            return super().conditions(prompts[::-1], lookups[::-1], latents[::-1])[::-1]

    told = settings(4, LINES, batch_size=2, learning_rate="0")
    arguments = fake_examples(4), fake_embedding(4, 3), told, ShuffleConfig("all", per)
    losses = [[progress.loss for progress in train(model, *arguments)] for model in (FakeModel(), Backwards())]
    assert losses[0] == losses[1]


def test_shuffling_changes_no_noise_timestep_prompt_or_picture():
    def run(shuffle):
        model = FakeModel()
        arguments = fake_examples(5), fake_embedding(4), settings(8, LINES, batch_size=2, seed=3)
        return model, trained(model, *arguments, shuffle)

    model, plain = run(None)
    for per in ("sample", "occurrence", "batch"):
        other, shuffled = run(ShuffleConfig("all", per))
        assert not same(plain, shuffled)
        assert len(model.calls) == len(other.calls) == 8
        for a, b in zip(model.calls, other.calls, strict=True):
            assert torch.equal(a.noisy, b.noisy) and torch.equal(a.t, b.t) and a.prompts == b.prompts
            assert all(torch.equal(x, y) for x, y in zip(a.latents, b.latents, strict=True))


def test_a_batch_larger_than_there_are_pictures_has_all_of_them_and_that_is_said_once(caplog):
    def warnings(batch_size):
        caplog.clear()
        model = FakeModel()
        list(train(model, fake_examples(3), fake_embedding(), settings(2, batch_size=batch_size)))
        assert {len(call.prompts) for call in model.calls} == {3}
        return [record.getMessage() for record in caplog.records if "batches of" in record.getMessage()]

    assert warnings(3) == []
    [warning] = warnings(8)
    assert "batches of 8 pictures" in warning and "there are 3" in warning


def test_lines_change_no_noise_and_no_picture_order():
    models = [FakeModel(), FakeModel()]
    for model, lines in zip(models, (LINES, LINES[:1]), strict=True):
        trained(model, fake_examples(5), fake_embedding(), settings(8, lines))
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(models[0].calls, models[1].calls, strict=True))


ORDER_CASES = {
    "sample": lambda a: a.prompt,
    "occurrence": lambda a: (a.prompt, a.occurrence),
    "batch": lambda a: a.prompt // 2,
}


@pytest.mark.parametrize("per", ORDER_CASES)
def test_orders_are_shared_as_told(per):
    model = FakeModel()
    told = settings(5, ["[name] beside [name]"], learning_rate="0", batch_size=2, gradient_accumulation=2)
    trained(model, fake_examples(4), numbered_embedding(6, 6), told, ShuffleConfig("all", per))
    assert len(model.asked) == 5 * 2 * 2 * 2 * 2  # steps, batches, samples, occurrences, encoders
    orders = {}
    for asked in model.asked:
        order = tuple((asked.rows[:, 0] * 10).round().int().tolist())
        assert sorted(order) == list(range(6))
        orders.setdefault(ORDER_CASES[per](asked), set()).add(order)
    assert all(len(shared) == 1 for shared in orders.values())  # between encoders too
    # Two that should be drawn apart are rarely the same of 720.
    assert len(set().union(*orders.values())) > 0.8 * len(orders)


def test_orders_of_encoders_with_other_numbers_of_vectors_are_their_own():
    model = FakeModel()
    trained(model, fake_examples(), numbered_embedding(5, 3), settings(learning_rate="0"), ShuffleConfig("all"))
    lengths = {"clip_l": 5, "clip_g": 3}
    for asked in model.asked:
        assert sorted((asked.rows[:, 0] * 10).round().int().tolist()) == list(range(lengths[asked.key]))


def test_without_shuffling_the_stored_order_is_used():
    model = FakeModel()
    trained(model, fake_examples(), numbered_embedding(5, 3), settings(learning_rate="0"))
    for asked in model.asked:
        assert (asked.rows[:, 0] * 10).round().int().tolist() == list(range(5 if asked.key == "clip_l" else 3))


def test_each_sample_comes_with_its_own_caption():
    # With next to no noise, what the model sees is the picture: its first number is the picture's.
    examples = [Example(torch.full((3, 4, 4 + 2 * (i % 2)), 10.0 * i), f"picture-{i}") for i in range(7)]
    model = FakeModel()
    trained(model, examples, fake_embedding(), settings(9, LINES[3:], batch_size=3, max_timestep=1))
    sizes = [len(call.noisy) for call in model.calls]
    # Four of one size, three of the other: 3 + 1 and 3 an epoch, each called for together.
    assert all(sorted(sizes[i : i + 3]) == [1, 3, 3] for i in (0, 3, 6))
    for call in model.calls:
        assert len(call.prompts) == len(call.latents) == len(call.t) == len(call.noisy)
        for noisy, prompt, latent in zip(call.noisy, call.prompts, call.latents, strict=True):
            number = round(noisy.mean().item() / 10)
            assert torch.equal(latent, examples[number].latent)
            # One space more than the template where the name would touch a comma.
            assert prompt.split() in (
                ["embedding:cat,", f"picture-{number}"],
                [f"picture-{number}", "and", "embedding:cat"],
            )
    for epoch in (0, 3, 6):
        shown = [prompt for call in model.calls[epoch : epoch + 3] for prompt in call.prompts]
        assert {f"picture-{i}" for i in range(7)} == {w for prompt in shown for w in prompt.split() if "picture" in w}


def test_a_line_is_drawn_anew_for_each_sample():
    model = FakeModel()
    trained(model, fake_examples(1), fake_embedding(), settings(40, LINES))
    assert len({call.prompts[0] for call in model.calls}) == len(LINES)
    model = FakeModel()
    trained(model, fake_examples(4), fake_embedding(), settings(10, LINES[:3], batch_size=4))
    assert any(len(set(call.prompts)) > 1 for call in model.calls)


def test_samples_of_a_batch_have_noise_and_timesteps_of_their_own():
    model = FakeModel()
    examples = [Example(torch.zeros(3, 4, 4), str(i)) for i in range(4)]
    trained(model, examples, fake_embedding(), settings(3, batch_size=4))
    sigmas = FakeModel().noise_schedule.noise
    for call in model.calls:
        gaussian = call.noisy / sigmas[call.t].float()[:, None, None, None]
        assert len(set(call.t.tolist())) > 1
        assert len(gaussian.flatten().unique()) == gaussian.numel()
        assert 0.8 < gaussian.std() < 1.2


@pytest.mark.parametrize(("low", "high"), [(0, 1000), (200, 210), (990, 1000), (0, 1)])
def test_timesteps_stay_in_their_range(low, high):
    model = FakeModel()
    limits = settings(20, batch_size=8, min_timestep=low, max_timestep=high)
    list(train(model, fake_examples(8), fake_embedding(), limits))
    drawn = torch.cat([call.t for call in model.calls])
    assert drawn.dtype == torch.int64
    if high - low <= 10:
        assert set(drawn.tolist()) == set(range(low, high))
    else:
        assert drawn.min() < 50 and drawn.max() >= 950 and 400 < drawn.float().mean() < 600


def test_timesteps_are_thousandths_of_the_models():
    model = FakeModel()
    fields = ("signal", "noise", "skip", "out")
    every_tenth = {name: getattr(model.noise_schedule, name)[::10] for name in fields}
    model.noise_schedule = type(model.noise_schedule)(**every_tenth)
    limits = settings(20, batch_size=8, min_timestep=500, max_timestep=520)
    list(train(model, fake_examples(8), fake_embedding(), limits))
    assert set(torch.cat([call.t for call in model.calls]).tolist()) == {50, 51}
    # Less than one of the model's timesteps is one of them.
    model.calls.clear()
    list(train(model, fake_examples(1), fake_embedding(), settings(5, min_timestep=984, max_timestep=988)))
    assert {call.t.item() for call in model.calls} == {98}


# Steps and rates


def test_accumulated_batches_count_as_one_step_of_their_mean(gradients):
    def run(steps, accumulation):
        gradients.clear()
        model = FakeModel()
        # At a rate of 0 all batches see the same vectors.
        told = settings(steps, LINES, learning_rate="0", gradient_accumulation=accumulation, batch_size=2)
        progress = [p for p, _ in snapshots(model, fake_examples(), fake_embedding(), told)]
        return model, progress, list(gradients)

    alone, progress_alone, gradients_alone = run(6, 1)
    together, progress_together, gradients_together = run(2, 3)
    assert [p.step for p in progress_together] == [1, 2]
    for a, b in zip(alone.calls, together.calls, strict=True):
        assert torch.equal(a.noisy, b.noisy) and a.prompts == b.prompts
    assert not torch.equal(gradients_alone[0][0], gradients_alone[1][0])
    for step in range(2):
        part = slice(3 * step, 3 * step + 3)
        mean = sum(p.loss for p in progress_alone[part]) / 3
        assert progress_together[step].loss == pytest.approx(mean, rel=1e-6)
        for key in range(2):
            expected = torch.stack([g[key] for g in gradients_alone[part]]).mean(0)
            assert torch.allclose(gradients_together[step][key], expected, rtol=1e-5, atol=1e-7)


def test_a_batch_gives_the_mean_gradient_of_its_samples(gradients):
    model, embedding = FakeModel(), fake_embedding()
    list(train(model, fake_examples(4), embedding, settings(1, LINES, batch_size=4, learning_rate="0")))
    [call] = model.calls
    schedule = model.noise_schedule
    vectors = {key: rows.clone().requires_grad_() for key, rows in embedding.vectors.items()}
    losses = []
    for noisy, t, prompt, latent in zip(call.noisy, call.t, call.prompts, call.latents, strict=True):
        gaussian = (noisy - latent) / schedule.noise[t].float()
        condition = model.condition(prompt, {"cat": lambda key, _: vectors[key]}, latent)
        losses.append(prediction_losses(model, latent[None], gaussian[None], t[None], [condition]).mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(vectors.values()))
    for actual, wanted in zip(gradients[0], expected, strict=True):
        assert torch.allclose(actual, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "rates", "steps", "expected"),
    [
        (0, "0.01:2, 0.02:3, 0.005", 5, [0.01, 0.01, 0.02, 0.005, 0.005]),
        (0, "0.01:2, 0.02:4", 100, [0.01, 0.01, 0.02, 0.02]),  # ends where the rates do
        (3, "0.01:2, 0.02:5, 0.005", 7, [0.02, 0.02, 0.005, 0.005]),
        (None, "0.01", 2, [0.01, 0.01]),
    ],
)
def test_steps_and_rates_are_those_of_the_schedule(start, rates, steps, expected):
    told = settings(steps, learning_rate=rates)
    embedding = fake_embedding(step=start)
    run = snapshots(FakeModel(), fake_examples(), embedding, told)
    assert [p.learning_rate for p, _ in run] == expected
    first = (start or 0) + 1
    assert [p.step for p, _ in run] == [e.step for _, e in run] == list(range(first, first + len(expected)))
    assert {p.last_step for p, _ in run} == {first + len(expected) - 1}
    # And it is these rates the optimizer uses: no element moves much further in one of Adam's first steps.
    before = embedding
    for (_, after), rate in zip(run, expected, strict=True):
        moved = max((after.vectors[k] - before.vectors[k]).abs().max().item() for k in after.vectors)
        assert 0.5 * rate < moved < 1.6 * rate
        before = after


@pytest.mark.parametrize(("start", "rates"), [(6, "0.01"), (2, "0.01:2"), (0, "0.01:x")])
def test_bad_schedules_are_errors_before_the_first_step(start, rates):
    model = FakeModel()
    with pytest.raises(ValueError):
        next(train(model, fake_examples(), fake_embedding(step=start), settings(6, learning_rate=rates)))
    assert not model.calls


def test_locked_vectors_do_not_move():
    before = fake_embedding(4, 3)
    shuffle = ShuffleConfig("between", progressive_words=True, unlock_every=3)
    run = snapshots(FakeModel(), fake_examples(), before, settings(10), shuffle)
    for progress, after in run:
        unlocked = 1 + progress.step // 3
        for key, rows in after.vectors.items():
            assert torch.equal(rows[unlocked:], before.vectors[key][unlocked:])
            assert (rows[:unlocked] != before.vectors[key][:unlocked]).any(1).all()


def test_unlocking_counts_on_from_the_embeddings_step():
    model = FakeModel()
    embedding = numbered_embedding(4, 4, step=5)
    shuffle = ShuffleConfig(progressive_words=True, unlock_every=3)
    told = settings(9, learning_rate="0", gradient_accumulation=2)
    list(train(model, fake_examples(), embedding, told, shuffle))
    lengths = [len(asked.rows) for asked in model.asked if asked.key == "clip_l"]
    assert lengths == [3, 3] * 3 + [4, 4]  # steps 6 to 9, two batches each


# Clipping


def largest(gradients):
    return max(g.abs().max().item() for g in gradients)


def norm(gradients):
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clipping_acts_on_true_gradients(gradients, dtype):
    def run(model_dtype, **clip):
        gradients.clear()
        told = settings(2, learning_rate="0", **clip)
        list(train(FakeModel(model_dtype, faint(FP16)), fake_examples(), fake_embedding(), told))
        return list(gradients)

    # Not scaled by the 65536 that keep small numbers from vanishing in fp16.
    plain = run(dtype)
    assert norm(plain[0]) == pytest.approx(norm(run(torch.float32)[0]), rel=0.02)

    at = norm(plain[0]) / 4
    clipped = run(dtype, gradient_clipping="norm", clip_at=at)[0]
    assert norm(clipped) == pytest.approx(at, rel=1e-3)
    assert all(torch.allclose(4 * c, p, rtol=1e-3) for c, p in zip(clipped, plain[0], strict=True))  # all together
    unclipped = run(dtype, gradient_clipping="norm", clip_at=1.1 * norm(plain[0]))[0]
    assert all(torch.equal(c, p) for c, p in zip(unclipped, plain[0], strict=True))

    at = largest(plain[0]) / 2
    clipped = run(dtype, gradient_clipping="value", clip_at=at)[0]
    assert all(torch.equal(c, p.clamp(-at, at)) for c, p in zip(clipped, plain[0], strict=True))


def test_small_gradients_survive_fp16(gradients):
    # A gradient of this size is 0 in fp16 unless the loss is scaled up on its way back.
    run = {}
    for dtype in (torch.float32, torch.float16):
        gradients.clear()
        arguments = fake_examples(1, (64, 64)), fake_embedding(), settings(1, learning_rate="0")
        list(train(FakeModel(dtype, faint(1e-4)), *arguments))
        run[dtype] = list(gradients[0])
    for exact, half in zip(run[torch.float32], run[torch.float16], strict=True):
        assert torch.allclose(half, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


# Masks


def test_masks_decide_which_places_are_learnt_from(gradients):
    mask = torch.zeros(4, 6)
    mask[:, 2:] = 1.5

    def run(change, weights):
        gradients.clear()
        [example] = fake_examples(1)
        latent = example.latent.clone()
        latent[:, :, change] += 3.0
        arguments = [Example(latent, "", weights)], fake_embedding(), settings(1, learning_rate="0")
        list(train(FakeModel(), *arguments))
        return gradients[0]

    left, right, nowhere = slice(0, 2), slice(2, 6), slice(0, 0)
    masked = run(nowhere, mask)
    assert all(torch.equal(a, b) for a, b in zip(run(left, mask), masked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(right, mask), masked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(left, None), run(nowhere, None), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(nowhere, None), masked, strict=True))


def test_pictures_without_a_mask_count_everywhere_alike():
    plain = fake_examples(2)
    ones = [replace(plain[0], weights=torch.ones(4, 6)), plain[1]]
    tilted = torch.linspace(0, 2, 24).reshape(4, 6)
    runs = [
        trained(FakeModel(), examples, fake_embedding(), settings(4, batch_size=2))
        for examples in (plain, ones, [replace(plain[0], weights=tilted), plain[1]])
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_masks_stay_with_their_pictures(gradients):
    """Of each of two pictures in a batch, only what its own mask leaves makes a difference."""
    halves = torch.zeros(2, 4, 6)
    halves[0, :, :3] = halves[1, :, 3:] = 2

    def run(value):
        gradients.clear()
        # What a picture's own mask hides is `value`.
        examples = [Example(torch.where(half > 0, 1.0, value).expand(3, 4, 6), "", half) for half in halves]
        list(train(FakeModel(), examples, fake_embedding(), settings(1, batch_size=2, learning_rate="0")))
        return gradients[0]

    assert all(torch.equal(a, b) for a, b in zip(run(0.0), run(9.0), strict=True))


def test_min_snr_changes_what_is_learnt():
    runs = [
        snapshots(FakeModel(), fake_examples(), fake_embedding(), settings(3, loss_weighting=weighting))
        for weighting in ("none", "min_snr")
    ]
    model = FakeModel()
    list(train(model, fake_examples(), fake_embedding(), settings(1)))
    [weight] = model.noise_schedule.min_snr_weight(model.calls[0].t, 5.0).tolist()
    assert runs[1][0][0].loss == pytest.approx(weight * runs[0][0][0].loss, rel=1e-5)
    assert not same(runs[0][-1][1], runs[1][-1][1])


# What stops a training


def test_each_progress_keeps_the_vectors_of_its_step():
    arguments = fake_examples(), fake_embedding(3, 2), settings(4)
    then = [embedding for _, embedding in snapshots(FakeModel(), *arguments)]
    later = [progress.learnt for progress in list(train(FakeModel(), *arguments))]
    assert [embedding.step for embedding in later] == [1, 2, 3, 4]
    assert all(same(a, b) for a, b in zip(later, then, strict=True))


def test_an_interrupt_between_two_encoders_updates_leaves_the_last_step(monkeypatch):
    class Interrupting(torch.optim.AdamW):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == 4:
                self.param_groups[0]["params"][0].data.add_(1)
                raise KeyboardInterrupt
            return super().step(closure)

    arguments = fake_examples(), fake_embedding(), settings()
    expected = snapshots(FakeModel(), *arguments)[2][1]
    monkeypatch.setattr(torch.optim, "AdamW", Interrupting)
    run = train(FakeModel(), *arguments)
    *_, last = islice(run, 3)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert last.learnt.step == 3 and same(last.learnt, expected)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_vectors_of_the_last_finite_one(value, accumulation):
    spoilt = 3 * accumulation + 1
    model = FakeModel(change=lambda prediction, call: prediction * value if call == spoilt else prediction)
    told = settings(gradient_accumulation=accumulation)
    training = Training(model, fake_examples(), LearnableEmbedding(fake_embedding()), told)
    _, second, third = islice(training.steps(), 3)
    assert same(training.learnt(), third.learnt)
    with pytest.raises(TrainingError, match=r"loss of step 4 is (nan|inf).*lower learning rate"):
        training.advance()
    # Those of step 3 are what the bad loss was computed from.
    assert training.learnt().step == 2 and same(training.learnt(), second.learnt)


@pytest.mark.parametrize("call", [1, 2])
def test_what_gave_no_finite_loss_is_nothing_learnt(call):
    model = FakeModel(change=lambda prediction, number: prediction * math.nan if number == call else prediction)
    training = Training(model, fake_examples(), LearnableEmbedding(fake_embedding()), settings())
    with pytest.raises(TrainingError):
        list(training.steps())
    assert training.learnt() is None


def with_infinite_gradient(calls):
    """The prediction's gradient is infinite in these calls; the prediction itself is as it was."""

    def change(prediction, call):
        if call in calls:
            prediction.register_hook(lambda gradient: gradient * math.inf)
        return prediction

    return change


def test_a_gradient_that_is_not_finite_takes_back_the_step_that_it_was_computed_from():
    model = FakeModel(change=with_infinite_gradient([4]))
    training = Training(model, fake_examples(), LearnableEmbedding(fake_embedding()), settings(gradient_accumulation=1))
    _, second, _ = islice(training.steps(), 3)
    with pytest.raises(TrainingError, match="gradients of step 4 are not finite"):
        training.advance()
    assert training.learnt().step == 2 and same(training.learnt(), second.learnt)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda prediction, call: prediction * math.nan if call == 4 else prediction, "loss after step 3 is nan"),
        (with_infinite_gradient([4]), "gradients after step 3 are not finite"),
    ],
)
def test_what_the_last_step_made_must_give_a_finite_loss_and_gradient(change, words):
    told = settings(3, gradient_accumulation=1)
    training = Training(FakeModel(change=change), fake_examples(), LearnableEmbedding(fake_embedding()), told)
    _, second, _ = training.steps()
    with pytest.raises(TrainingError, match=words):
        training.confirm()
    assert training.learnt().step == 2 and same(training.learnt(), second.learnt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [11, 12])
def test_what_no_prompt_has_named_since_is_not_good_yet(steps, seed):
    """A finite loss of a prompt without it says nothing about the embedding."""
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in ("embedding:cat", "a dog")]

    def training(model):
        told = settings(steps, ["[filewords]"], seed=seed)
        return Training(model, examples, LearnableEmbedding(fake_embedding()), told)

    def naming(model):
        return [number for number, call in enumerate(model.calls, 1) if call.prompts == ["embedding:cat"]]

    model = FakeModel()
    learnt = [step.learnt for step in training(model).steps()]
    *_, before, last = naming(model)

    def spoil(prediction, call):  # what `last` has made gives no finite loss
        return prediction * math.nan if call > last and call in naming(spoilt) else prediction

    spoilt = FakeModel(change=spoil)
    run = training(spoilt)
    assert len([*run.steps()]) == steps
    with pytest.raises(TrainingError, match="is nan"):
        run.confirm()
    assert run.learnt().step < last and same(run.learnt(), learnt[before - 1])


def test_confirming_changes_nothing():
    trainings = [
        Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings(6)) for _ in range(2)
    ]
    for _ in range(6):
        one, other = (training.advance() for training in trainings)
        trainings[0].confirm()
        assert same(one.learnt, other.learnt) and one.loss == other.loss


def test_a_gradient_that_is_not_finite_stops_with_the_last_good_vectors():
    run = train(FakeModel(change=with_infinite_gradient([4])), fake_examples(), fake_embedding(), settings())
    *_, last = islice(run, 3)
    before = last.learnt
    with pytest.raises(TrainingError, match=r"gradients of step 4 are not finite.*lower learning rate"):
        next(run)
    assert same(last.learnt, before)


def test_fp16_gradients_that_overflow_are_tried_smaller_but_not_for_ever():
    # What overflows when scaled may be fine: the same step is made again.
    overflowing, before = FakeModel(torch.float16, faint(FP16, with_infinite_gradient([1, 2, 6]))), fake_embedding()
    run = snapshots(overflowing, fake_examples(), before, settings(4))
    usual = snapshots(FakeModel(torch.float16, faint(FP16)), fake_examples(), before, settings(4))
    assert len(overflowing.calls) == 4 + 3
    for (_, learnt), (_, expected) in zip(run, usual, strict=True):
        for key, rows in learnt.vectors.items():
            torch.testing.assert_close(rows, expected.vectors[key], rtol=1e-2, atol=1e-3)
    # The scale starts at 2 ** 16: after 16 halvings it is no longer at fault.
    model = FakeModel(torch.float16, faint(FP16, with_infinite_gradient(range(2, 99))))
    run = train(model, fake_examples(), before, settings(99))
    learnt = next(run).learnt
    with pytest.raises(TrainingError, match="gradients of step 2 are not finite"):
        next(run)
    assert len(model.calls) == 1 + 17
    assert not same(learnt, before)


@dataclass(frozen=True)
class Steep(LearnableEmbedding):
    """Its gradients are finite, and their norm is not."""

    def conditions(self, model, tensors, batch):
        tensors = {address: rows * 1.0 for address, rows in tensors.items()}
        for rows in tensors.values():
            rows.register_hook(lambda gradient: gradient * 1e25)
        return super().conditions(model, tensors, batch)


def test_an_fp16_step_is_not_made_again_for_ever_where_only_the_norm_overflows():
    model = FakeModel(torch.float16, faint(FP16))
    training = Training(model, fake_examples(), Steep(fake_embedding()), settings(2))
    with pytest.raises(TrainingError, match="gradients of step 1 are not finite"):
        training.advance()
    assert len(model.calls) == 17


def scaled_by_0(calls):
    return lambda prediction, call: prediction * 0 + 1 if call in calls else prediction


def test_twenty_steps_without_a_gradient_stop():
    run = train(FakeModel(change=scaled_by_0(range(99))), fake_examples(), fake_embedding(), settings(50))
    assert [progress.step for progress in islice(run, 19)] == list(range(1, 20))
    with pytest.raises(TrainingError, match="For 20 steps no gradient has reached the embedding"):
        next(run)


def test_nineteen_steps_without_a_gradient_do_not_stop():
    without = [*range(1, 20), *range(21, 40)]
    run = snapshots(FakeModel(change=scaled_by_0(without)), fake_examples(), fake_embedding(), settings(40))
    assert len(run) == 40
    assert same(run[18][1], fake_embedding()) and not same(run[19][1], fake_embedding())


def test_a_model_cut_off_from_the_vectors_is_one_without_gradient():
    cut_off = FakeModel(change=lambda prediction, call: prediction.detach())
    run = train(cut_off, fake_examples(), fake_embedding(), settings(50))
    assert len(list(islice(run, 19))) == 19
    with pytest.raises(TrainingError, match="no gradient has reached the embedding"):
        next(run)


def test_pictures_whose_caption_does_not_name_the_embedding_teach_nothing():
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in ("embedding:cat", "a dog", "two dogs")]
    model = FakeModel()
    run = snapshots(model, examples, fake_embedding(), settings(6, ["[filewords]"]))
    assert len(run) == 6
    assert same(run[0][1], fake_embedding()) == (model.calls[0].prompts != ["embedding:cat"])


@pytest.mark.parametrize(
    ("template", "captions"),
    [(["[filewords]"], ["a cat", ""]), (["a picture"], ["cat"]), (["[filewords]"], ["embedding:cats"])],
)
def test_nothing_that_names_the_embedding_is_an_error_before_the_first_step(template, captions):
    model = FakeModel()
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in captions]
    with pytest.raises(TrainingError, match=r"Nothing would be learnt.*\[name\] or embedding:cat"):
        next(train(model, examples, fake_embedding(), settings(template=template)))
    assert not model.calls and not model.prompts


@pytest.mark.parametrize("call", [0, 3, 4, 5])
def test_an_interrupt_is_looked_for_before_each_batch(call):
    told = settings(3, gradient_accumulation=3)
    model = FakeModel(is_interrupted=lambda calls: calls == call)
    training = Training(model, fake_examples(), LearnableEmbedding(fake_embedding()), told)
    expected = [learnt for _, learnt in snapshots(FakeModel(), fake_examples(), fake_embedding(), told)]
    with pytest.raises(Interrupted):
        list(training.steps())
    assert len(model.calls) == call
    learnt = training.learnt()
    assert learnt is None if call < 3 else same(learnt, expected[0])


# Memory


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: out of memory"),  # torch.AcceleratorError, where there is one
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("unable to mmap 1065353216 bytes from file <a.ckpt>: Cannot allocate memory (12)"),
]


def out_of_memory(calls, in_backward=False, error=SHORT[0]):
    """Runs out of memory in these calls to `predict`, or in backward from there."""

    def change(prediction, call):
        def fail(*_):
            raise error

        if call in calls and in_backward:
            prediction.register_hook(fail)
        elif call in calls:
            fail()
        return prediction

    return change


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("call", [1, 4])
def test_running_out_of_memory_turns_on_checkpoints_and_changes_no_bit(call, in_backward):
    arguments = (
        fake_examples(4),
        fake_embedding(4),
        settings(4, LINES, batch_size=2, gradient_accumulation=2),
        ShuffleConfig("all", "occurrence"),
    )
    plain, short = FakeModel(), FakeModel(change=out_of_memory([call], in_backward))
    expected = snapshots(plain, *arguments)
    run = snapshots(short, *arguments)
    assert (plain.checkpointed, short.checkpointed) == (0, 1)
    assert len(short.calls) == len(plain.calls) + 1
    assert [p.loss for p, _ in run] == [p.loss for p, _ in expected]
    assert all(same(a, b) for (_, a), (_, b) in zip(run, expected, strict=True))


@pytest.mark.parametrize("in_backward", [False, True])
def test_what_filled_the_memory_is_gone_before_the_second_try(in_backward):
    graph, is_gone = [], []

    def change(prediction, call):
        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        is_gone.append([kept() is None for kept in graph])
        prediction.register_hook(fail if call == 1 and in_backward else (lambda *_, graph=fail: None))
        graph.append(weakref.ref(fail))  # what only the graph keeps
        if call == 1 and not in_backward:
            fail()
        return prediction

    model = FakeModel(change=change)
    next(train(model, fake_examples(), fake_embedding(), settings(1, gradient_accumulation=1)))
    assert is_gone == [[], [True]]


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_every_way_to_say_that_memory_is_short_is_understood(error):
    model = FakeModel(change=out_of_memory([2], error=error))
    assert len(list(train(model, fake_examples(), fake_embedding(), settings(3)))) == 3
    assert model.checkpointed == 1


def test_other_errors_are_not_taken_for_want_of_memory():
    model = FakeModel(change=out_of_memory([2], error=RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(RuntimeError, match="assert"):
        list(train(model, fake_examples(), fake_embedding(), settings(3)))
    assert model.checkpointed == 0


class LittleMemory(FakeModel):
    """Has room for `room` pictures at a time, and for more by `spared` with checkpoints."""

    room, spared = 2, 0

    def predict(self, noisy, t, conditions):
        room = self.room + (self.spared if self.checkpointed else 0)
        if len(conditions) > room:
            self.calls.append(None)
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.07 "
                "GiB is free. Process 1 has 5.00 GiB memory in use."
            )
        return super().predict(noisy, t, conditions)


def little_memory(room, spared=0):
    model = LittleMemory()
    model.room, model.spared = room, spared
    return model


def sizes(model):
    """How many pictures each call to the model was for; 0 for one that failed."""
    return [len(call.prompts) if call else 0 for call in model.calls]


# Pictures of two sizes, so that there are incomplete batches; masks on some of them.
UNEVEN = [*fake_examples(5), *(fake_example(i, (6, 4), weights=fixed(i, 6, 4).exp().float()) for i in range(5, 8))]
UNEVEN += [fake_example(8, (6, 4))]


@pytest.mark.parametrize("per", ["sample", "occurrence", "batch"])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_computed_in_parts_and_learns_the_same(room, per):
    """Same pictures, prompts, noise and orders: the same up to rounding."""
    arguments = (
        UNEVEN,
        fake_embedding(4),
        settings(5, LINES, batch_size=5, gradient_accumulation=3, loss_weighting="min_snr"),
        ShuffleConfig("all", per),
    )
    plain, short = FakeModel(), little_memory(room)
    expected, run = snapshots(plain, *arguments), snapshots(short, *arguments)
    assert [step.loss for step, _ in run] == pytest.approx([step.loss for step, _ in expected], rel=1e-6)
    for (_, a), (_, b) in zip(run, expected, strict=True):
        assert all(torch.allclose(a.vectors[key], b.vectors[key], rtol=0, atol=1e-6) for key in a.vectors)

    def seen(model):
        """Prompt, noise and timestep of every picture."""
        calls = [call for call in model.calls if call]
        return {
            (each.prompts[i], each.noisy[i].sum().item(), each.t[i].item())
            for each in calls
            for i in range(len(each.t))
        }

    assert seen(short) == seen(plain)


def test_memory_is_first_saved_by_checkpoints_then_by_halves_and_stays_so(caplog):
    model = little_memory(2)
    list(train(model, fake_examples(5), fake_embedding(), settings(3, batch_size=5)))
    assert model.checkpointed == 1
    assert sizes(model) == [0, 0, 0] + [2, 2, 1] * 3  # all five, with checkpoints, three
    assert "gradient_checkpointing" in caplog.messages[0]
    assert [message.partition("with ")[2][:35] for message in caplog.messages[1:]] == [
        "3 pictures at a time in place of 5;",
        "2 pictures at a time in place of 3;",
    ]


def test_batches_stay_whole_where_checkpoints_are_enough(caplog):
    model = little_memory(2, spared=2)
    list(train(model, fake_examples(4), fake_embedding(), settings(3, batch_size=4)))
    assert (model.checkpointed, sizes(model)) == (1, [0, 4, 4, 4])


@pytest.mark.parametrize(("checkpointing", "times"), [("off", 0), ("on", 1)])
def test_who_decides_on_checkpoints_gets_halves_at_once(checkpointing, times):
    model = little_memory(2)
    list(
        train(
            model, fake_examples(4), fake_embedding(), settings(1, batch_size=4, gradient_checkpointing=checkpointing)
        )
    )
    assert (model.checkpointed, sizes(model)) == (times, [0, 2, 2])


def test_the_fixed_loss_is_taken_in_parts_too_and_needs_no_checkpoints():
    learnable, told = LearnableEmbedding(fake_embedding(4)), settings(40, batch_size=4, evaluate_every=20)
    plain, short = FakeModel(), little_memory(2)
    losses = [Training(model, fake_examples(4), learnable, told).evaluate().loss for model in (plain, short)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert short.checkpointed == 0 and sizes(short)[:3] == [0, 2, 2] and sizes(short).count(0) == 1


def test_half_precision_scales_each_part():
    arguments = fake_examples(4), fake_embedding(), settings(4, batch_size=4)
    half = {"dtype": torch.float16, "change": faint(FP16)}
    plain, short = FakeModel(**half), LittleMemory(**half)
    expected, run = trained(plain, *arguments), trained(short, *arguments)
    assert max(sizes(short)) == 2
    for key, rows in run.vectors.items():
        assert torch.allclose(rows, expected.vectors[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointing", ["off", "on", "auto"])
def test_one_picture_that_does_not_fit_ends_the_training_with_the_sizes(checkpointing):
    model, examples = LittleMemory(), [replace(each, size=(48, 32)) for each in fake_examples(4)]
    arguments = settings(4, batch_size=4, gradient_checkpointing=checkpointing)
    training = Training(model, examples, LearnableEmbedding(fake_embedding()), arguments)
    before = training.advance().learnt
    model.room = 0
    with pytest.raises(TrainingError) as stopped:
        training.advance()
    assert same(training.learnt(), before)
    message = str(stopped.value)
    is_on = "off" if checkpointing == "off" else "on"
    assert (
        "one picture of 48x32 pixels at a time (float32 on cpu, gradient_checkpointing "
        f"{is_on}, batch_size 4): CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 "
        "GiB of which 1.07 GiB is free. Smaller pictures"
    ) in message
    assert ("gradient_checkpointing auto" in message) == (checkpointing == "off")
    assert stopped.value.__context__ is None  # whose frames would hold what fills the memory


def test_a_training_that_goes_on_does_not_try_again_what_did_not_fit():
    arguments = fake_examples(4), LearnableEmbedding(fake_embedding()), settings(6, LINES, batch_size=4)
    model = little_memory(2)
    unbroken = [step.learnt for step in Training(little_memory(2), *arguments).steps()]
    first = Training(model, *arguments)
    for _ in range(3):
        first.advance()
    again = little_memory(2)
    rest = [step.learnt for step in Training(again, *arguments, state=first.state()).steps()]
    assert (again.checkpointed, sizes(again)) == (1, [2] * 6)
    assert all(map(same, rest, unbroken[3:]))


@pytest.mark.parametrize(("checkpointing", "times"), [("on", 1), ("auto", 0), ("off", 0)])
def test_checkpoints_are_turned_on_when_told(checkpointing, times):
    model = FakeModel()
    list(train(model, fake_examples(), fake_embedding(), settings(gradient_checkpointing=checkpointing)))
    assert model.checkpointed == times


# What autograd refuses


REFUSED = RuntimeError("one of the variables needed for gradient computation has been modified by an inplace operation")


class Refusing(FakeModel):
    """What autograd refuses, in forward or in backward, until it is asked to give way."""

    in_backward = False

    def predict(self, noisy, t, conditions):
        prediction = super().predict(noisy, t, conditions)
        if not self.can_give_way:
            return prediction
        if not self.in_backward:
            raise REFUSED
        if prediction.requires_grad:
            prediction.register_hook(self.refuse)
        return prediction

    def refuse(self, gradient):
        raise REFUSED


@pytest.mark.parametrize("in_backward", [False, True])
def test_what_autograd_refuses_is_tried_otherwise_once_and_changes_no_bit(in_backward):
    arguments = (
        fake_examples(4),
        fake_embedding(4),
        settings(4, LINES, batch_size=2, gradient_accumulation=2),
        ShuffleConfig("all", "occurrence"),
    )
    plain, refusing = FakeModel(), Refusing(can_give_way=True)
    refusing.in_backward = in_backward
    expected, run = snapshots(plain, *arguments), snapshots(refusing, *arguments)
    assert (refusing.gave_way, refusing.checkpointed) == (1, 0)
    assert len(refusing.calls) == len(plain.calls) + 1
    assert [p.loss for p, _ in run] == [p.loss for p, _ in expected]
    assert all(same(a, b) for (_, a), (_, b) in zip(run, expected, strict=True))


def test_an_error_that_stays_is_raised_after_one_more_try():
    model = FakeModel(change=out_of_memory(range(3, 99), error=REFUSED), can_give_way=True)
    steps = train(model, fake_examples(), fake_embedding(), settings(6))
    with pytest.raises(RuntimeError) as raised:
        list(steps)
    assert raised.value is REFUSED
    assert (model.gave_way, len(model.calls), model.checkpointed) == (2, 4, 0)


@pytest.mark.parametrize("error", [UserError("no"), ValueError("no"), Interrupted(), KeyboardInterrupt()], ids=repr)
def test_what_has_nothing_to_do_with_autograd_is_not_tried_again(error):
    model = FakeModel(change=out_of_memory([2], error=error), can_give_way=True)
    with pytest.raises(type(error)):
        list(train(model, fake_examples(), fake_embedding(), settings(3)))
    assert (model.gave_way, len(model.calls)) == (0, 2)


def test_want_of_memory_is_no_reason_to_give_way_and_both_may_come():
    def change(prediction, call):
        if call == 1:
            raise REFUSED
        if call == 2:
            raise SHORT[0]
        return prediction

    model = FakeModel(change=change, can_give_way=True)
    list(train(model, fake_examples(4), fake_embedding(), settings(2, batch_size=4)))
    assert (model.gave_way, model.checkpointed, len(model.calls)) == (1, 1, 4)
    assert sizes(model) == [4] * 4


def test_the_fixed_loss_gives_way_too():
    learnable, told = LearnableEmbedding(fake_embedding(4)), settings(40, batch_size=4, evaluate_every=20)
    plain, refusing = FakeModel(), Refusing(can_give_way=True)
    losses = [Training(model, fake_examples(4), learnable, told).evaluate().loss for model in (plain, refusing)]
    assert losses[1] == losses[0] and refusing.gave_way == 1


def test_what_the_refused_try_computed_is_gone_before_the_next():
    kept, is_gone = [], []

    def change(prediction, call):
        def mine(*_):
            raise RuntimeError("refused")  # anew, as errors hold the frames that they came through

        is_gone.append([each() is None for each in kept])
        if call == 1:
            kept.append(weakref.ref(mine))
            prediction.register_hook(mine)
        return prediction

    model = FakeModel(change=change, can_give_way=True)
    next(train(model, fake_examples(), fake_embedding(), settings(1)))
    assert is_gone == [[], [True]]


class OneEncoder(FakeModel):
    """Never asks for clip_g."""

    def condition(self, prompt, lookups, latent):
        def only_clip_l(key, occurrence):
            return lookups["cat"](key, occurrence) if key == "clip_l" else torch.zeros(1, 6)

        return super().condition(prompt, {"cat": only_clip_l}, latent)


def test_an_encoder_that_is_not_reached_keeps_its_vectors():
    before = fake_embedding()
    after = trained(OneEncoder(), fake_examples(), before, settings(3))
    assert torch.equal(after.vectors["clip_g"], before.vectors["clip_g"])
    assert not torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])


def test_one_encoder_is_enough():
    embedding = Embedding("cat", {"clip_l": fake_embedding().vectors["clip_l"]}, 0)
    after = trained(OneEncoder(), fake_examples(), embedding, settings(2))
    assert after.vectors.keys() == {"clip_l"} and not same(after, embedding)


# Vectors that are not always there


def test_a_vector_that_is_unlocked_later_begins_as_the_first_one_did():
    """Adam's first step is the learning rate, whatever the gradient, if it counts each vector's steps for itself."""
    shuffle = ShuffleConfig(progressive_words=True, unlock_every=5)
    before = numbered_embedding(3, 3)
    told = settings(11, learning_rate="0.005")
    steps = [learnt.vectors["clip_l"] for _, learnt in snapshots(FakeModel(), fake_examples(), before, told, shuffle)]
    rows = [before.vectors["clip_l"], *steps]
    for vector, step in ((0, 1), (1, 5), (2, 10)):  # `unlocked` counts from 0
        assert all(torch.equal(rows[n][vector], rows[0][vector]) for n in range(step))
        moved = (rows[step][vector] - rows[step - 1][vector]).abs()
        assert torch.allclose(moved, torch.full_like(moved, 0.005), rtol=1e-2)


def test_a_batch_that_does_not_name_the_embedding_does_not_move_it():
    """Momentum of earlier steps would."""
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in ("embedding:cat", "a dog")]
    model = FakeModel()
    run = snapshots(model, examples, fake_embedding(), settings(12, ["[filewords]"]))
    before = fake_embedding()
    named = [call.prompts == ["embedding:cat"] for call in model.calls]
    assert 2 < sum(named) < 10
    for is_named, (_, learnt) in zip(named, run, strict=True):
        assert same(learnt, before) != is_named
        before = learnt


# Going on to the bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_training_goes_on_from_its_state_to_the_bit(dtype, stop, tmp_path):
    """Locked vectors, captions without the name and, in half precision, a step that overflows included."""
    examples = [*fake_examples(4), *(replace(each, caption="no name") for each in fake_examples(3, (6, 4)))]
    shuffle = ShuffleConfig("all", "occurrence", progressive_words=True, unlock_every=3)
    told = settings(9, ["[name]", "[filewords]"], batch_size=2, gradient_accumulation=2, learning_rate="0.01:6, 0.001")

    def training(overflowing, state=None):
        change = with_infinite_gradient([overflowing] if dtype == torch.float16 else [])
        model = FakeModel(dtype, faint(FP16, change))
        return Training(model, examples, LearnableEmbedding(fake_embedding(4, 3), shuffle), told, state=state)

    whole = list(training(3).steps())
    first = training(3)
    done = [first.advance() for _ in range(stop)]
    torch.save(first.state(), tmp_path / "state.pt")
    later = first.advance()  # which changes nothing of what was stored
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = training(3 - 2 * stop, state)
    assert same(second.learnt(), done[-1].learnt) and second.step == stop
    rest = list(second.steps())
    assert [step.loss for step in (*done, *rest)] == [step.loss for step in whole]
    assert all(same(a.learnt, b.learnt) for a, b in zip((*done, *rest), whole, strict=True))
    assert same(later.learnt, rest[0].learnt)


@pytest.mark.parametrize("stop", range(5, 11))
def test_a_step_interrupted_while_it_is_made_again_goes_on_to_the_bit(stop):
    """The second of five steps of two batches each; its gradients overflow three times."""

    def training(calls, stop=None, state=None):
        overflow = with_infinite_gradient(calls)

        def change(prediction, call):
            if call == stop:
                raise KeyboardInterrupt
            return overflow(prediction, call)

        model = FakeModel(torch.float16, faint(FP16, change))
        told = settings(5, gradient_accumulation=2)
        return Training(model, fake_examples(), LearnableEmbedding(fake_embedding()), told, state=state)

    whole = [step.learnt for step in training([3, 5, 7]).steps()]
    first = training([3, 5, 7], stop)
    done = [first.advance().learnt]
    with pytest.raises(KeyboardInterrupt):
        first.advance()
    again = stop - 1 + stop % 2  # the first call of the attempt that was interrupted
    second = training([call - again + 1 for call in (3, 5, 7) if call >= again], state=first.state())
    rest = [step.learnt for step in second.steps()]
    assert all(same(a, b) for a, b in zip((*done, *rest), whole, strict=True))


def test_a_state_is_not_changed_by_the_training_that_takes_or_gives_it():
    learnable, told = LearnableEmbedding(fake_embedding()), settings(6)
    first = Training(FakeModel(), fake_examples(), learnable, told)
    first.advance()
    state = first.state()
    kept = copy.deepcopy(state)
    list(first.steps())
    list(Training(FakeModel(), fake_examples(), learnable, told, state=state).steps())
    assert str(state) == str(kept)


# What can be learnt


@dataclass(frozen=True)
class TwoEmbeddings(Learnable):
    """`[name]` is the first one; the second has its own name in captions."""

    first: LearnableEmbedding
    second: LearnableEmbedding
    name = "two"
    step = 0

    @property
    def tensors(self):
        return {**self.first.tensors, **self.second.tensors}

    def prompt(self, line, example):
        return self.first.prompt(line, example)

    def is_named(self, prompt):
        return self.first.is_named(prompt) or self.second.is_named(prompt)

    def conditions(self, model, tensors, batch):
        lookups = [
            {name: lambda key, _, name=name: tensors[name, key] for name in (self.first.name, self.second.name)}
        ] * len(batch.prompts)
        return model.conditions(batch.prompts, lookups, [example.latent for example in batch.examples])

    def snapshot(self, tensors, step):
        return [
            each.snapshot({address: rows for address, rows in tensors.items() if address[0] == each.name}, step)
            for each in (self.first, self.second)
        ]


def test_two_embeddings_are_learnt_at_once():
    cat, hat = fake_embedding(3, 2), replace(fake_embedding(2, 1), name="hat")
    examples = [replace(each, caption=caption) for each, caption in zip(fake_examples(2), ("embedding:hat", "a dog"),
                                                                        strict=True)]  # fmt: skip
    model = FakeModel()
    learnable = TwoEmbeddings(LearnableEmbedding(cat), LearnableEmbedding(hat))
    steps = list(Training(model, examples, learnable, settings(8, ["[filewords] of [name]"])).steps())
    assert {asked.name for asked in model.asked} == {"cat", "hat"}
    learnt_cat, learnt_hat = steps[-1].learnt
    assert (learnt_cat.name, learnt_hat.name, learnt_hat.step) == ("cat", "hat", 8)
    assert not same(learnt_cat, cat) and not same(learnt_hat, hat)
    for n, (call, step) in enumerate(zip(model.calls, steps, strict=True)):
        before = steps[n - 1].learnt if n else [cat, hat]
        assert not same(step.learnt[0], before[0])
        assert same(step.learnt[1], before[1]) == ("hat" not in call.prompts[0])


@dataclass(frozen=True)
class Added(Learnable):
    """A plain tensor, added to every conditioning; no prompt has to name it."""

    name = "added"
    step = 0

    @property
    def tensors(self):
        return {("added", "context"): torch.zeros(1, 3)}

    def prompt(self, line, example):
        return line

    def is_named(self, prompt):
        return True

    def conditions(self, model, tensors, batch):
        plain = model.conditions(batch.prompts, [{}] * len(batch.prompts), [e.latent for e in batch.examples])
        return [replace(each, rows=each.rows + tensors["added", "context"][0]) for each in plain]

    def snapshot(self, tensors, step):
        return tensors["added", "context"]


def test_a_tensor_added_to_the_conditioning_is_learnt():
    training = Training(FakeModel(), fake_examples(), Added(), settings(80, ["a picture"], learning_rate="0.05"))
    losses = [step.loss for step in training.steps()]
    assert training.learnt().abs().min() > 0
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("masked", [False, True])
def test_pictures_of_any_rank_are_learnt_from(masked):
    """Of videos as well as of pictures: the same places count, whatever stands between channels and places."""
    flat = [
        replace(each, weights=torch.linspace(0, 2, 24).reshape(4, 6) if masked else None) for each in fake_examples(2)
    ]
    deep = [replace(each, latent=each.latent[:, None]) for each in flat]
    losses = {}
    for name, examples in (("flat", flat), ("deep", deep)):
        run = train(FakeModel(), examples, fake_embedding(), settings(4, batch_size=2))
        losses[name] = [step.loss for step in run]
    assert losses["deep"] == pytest.approx(losses["flat"], rel=1e-5)
