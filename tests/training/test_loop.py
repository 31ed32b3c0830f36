import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

from textinv_core.dataset import Example
from textinv_core.embedding import Embedding
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.loop import STREAMS, TrainingError, chance, train
from textinv_core.training.loss import prediction_loss
from textinv_core.training.settings import TrainSettings

LINES = ("a embedding:cat of [name]", "[name]", "look at [name] there", "[filewords] and [name]", "[name], [filewords]")


def settings(steps=6, template=("a picture of [name]",), **more):
    return TrainSettings(tuple(template), steps, **{"gradient_accumulation": 1, **more})


def snapshots(*arguments):
    """Every Progress of a training with the vectors it had then."""
    return [(progress, progress.embedding()) for progress in train(*arguments)]


def trained(*arguments):
    return snapshots(*arguments)[-1][1]


def same(a, b):
    """Whether two embeddings hold the same bits."""
    assert a.vectors.keys() == b.vectors.keys()
    return all(torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors)


def faint(factor, change=lambda prediction, call: prediction):
    """The prediction's gradient is `factor` of what it is; the prediction itself is as it was."""
    return lambda prediction, call: change(factor * prediction + (1 - factor) * prediction.detach(), call)


# The fake model's gradients are larger than a real one's: 65536 times that is more than fp16 can hold.
FP16 = 0.005


@pytest.fixture
def gradients(monkeypatch):
    """The gradients that reach the optimizer: one list a step, one tensor an encoder."""
    seen = []

    class Recording(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append([rows.grad.clone() for group in self.param_groups for rows in group["params"]])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return seen


# Learning


def test_the_loss_on_fixed_noise_falls(make_model, make_embedding, make_examples):
    model, examples, embedding = make_model(), make_examples(), make_embedding()
    t = torch.arange(40, 1000, 40)
    gaussian = torch.randn(len(t), 3, 4, 6, generator=torch.Generator().manual_seed(3))

    def loss(embedding):
        latents = torch.stack([examples[i % 3].latent for i in range(len(t))])
        condition = model.condition("a embedding:cat", "cat", lambda key, _: embedding.vectors[key], latents[0])
        return float(prediction_loss(model, latents, gaussian, t, [condition] * len(t)))

    after = trained(model, examples, embedding, settings(60, ["a [name]"], learning_rate="0.02"))
    assert loss(after) < 0.8 * loss(embedding)


def test_every_vector_of_both_encoders_learns(make_model, make_embedding, make_examples):
    before = make_embedding(3, 2)
    after = trained(make_model(), make_examples(), before, settings(1, learning_rate="0.005"))
    for key, rows in after.vectors.items():
        # Adam's first step is the learning rate, whatever the gradient: no weight decay comes on top.
        assert torch.allclose((rows - before.vectors[key]).abs(), torch.full_like(rows, 0.005), rtol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_model, make_embedding, make_examples):
    def run(seed):
        return trained(
            make_model(),
            make_examples(5),
            make_embedding(),
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
def test_vectors_are_float32_and_copies_whatever_the_model_is(make_model, make_embedding, make_examples, dtype):
    embedding = make_embedding(metadata={"textinv.base": "sd"})
    originals = {key: rows.clone() for key, rows in embedding.vectors.items()}
    steps = snapshots(make_model(dtype, faint(FP16)), make_examples(), embedding, settings(3))
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
def test_a_training_that_goes_on_sees_what_it_would_have_seen(make_model, make_embedding, make_examples, accumulation):
    # Ten pictures of two sizes: an epoch of three batches of the one and two of the other, left in the midst of one.
    examples = make_examples(6) + make_examples(4, (6, 4))
    shuffle = ShuffleConfig("all", "occurrence")

    def run(start, steps):
        model = make_model()
        told = settings(steps, LINES, batch_size=2, learning_rate="0", gradient_accumulation=accumulation)
        list(train(model, examples, make_embedding(step=start), told, shuffle))
        return model

    whole, parts = run(0, 9), [run(0, 4), run(4, 9)]
    calls = [call for part in parts for call in part.calls]
    assert len(whole.calls) == len(calls) == 9 * accumulation
    for a, b in zip(whole.calls, calls, strict=True):
        assert torch.equal(a.noisy, b.noisy) and torch.equal(a.t, b.t) and a.prompts == b.prompts
    asked = [each for part in parts for each in part.asked]
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(whole.asked, asked, strict=True))


@pytest.mark.parametrize("per", ["sample", "occurrence", "batch"])
def test_orders_do_not_depend_on_when_a_host_asks_for_them(make_model, make_embedding, make_examples, per):
    class Backwards(make_model):
        def conditions(self, prompts, name, lookups, latents):
            # As a host that encodes several times, and the last prompt first.
            for lookup in reversed(lookups):
                lookup("clip_g", 1)
            each = [*zip(prompts, lookups, latents, strict=True)]
            return [self.condition(prompt, name, lookup, latent) for prompt, lookup, latent in each[::-1]][::-1]

    told = settings(4, LINES, batch_size=2, learning_rate="0")
    arguments = make_examples(4), make_embedding(4, 3), told, ShuffleConfig("all", per)
    losses = [[progress.loss for progress in train(cls(), *arguments)] for cls in (make_model, Backwards)]
    assert losses[0] == losses[1]


def test_shuffling_changes_no_noise_timestep_prompt_or_picture(make_model, make_embedding, make_examples):
    def run(shuffle):
        model = make_model()
        arguments = make_examples(5), make_embedding(4), settings(8, LINES, batch_size=2, seed=3)
        return model, trained(model, *arguments, shuffle)

    model, plain = run(None)
    for per in ("sample", "occurrence", "batch"):
        other, shuffled = run(ShuffleConfig("all", per))
        assert not same(plain, shuffled)
        assert len(model.calls) == len(other.calls) == 8
        for a, b in zip(model.calls, other.calls, strict=True):
            assert torch.equal(a.noisy, b.noisy) and torch.equal(a.t, b.t) and a.prompts == b.prompts
            assert all(torch.equal(x, y) for x, y in zip(a.latents, b.latents, strict=True))


def test_lines_change_no_noise_and_no_picture_order(make_model, make_embedding, make_examples):
    models = [make_model(), make_model()]
    for model, lines in zip(models, (LINES, LINES[:1]), strict=True):
        trained(model, make_examples(5), make_embedding(), settings(8, lines))
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(models[0].calls, models[1].calls, strict=True))


