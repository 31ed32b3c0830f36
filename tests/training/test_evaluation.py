from dataclasses import replace
from itertools import count

import pytest
import torch

from tests.fakes import FakeModel, Interrupted, fake_embedding, fake_example, fake_examples, same
from textinv_core.errors import TrainingError, UserError
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training import evaluation
from textinv_core.training.evaluation import (
    AT_REST,
    PROBES,
    WINDOW,
    Evaluated,
    can_end_early,
    has_learnt_enough,
    is_at_rest,
    is_out_of_patience,
    noise,
    probes,
    split,
    steps_between,
)
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.objective import prediction_losses
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training, check

SHUFFLED = ShuffleConfig("all", "occurrence", progressive_words=True, unlock_every=4)


def settings(steps=6, template=("a picture of [name]", "[name] there"), **more):
    return TrainSettings(tuple(template), steps, **{"gradient_accumulation": 1, **more})


def training(model=None, examples=None, told=None, shuffle=SHUFFLED, **more):
    learnable = LearnableEmbedding(fake_embedding(4, 3), shuffle)
    return Training(model or FakeModel(), examples or fake_examples(5), learnable, told or settings(**more))


def all_probes(examples, told, held_out=(), timesteps=1000):
    learnable = LearnableEmbedding(fake_embedding())
    return probes(learnable, examples, held_out, told, timesteps)


# What is probed


@pytest.mark.parametrize(
    ("low", "high", "timesteps"), [(0, 1000, 1000), (200, 700, 1000), (500, 501, 1000), (0, 1000, 50)]
)
def test_timesteps_are_spread_evenly_over_those_learnt_from(low, high, timesteps):
    told = settings(min_timestep=low, max_timestep=high)
    found = sorted(probe.timestep for [probe] in all_probes(fake_examples(3), told, timesteps=timesteps))
    first, end = timesteps * low // 1000, timesteps * high // 1000
    assert len(found) == PROBES
    for n, timestep in enumerate(found):  # in the middle of the n-th of equal parts
        assert first <= timestep < end
        assert abs(timestep - (first + (n + 0.5) * (end - first) / PROBES)) < 1