ORDER_CASES = {
    "sample": lambda a: a.prompt,
    "occurrence": lambda a: (a.prompt, a.occurrence),
    "batch": lambda a: a.prompt // 2,
}


@pytest.mark.parametrize("per", ORDER_CASES)
def test_orders_are_shared_as_told(make_model, numbered_embedding, make_examples, per):
    model = make_model()
    told = settings(5, ["[name] beside [name]"], learning_rate="0", batch_size=2, gradient_accumulation=2)
    trained(model, make_examples(4), numbered_embedding(6, 6), told, ShuffleConfig("all", per))
    assert len(model.asked) == 5 * 2 * 2 * 2 * 2  # steps, batches, samples, occurrences, encoders
    orders = {}
    for asked in model.asked:
        order = tuple((asked.rows[:, 0] * 10).round().int().tolist())
        assert sorted(order) == list(range(6))
        orders.setdefault(ORDER_CASES[per](asked), set()).add(order)
    assert all(len(shared) == 1 for shared in orders.values())  # between encoders too
    # Two that should be drawn apart are rarely the same of 720.
    assert len(set().union(*orders.values())) > 0.8 * len(orders)


def test_orders_of_encoders_with_other_numbers_of_vectors_are_their_own(make_model, numbered_embedding, make_examples):
    model = make_model()
    trained(model, make_examples(), numbered_embedding(5, 3), settings(learning_rate="0"), ShuffleConfig("all"))
    lengths = {"clip_l": 5, "clip_g": 3}
    for asked in model.asked:
        assert sorted((asked.rows[:, 0] * 10).round().int().tolist()) == list(range(lengths[asked.key]))


def test_without_shuffling_the_stored_order_is_used(make_model, numbered_embedding, make_examples):
    model = make_model()
    trained(model, make_examples(), numbered_embedding(5, 3), settings(learning_rate="0"))
    for asked in model.asked:
        assert (asked.rows[:, 0] * 10).round().int().tolist() == list(range(5 if asked.key == "clip_l" else 3))


def test_each_sample_comes_with_its_own_caption(make_model, make_embedding):
    # With next to no noise, what the model sees is the picture: its first number is the picture's.
    examples = [Example(torch.full((3, 4, 4 + 2 * (i % 2)), 10.0 * i), f"picture-{i}") for i in range(7)]
    model = make_model()
    trained(model, examples, make_embedding(), settings(9, LINES[3:], batch_size=3, max_timestep=1))
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


def test_a_line_is_drawn_anew_for_each_sample(make_model, make_embedding, make_examples):
    model = make_model()
    trained(model, make_examples(1), make_embedding(), settings(40, LINES))
    assert len({call.prompts[0] for call in model.calls}) == len(LINES)
    model = make_model()
    trained(model, make_examples(4), make_embedding(), settings(10, LINES[:3], batch_size=4))
    assert any(len(set(call.prompts)) > 1 for call in model.calls)


def test_samples_of_a_batch_have_noise_and_timesteps_of_their_own(make_model, make_embedding):
    model = make_model()
    examples = [Example(torch.zeros(3, 4, 4), str(i)) for i in range(4)]
    trained(model, examples, make_embedding(), settings(3, batch_size=4))
    sigmas = make_model().noise_schedule.noise
    for call in model.calls:
        gaussian = call.noisy / sigmas[call.t].float()[:, None, None, None]
        assert len(set(call.t.tolist())) > 1
        assert len(gaussian.flatten().unique()) == gaussian.numel()
        assert 0.8 < gaussian.std() < 1.2


@pytest.mark.parametrize(("low", "high"), [(0, 1000), (200, 210), (990, 1000), (0, 1)])
def test_timesteps_stay_in_their_range(make_model, make_embedding, make_examples, low, high):
    model = make_model()
    limits = settings(20, batch_size=8, min_timestep=low, max_timestep=high)
    list(train(model, make_examples(8), make_embedding(), limits))
    drawn = torch.cat([call.t for call in model.calls])
    assert drawn.dtype == torch.int64
    if high - low <= 10:
        assert set(drawn.tolist()) == set(range(low, high))
    else:
        assert drawn.min() < 50 and drawn.max() >= 950 and 400 < drawn.float().mean() < 600


def test_timesteps_are_thousandths_of_the_models(make_model, make_embedding, make_examples):
    model = make_model()
    fields = ("signal", "noise", "skip", "out")
    every_tenth = {name: getattr(model.noise_schedule, name)[::10] for name in fields}
    model.noise_schedule = type(model.noise_schedule)(**every_tenth)
    limits = settings(20, batch_size=8, min_timestep=500, max_timestep=520)
    list(train(model, make_examples(8), make_embedding(), limits))
    assert set(torch.cat([call.t for call in model.calls]).tolist()) == {50, 51}
    # Less than one of the model's timesteps is one of them.
    model.calls.clear()
    list(train(model, make_examples(1), make_embedding(), settings(5, min_timestep=984, max_timestep=988)))
    assert {call.t.item() for call in model.calls} == {98}


# Steps and rates