def test_pictures_are_probed_in_turn_and_batches_have_one_size():
    examples = [fake_example(n, size) for n, size in enumerate([(4, 6)] * 3 + [(6, 4)] * 2)]
    batches = all_probes(examples, settings(batch_size=4))
    asked = sorted((probe for batch in batches for probe in batch), key=lambda probe: probe.number)
    assert [probe.example.caption for probe in asked] == [f"picture-{n % 5}" for n in range(PROBES)]
    assert [probe.timestep for probe in asked] == sorted(probe.timestep for probe in asked)
    assert all(len({probe.example.latent.shape for probe in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == 4 and len(batches) == 5  # 10 and 6, four at a time


def test_probes_name_the_embedding_wherever_a_line_does():
    lines = ["a dog", "[filewords]", "[filewords], a dog"]
    examples = [fake_example(n, caption=caption) for n, caption in enumerate(["a cat", "embedding:cat", ""])]
    asked = [probe for [probe] in all_probes(examples, settings(template=lines))]
    assert {probe.prompt for probe in asked} == {"embedding:cat", "embedding:cat, a dog"}
    # Those learnt from, where no picture held out does.
    [cat, named, _] = examples
    assert {p.example.caption for [p] in all_probes([named], settings(template=lines), [cat])} == {"embedding:cat"}


@pytest.mark.parametrize("named", [[7], [2, 7, 30], list(range(40))])
def test_few_pictures_that_name_the_embedding_are_probed_in_turn(named):
    examples = [fake_example(n, caption="embedding:cat" if n in named else "a dog") for n in range(40)]
    for i, example in enumerate(examples):
        example.latent[0, 0, 0] = i
    batches = all_probes(examples, settings(template=["[filewords]"]))
    found = sorted((probe.number, int(probe.example.latent[0, 0, 0])) for [probe] in batches)
    assert found == [(n, named[n % min(len(named), PROBES)]) for n in range(PROBES)]


def test_pictures_are_asked_about_only_until_there_are_enough():
    asked = []

    def names(prompt, name):
        asked.append(prompt)
        return True

    examples = [fake_example(n, caption=f"a dog {n}") for n in range(10 * PROBES)]
    probes(LearnableEmbedding(fake_embedding(), names=names), examples, [], settings(template=["[filewords]"]), 1000)
    assert asked == [f"a dog {n}" for n in range(PROBES)]


def test_each_probe_has_noise_of_its_own():
    asked = [probe for [probe] in all_probes(fake_examples(2), settings())]
    drawn = [noise(probe, seed).flatten() for probe in asked for seed in (0, 1)]
    assert len({tuple(each.tolist()) for each in drawn}) == 2 * PROBES
    assert torch.stack(drawn).std() == pytest.approx(1, abs=0.05)
    assert torch.equal(noise(asked[3], 1), noise(asked[3], 1))


# The fixed loss


@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_it_is_the_mean_over_the_probes_with_vectors_in_stored_order(weighting):
    masked = torch.linspace(0, 2, 24).reshape(4, 6)
    examples = [fake_example(0, weights=masked), fake_example(1), fake_example(2, (6, 4))]
    model, told = FakeModel(), settings(loss_weighting=weighting, batch_size=3)
    trained = training(model, examples, told)
    trained.advance()
    rows = trained.learnt().vectors
    before = len(model.asked)
    loss = trained.evaluate().loss
    assert all(torch.equal(asked.rows, rows[asked.key]) for asked in model.asked[before:])
    by_hand = []
    for batch in all_probes(examples, told):
        for probe in batch:
            condition = model.condition(probe.prompt, {"cat": lambda key, _: rows[key]}, probe.example.latent)
            weights = None if probe.example.weights is None else probe.example.weights[None]
            given = probe.example.latent[None], noise(probe, told.seed)[None], torch.tensor([probe.timestep])
            by_hand.append(float(prediction_losses(model, *given, [condition], weights, weighting)))
    assert len(by_hand) == PROBES
    assert loss == pytest.approx(sum(by_hand) / PROBES, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_changes_nothing(dtype):
    def run(evaluating):
        one = training(FakeModel(dtype, lambda prediction, _: 0.005 * prediction + 0.995 * prediction.detach()))
        losses = [one.evaluate().loss] if evaluating else []
        for _ in one.steps():
            losses += [one.evaluate().loss, one.evaluate().loss] if evaluating else []
        return one, losses

    torch.manual_seed(3)
    before = torch.get_rng_state()
    (plain, _), (evaluated, losses) = run(False), run(True)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(plain.learnt(), evaluated.learnt())
    own = {"best_step", "best", "evaluations"}
    states = [{key: value for key, value in one.state().items() if key not in own} for one in (plain, evaluated)]
    assert str(states[0]) == str(states[1])
    assert losses[1::2] == losses[2::2] and len(set(losses)) == 7  # each step another, and twice the same


def test_it_needs_no_gradients():
    def grown(prediction, call):
        assert not prediction.requires_grad
        return prediction

    training(FakeModel(change=grown)).evaluate()


def test_it_falls_while_single_losses_jump():
    one = training(told=settings(30, learning_rate="0.02"), shuffle=ShuffleConfig())
    fixed, single = [one.evaluate().loss], []
    for step in one.steps():
        single.append(step.loss)
        fixed.append(one.evaluate().loss)
    assert fixed[-1] < 0.9 * fixed[0]

    def jumps(losses):
        return float(torch.tensor(losses).diff().abs().mean())

    assert jumps(fixed) < 0.1 * jumps(single)


def test_it_is_the_same_after_going_on():
    first = training()
    first.advance()
    state, found = first.state(), first.evaluate()
    again = Training(FakeModel(), fake_examples(5), first.learnable, first.settings, state=state)
    assert again.evaluate() == found and found.is_best


def test_it_stops_where_the_person_asks():
    model = FakeModel(is_interrupted=lambda calls: calls >= 3)
    with pytest.raises(Interrupted):
        training(model).evaluate()
    assert len(model.calls) == 3


def test_one_that_is_not_finite_is_a_divergence():
    calls = count()
    model = FakeModel(change=lambda prediction, _: prediction * (float("nan") if next(calls) > 4 else 1))
    one = training(model)
    for _ in range(3):
        one.advance()
    with pytest.raises(TrainingError, match="The loss after step 3 is nan: the training has diverged"):
        one.evaluate()
    assert one.learnt().step == 2
    with pytest.raises(TrainingError, match="The loss before the first step is nan"):
        training(FakeModel(change=lambda prediction, _: prediction * float("nan"))).evaluate()


# The best step, and when it is enough


def losing(losses):
    """A training whose fixed losses are these, one after another."""

    class Losing(Training):
        def _probed(self, batch):
            return torch.full((len(batch),), self.told[len(self.evaluations)])

    def make(told, state=None):
        one = Losing(FakeModel(), fake_examples(5), LearnableEmbedding(fake_embedding(4, 3)), told, state=state)
        one.told = losses
        return one

    return make


def test_the_best_step_is_the_first_of_the_lowest_below_the_start():
    one = losing([1.0, 0.9, 0.5, 0.5, 0.7])(settings(4))
    assert one.evaluate() == Evaluated(0, pytest.approx(1.0), False) and one.best() is None
    steps = list(zip(one.steps(), iter(one.evaluate, None), strict=False))
    assert [found.is_best for _, found in steps] == [True, True, False, False]
    assert one.best().step == 2 and same(one.best(), steps[1][0].learnt)
    assert not same(one.best(), one.learnt())


def test_no_step_is_best_that_is_worse_than_the_start():
    one = losing([0.5, 0.9, 0.6, 0.5])(settings(3))
    one.evaluate()
    assert [one.evaluate().is_best for _ in one.steps()] == [False] * 3 and one.best() is None


def test_the_best_step_is_part_of_the_state():
    make = losing([1.0, 0.9, 0.5, 0.6, 0.7])
    first = make(settings(4))
    first.evaluate()
    for _ in range(3):
        first.advance()
        first.evaluate()
    again = make(settings(4), first.state())
    assert again.evaluations == first.evaluations and same(again.best(), first.best())
    again.advance()
    assert not again.evaluate().is_best
    assert again.best().step == 2


def test_it_is_due_at_the_start_every_so_many_steps_and_at_the_end():
    one = losing([0.5] * 10)(settings(8, evaluate_every=3))
    due = []
    while True:
        if one.is_due:
            due.append(one.evaluate().step)
            assert not one.is_due
        if one.is_over:
            break
        one.advance()
    assert due == [0, 3, 6, 8]
    assert not training(told=settings(evaluate_every=0)).is_due
    # A state that was written before the evaluation of its step.
    half = losing([0.5] * 10)(settings(8, evaluate_every=3))
    for _ in range(3):
        half.advance()
    assert losing([0.5] * 10)(half.settings, half.state()).is_due


def test_a_training_that_has_learnt_enough_is_over_also_when_it_is_gone_on_with():
    make = losing([1.0, 0.5, 0.6, 0.7, 0.4, 0.6, 0.6, 0.6])
    told = settings(7, early_stop="patience", patience=2)
    one = make(told)
    one.evaluate()
    while not one.is_over:
        one.advance()
        one.evaluate()
    assert one.step == 3
    assert make(told, one.state()).is_over
    assert not make(replace(told, patience=3), one.state()).is_over
    assert not make(replace(told, early_stop="off"), one.state()).is_over


def test_a_best_step_that_has_turned_out_to_be_no_good_is_none():
    # The gradients of the step after it are not finite, so that it never had any.
    calls = count()
    model = FakeModel(change=lambda prediction, _: prediction * (float("nan") if next(calls) > PROBES else 1))
    one = training(model, told=settings(learning_rate="1e-9"))
    one.advance()
    assert one.evaluate().is_best and one.best().step == 1
    with pytest.raises(TrainingError):
        one.advance()
    assert one.learnt() is None and one.best() is None


# Pictures held out


def test_pictures_held_out_are_probed_and_not_learnt_from():
    model, examples = FakeModel(), fake_examples(6)
    told = settings(12, held_out=2, seed=5)
    one = training(model, examples, told)
    list(one.steps())
    learnt_from = {tuple(call.latents[0].flatten().tolist()) for call in model.calls}
    del model.calls[:]
    one.evaluate()
    probed = {tuple(call.latents[0].flatten().tolist()) for call in model.calls}
    assert (len(learnt_from), len(probed)) == (4, 2)
    assert not learnt_from & probed
    assert one.batches_an_epoch == 4


def test_the_seed_decides_which_and_none_twice():
    chosen = {seed: split(8, settings(held_out=3, seed=seed)) for seed in range(20)}
    assert all(sorted(learnt + out) == list(range(8)) and len(out) == 3 for learnt, out in chosen.values())
    assert all(learnt == sorted(learnt) for learnt, _ in chosen.values())
    assert len({tuple(sorted(out)) for _, out in chosen.values()}) > 10
    assert split(8, settings(held_out=3, seed=4)) == chosen[4]


@pytest.mark.parametrize("held_out", [3, 10])
def test_one_picture_at_least_is_left(held_out):
    learnable = LearnableEmbedding(fake_embedding())
    expected = f"held_out cannot be {held_out} with 3 pictures; at least one must be left to learn from"
    with pytest.raises(UserError, match=expected):
        check(learnable, fake_examples(3), settings(held_out=held_out))
    check(learnable, fake_examples(3), settings(held_out=2))


def test_a_picture_that_is_left_has_to_name_the_embedding():
    told = settings(held_out=1, template=["[filewords]"])
    _, [out] = split(2, told)
    examples = [replace(each, caption="embedding:cat" if n == out else "") for n, each in enumerate(fake_examples(2))]
    with pytest.raises(TrainingError, match="Nothing would be learnt"):
        check(LearnableEmbedding(fake_embedding()), examples, told)


# What is decided by it


def test_by_default_a_tenth_of_the_time_at_most():
    for batch_size, accumulation in [(1, 1), (1, 4), (4, 1), (3, 2), (16, 4), (64, 8)]:
        told = settings(batch_size=batch_size, gradient_accumulation=accumulation)
        for steps in range(1, 700):
            if every := steps_between(told, steps):
                evaluations = 1 + steps // every + (steps % every > 0)
                probed = evaluations * PROBES / 2  # a picture learnt from counts as two that are probed
                assert probed / (probed + steps * batch_size * accumulation) <= 0.1
    four = settings(gradient_accumulation=4)
    assert [steps_between(four, steps) for steps in (35, 36, 60, 100, 500, 10_000)] == [0, 36, 30, 25, 25, 25]
    assert steps_between(settings(evaluate_every=7), 10) == 7
    assert steps_between(settings(evaluate_every=0), 500) == 0


def test_patience_counts_evaluations_since_the_best():
    assert not is_out_of_patience([1.0], 2)
    assert not is_out_of_patience([1.0, 0.9, 0.8, 0.9], 2)
    assert is_out_of_patience([1.0, 0.9, 0.8, 0.9, 0.85], 2)
    assert is_out_of_patience([1.0, 0.9, 0.8, 0.8, 0.8], 2)  # as low is not lower
    assert not is_out_of_patience([1.0, 0.9, 0.8, 0.9, 0.7], 2)
    # The start is no step to go back to: a first rise is waited for, then given up.
    assert not is_out_of_patience([0.1, 0.9, 0.95], 2)
    assert is_out_of_patience([0.1, 0.9, 0.95, 0.95], 2)


def test_dvar_stops_when_the_window_varies_little():
    falling = [1.0 - 0.05 * n for n in range(30)]
    assert not any(is_at_rest(falling[:n]) for n in range(1, 10))
    settled = [1.0, 0.6, 0.4, *[0.3] * WINDOW]
    assert is_at_rest(settled)
    assert not is_at_rest(settled[1 - WINDOW :])  # no more than a window yet
    # Just above and below the share.
    start, flat = [1.0], [0.0, 0.1] * (WINDOW // 2)
    share = torch.tensor(flat).var(correction=0) / torch.tensor(start + flat).var(correction=0)
    assert is_at_rest(start + flat) == (share < AT_REST)


def test_early_stop_is_one_of_these(monkeypatch):
    rising = [1.0, 0.5, *[0.6] * 40]
    assert not has_learnt_enough(rising, settings())
    assert has_learnt_enough(rising, settings(early_stop="patience"))
    assert has_learnt_enough(rising, settings(early_stop="dvar"))
    falling = [1.0 - 0.01 * n for n in range(8)]
    assert not has_learnt_enough(falling, settings(early_stop="patience"))
    assert not has_learnt_enough(falling, settings(early_stop="dvar"))
    monkeypatch.setattr(evaluation, "is_at_rest", lambda losses: True)
    assert has_learnt_enough(falling, settings(early_stop="dvar"))


def test_early_stop_without_evaluations_is_refused():
    with pytest.raises(UserError, match="early_stop cannot be 'dvar' with evaluate_every 0"):
        settings(early_stop="dvar", evaluate_every=0)


@pytest.mark.parametrize("early_stop", ["patience", "dvar"])
@pytest.mark.parametrize("every", [1, 3])
def test_what_can_be_ended_early_is_told_from_what_cannot(early_stop, every):
    told = settings(early_stop=early_stop, evaluate_every=every)
    at_rest = [9.0, *[0.5] * 40]
    for steps in range(1, 40):
        before_the_end = at_rest[: 1 + (steps - 1) // every]
        ended = any(has_learnt_enough(before_the_end[:n], told) for n in range(1, len(before_the_end) + 1))
        assert can_end_early(told, steps) == ended


def test_early_stop_that_cannot_end_it_is_said(caplog):
    training(told=settings(6, early_stop="patience", evaluate_every=1))
    assert not caplog.text
    training(told=settings(6, early_stop="patience"))
    assert "early_stop patience will not end this training: in 6 steps" in caplog.text