def test_accumulated_batches_count_as_one_step_of_their_mean(make_model, make_embedding, make_examples, gradients):
    def run(steps, accumulation):
        gradients.clear()
        model = make_model()
        # At a rate of 0 all batches see the same vectors.
        told = settings(steps, LINES, learning_rate="0", gradient_accumulation=accumulation, batch_size=2)
        progress = [p for p, _ in snapshots(model, make_examples(), make_embedding(), told)]
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


def test_a_batch_gives_the_mean_gradient_of_its_samples(make_model, make_embedding, make_examples, gradients):
    model, embedding = make_model(), make_embedding()
    list(train(model, make_examples(4), embedding, settings(1, LINES, batch_size=4, learning_rate="0")))
    [call] = model.calls
    schedule = model.noise_schedule
    vectors = {key: rows.clone().requires_grad_() for key, rows in embedding.vectors.items()}
    losses = []
    for noisy, t, prompt, latent in zip(call.noisy, call.t, call.prompts, call.latents, strict=True):
        gaussian = (noisy - latent) / schedule.noise[t].float()
        condition = model.condition(prompt, "cat", lambda key, _: vectors[key], latent)
        losses.append(prediction_loss(model, latent[None], gaussian[None], t[None], [condition]))
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
def test_steps_and_rates_are_those_of_the_schedule(
    make_model, make_embedding, make_examples, start, rates, steps, expected
):
    told = settings(steps, learning_rate=rates)
    embedding = make_embedding(step=start)
    run = snapshots(make_model(), make_examples(), embedding, told)
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
def test_bad_schedules_are_errors_before_the_first_step(make_model, make_embedding, make_examples, start, rates):
    model = make_model()
    with pytest.raises(ValueError):
        next(train(model, make_examples(), make_embedding(step=start), settings(6, learning_rate=rates)))
    assert not model.calls


def test_locked_vectors_do_not_move(make_model, make_embedding, make_examples):
    before = make_embedding(4, 3)
    shuffle = ShuffleConfig("between", progressive_words=True, unlock_every=3)
    run = snapshots(make_model(), make_examples(), before, settings(10), shuffle)
    for progress, after in run:
        unlocked = 1 + progress.step // 3
        for key, rows in after.vectors.items():
            assert torch.equal(rows[unlocked:], before.vectors[key][unlocked:])
            assert (rows[:unlocked] != before.vectors[key][:unlocked]).any(1).all()


def test_unlocking_counts_on_from_the_embeddings_step(make_model, numbered_embedding, make_examples):
    model = make_model()
    embedding = replace(numbered_embedding(4, 4), step=5)
    shuffle = ShuffleConfig(progressive_words=True, unlock_every=3)
    told = settings(9, learning_rate="0", gradient_accumulation=2)
    list(train(model, make_examples(), embedding, told, shuffle))
    lengths = [len(asked.rows) for asked in model.asked if asked.key == "clip_l"]
    assert lengths == [3, 3] * 3 + [4, 4]  # steps 6 to 9, two batches each


# Clipping


def largest(gradients):
    return max(g.abs().max().item() for g in gradients)


def norm(gradients):
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clipping_acts_on_true_gradients(make_model, make_embedding, make_examples, gradients, dtype):
    def run(model_dtype, **clip):
        gradients.clear()
        told = settings(2, learning_rate="0", **clip)
        list(train(make_model(model_dtype, faint(FP16)), make_examples(), make_embedding(), told))
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


def test_small_gradients_survive_fp16(make_model, make_embedding, make_examples, gradients):
    # A gradient of this size is 0 in fp16 unless the loss is scaled up on its way back.
    run = {}
    for dtype in (torch.float32, torch.float16):
        gradients.clear()
        arguments = make_examples(1, (64, 64)), make_embedding(), settings(1, learning_rate="0")
        list(train(make_model(dtype, faint(1e-4)), *arguments))
        run[dtype] = list(gradients[0])
    for exact, half in zip(run[torch.float32], run[torch.float16], strict=True):
        assert torch.allclose(half, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


# Masks


def test_masks_decide_which_places_are_learnt_from(make_model, make_embedding, make_examples, gradients):
    mask = torch.zeros(4, 6)
    mask[:, 2:] = 1.5

    def run(change, weights):
        gradients.clear()
        [example] = make_examples(1)
        latent = example.latent.clone()
        latent[:, :, change] += 3.0
        arguments = [Example(latent, "", weights)], make_embedding(), settings(1, learning_rate="0")
        list(train(make_model(), *arguments))
        return gradients[0]

    left, right, nowhere = slice(0, 2), slice(2, 6), slice(0, 0)
    masked = run(nowhere, mask)
    assert all(torch.equal(a, b) for a, b in zip(run(left, mask), masked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(right, mask), masked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(left, None), run(nowhere, None), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(nowhere, None), masked, strict=True))


def test_pictures_without_a_mask_count_everywhere_alike(make_model, make_embedding, make_examples):
    plain = make_examples(2)
    ones = [replace(plain[0], weights=torch.ones(4, 6)), plain[1]]
    tilted = torch.linspace(0, 2, 24).reshape(4, 6)
    runs = [
        trained(make_model(), examples, make_embedding(), settings(4, batch_size=2))
        for examples in (plain, ones, [replace(plain[0], weights=tilted), plain[1]])
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_masks_stay_with_their_pictures(make_model, make_embedding, gradients):
    """Of each of two pictures in a batch, only what its own mask leaves makes a difference."""
    halves = torch.zeros(2, 4, 6)
    halves[0, :, :3] = halves[1, :, 3:] = 2

    def run(value):
        gradients.clear()
        # What a picture's own mask hides is `value`.
        examples = [Example(torch.where(half > 0, 1.0, value).expand(3, 4, 6), "", half) for half in halves]
        list(train(make_model(), examples, make_embedding(), settings(1, batch_size=2, learning_rate="0")))
        return gradients[0]

    assert all(torch.equal(a, b) for a, b in zip(run(0.0), run(9.0), strict=True))


def test_min_snr_changes_what_is_learnt(make_model, make_embedding, make_examples):
    runs = [
        snapshots(make_model(), make_examples(), make_embedding(), settings(3, loss_weighting=weighting))
        for weighting in ("none", "min_snr")
    ]
    model = make_model()
    list(train(model, make_examples(), make_embedding(), settings(1)))
    [weight] = model.noise_schedule.min_snr_weight(model.calls[0].t, 5.0).tolist()
    assert runs[1][0][0].loss == pytest.approx(weight * runs[0][0][0].loss, rel=1e-5)
    assert not same(runs[0][-1][1], runs[1][-1][1])


# What stops a training


def test_each_progress_keeps_the_vectors_of_its_step(make_model, make_embedding, make_examples):
    arguments = make_examples(), make_embedding(3, 2), settings(4)
    then = [embedding for _, embedding in snapshots(make_model(), *arguments)]
    later = [progress.embedding() for progress in list(train(make_model(), *arguments))]
    assert [embedding.step for embedding in later] == [1, 2, 3, 4]
    assert all(same(a, b) for a, b in zip(later, then, strict=True))


def test_an_interrupt_between_two_encoders_updates_leaves_the_last_step(
    make_model, make_embedding, make_examples, monkeypatch
):
    class Interrupting(torch.optim.AdamW):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == 4:
                self.param_groups[0]["params"][0].data.add_(1)
                raise KeyboardInterrupt
            return super().step(closure)

    arguments = make_examples(), make_embedding(), settings()
    expected = snapshots(make_model(), *arguments)[2][1]
    monkeypatch.setattr(torch.optim, "AdamW", Interrupting)
    run = train(make_model(), *arguments)
    *_, last = islice(run, 3)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert last.embedding().step == 3 and same(last.embedding(), expected)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_vectors(
    make_model, make_embedding, make_examples, value, accumulation
):
    spoilt = 3 * accumulation + 1
    model = make_model(change=lambda prediction, call: prediction * value if call == spoilt else prediction)
    run = train(model, make_examples(), make_embedding(), settings(gradient_accumulation=accumulation))
    *_, last = islice(run, 3)
    before = last.embedding()
    with pytest.raises(TrainingError, match=r"loss of step 4 is (nan|inf).*lower learning rate"):
        next(run)
    assert same(last.embedding(), before) and last.embedding().step == 3
    assert all(rows.isfinite().all() for rows in before.vectors.values())


def with_infinite_gradient(calls):
    """The prediction's gradient is infinite in these calls; the prediction itself is as it was."""

    def change(prediction, call):
        if call in calls:
            prediction.register_hook(lambda gradient: gradient * math.inf)
        return prediction

    return change


def test_a_gradient_that_is_not_finite_stops_with_the_last_good_vectors(make_model, make_embedding, make_examples):
    run = train(make_model(change=with_infinite_gradient([4])), make_examples(), make_embedding(), settings())
    *_, last = islice(run, 3)
    before = last.embedding()
    with pytest.raises(TrainingError, match=r"gradients of step 4 are not finite.*lower learning rate"):
        next(run)
    assert same(last.embedding(), before)


def test_fp16_gradients_that_overflow_are_tried_smaller_but_not_for_ever(make_model, make_embedding, make_examples):
    # What overflows when scaled may be fine: such steps change nothing, and later ones learn.
    model, before = make_model(torch.float16, faint(FP16, with_infinite_gradient([1, 2]))), make_embedding()
    run = snapshots(model, make_examples(), before, settings(4))
    assert same(run[0][1], before) and same(run[1][1], before) and not same(run[2][1], before)
    assert all(rows.isfinite().all() for rows in run[-1][1].vectors.values())
    # The scale starts at 2 ** 16: after 16 halvings it is no longer at fault.
    model = make_model(torch.float16, with_infinite_gradient(range(1, 99)))
    run = train(model, make_examples(), before, settings(99))
    *_, last = islice(run, 16)
    with pytest.raises(TrainingError, match="gradients of step 17 are not finite"):
        next(run)
    assert same(last.embedding(), before)


def scaled_by_0(calls):
    return lambda prediction, call: prediction * 0 + 1 if call in calls else prediction


def test_twenty_steps_without_a_gradient_stop(make_model, make_embedding, make_examples):
    run = train(make_model(change=scaled_by_0(range(99))), make_examples(), make_embedding(), settings(50))
    assert [progress.step for progress in islice(run, 19)] == list(range(1, 20))
    with pytest.raises(TrainingError, match="For 20 steps no gradient has reached the embedding"):
        next(run)


def test_nineteen_steps_without_a_gradient_do_not_stop(make_model, make_embedding, make_examples):
    without = [*range(1, 20), *range(21, 40)]
    run = snapshots(make_model(change=scaled_by_0(without)), make_examples(), make_embedding(), settings(40))
    assert len(run) == 40
    assert same(run[18][1], make_embedding()) and not same(run[19][1], make_embedding())


def test_a_model_cut_off_from_the_vectors_is_one_without_gradient(make_model, make_embedding, make_examples):
    cut_off = make_model(change=lambda prediction, call: prediction.detach())
    run = train(cut_off, make_examples(), make_embedding(), settings(50))
    assert len(list(islice(run, 19))) == 19
    with pytest.raises(TrainingError, match="no gradient has reached the embedding"):
        next(run)


def test_pictures_whose_caption_does_not_name_the_embedding_teach_nothing(make_model, make_embedding):
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in ("embedding:cat", "a dog", "two dogs")]
    model = make_model()
    run = snapshots(model, examples, make_embedding(), settings(6, ["[filewords]"]))
    assert len(run) == 6
    assert same(run[0][1], make_embedding()) == (model.calls[0].prompts != ["embedding:cat"])


def test_an_encoder_that_is_not_reached_keeps_its_vectors(make_model, make_embedding, make_examples):
    class OneEncoder(make_model):
        def condition(self, prompt, name, lookup, latent):
            return super().condition(prompt, name, lambda key, n: lookup("clip_l", n).detach().new_zeros(1, 6)
                                     if key == "clip_g" else lookup(key, n), latent)  # fmt: skip

    before = make_embedding()
    after = trained(OneEncoder(), make_examples(), before, settings(3))
    assert torch.equal(after.vectors["clip_g"], before.vectors["clip_g"])
    assert not torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])


@pytest.mark.parametrize(
    ("template", "captions"),
    [(["[filewords]"], ["a cat", ""]), (["a picture"], ["cat"]), (["[filewords]"], ["embedding:cats"])],
)
def test_nothing_that_names_the_embedding_is_an_error_before_the_first_step(
    make_model, make_embedding, template, captions
):
    model = make_model()
    examples = [Example(torch.ones(3, 4, 4), caption) for caption in captions]
    with pytest.raises(TrainingError, match=r"Nothing would be learnt.*\[name\] or embedding:cat"):
        next(train(model, examples, make_embedding(), settings(template=template)))
    assert not model.calls and not model.prompts


# Memory


def out_of_memory(calls, in_backward=False):
    """Runs out of memory in these calls to `predict`, or in backward from there."""

    def change(prediction, call):
        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        if call in calls and in_backward:
            prediction.register_hook(fail)
        elif call in calls:
            fail()
        return prediction

    return change


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("call", [1, 4])
def test_running_out_of_memory_turns_on_checkpoints_and_changes_no_bit(
    make_model, make_embedding, make_examples, call, in_backward
):
    arguments = (
        make_examples(4),
        make_embedding(4),
        settings(4, LINES, batch_size=2, gradient_accumulation=2),
        ShuffleConfig("all", "occurrence"),
    )
    plain, short = make_model(), make_model(change=out_of_memory([call], in_backward))
    expected = snapshots(plain, *arguments)
    run = snapshots(short, *arguments)
    assert (plain.checkpointed, short.checkpointed) == (0, 1)
    assert len(short.calls) == len(plain.calls) + 1
    assert [p.loss for p, _ in run] == [p.loss for p, _ in expected]
    assert all(same(a, b) for (_, a), (_, b) in zip(run, expected, strict=True))


@pytest.mark.parametrize(
    ("checkpointing", "calls", "times"), [("off", [2], 0), ("on", [2], 1), ("auto", [2, 3], 1), ("auto", [2, 5], 1)]
)
def test_running_out_of_memory_for_good_is_an_error(
    make_model, make_embedding, make_examples, checkpointing, calls, times
):
    model = make_model(change=out_of_memory(calls))
    with pytest.raises(torch.OutOfMemoryError):
        list(train(model, make_examples(), make_embedding(), settings(gradient_checkpointing=checkpointing)))
    assert model.checkpointed == times
    assert len(model.calls) == calls[-1]


@pytest.mark.parametrize(("checkpointing", "times"), [("on", 1), ("auto", 0), ("off", 0)])
def test_checkpoints_are_turned_on_when_told(make_model, make_embedding, make_examples, checkpointing, times):
    model = make_model()
    list(train(model, make_examples(), make_embedding(), settings(gradient_checkpointing=checkpointing)))
    assert model.checkpointed == times


def test_one_encoder_is_enough(make_model, make_embedding, make_examples):
    class OneEncoder(make_model):
        def condition(self, prompt, name, lookup, latent):
            return super().condition(
                prompt, name, lambda key, n: lookup(key, n) if key == "clip_l" else torch.zeros(1, 6), latent
            )

    embedding = Embedding("cat", {"clip_l": make_embedding().vectors["clip_l"]}, 0)
    after = trained(OneEncoder(), make_examples(), embedding, settings(2))
    assert after.vectors.keys() == {"clip_l"} and not same(after, embedding)
