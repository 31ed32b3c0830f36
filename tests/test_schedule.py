import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from textinv_core.errors import UserError
from textinv_core.schedule import LearningRateSchedule, training_rates


def reference_rates(text, max_steps, start):
    """The rate of each step from `start` until training ends, walking the items as the reference's iterator does."""
    pairs = []
    for item in text.split(","):
        if not item.strip():
            continue
        parts = item.split(":")
        if len(parts) != 2:
            pairs.append((float(parts[0]), max_steps))
            break
        step = int(parts[1])
        if step == -1:
            pairs.append((float(parts[0]), max_steps))
            break
        if step > start:
            pairs.append((float(parts[0]), min(step, max_steps)))
            if step > max_steps:
                break
    rates, step = [], start
    for rate, end in pairs:
        while step < end:
            rates.append(rate)
            step += 1
    return rates


def all_rates(schedule, start):
    return [schedule.rate_at(step) for step in range(start, schedule.last_step)]


rates = st.floats(0, 1, allow_nan=False).map(repr) | st.sampled_from(["5e-3", " .1 ", "1", "0"])
spaces = st.sampled_from(["", " ", "\n"])


@st.composite
def schedules(draw):
    steps = sorted(draw(st.sets(st.integers(1, 60), max_size=6)))
    items = [f"{draw(spaces)}{draw(rates)}:{draw(spaces)}{step}{draw(spaces)}" for step in steps]
    if not items or draw(st.booleans()):
        items.append(draw(rates) + draw(st.sampled_from(["", ":-1", ": -1 "])))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), draw(spaces))
    return ",".join(items)


@given(schedules(), st.integers(1, 70), st.integers(0, 69))
def test_well_formed_schedules_are_the_references(text, max_steps, start):
    assume(start < max_steps)
    expected = reference_rates(text, max_steps, start)
    if not expected:
        with pytest.raises(UserError, match="every rate"):
            LearningRateSchedule(text, max_steps, start)
        return
    schedule = LearningRateSchedule(text, max_steps, start)
    assert schedule.last_step == start + len(expected)
    assert all_rates(schedule, start) == expected
    for outside in (start - 1, schedule.last_step):
        with pytest.raises(ValueError, match=f"Step {outside} "):
            schedule.rate_at(outside)


@pytest.mark.parametrize(
    ("text", "max_steps", "start", "expected"),
    [
        ("0.005", 3, 0, [0.005] * 3),
        ("0.5:2, 0.25:4", 10, 0, [0.5, 0.5, 0.25, 0.25]),  # ends at the last listed step
        ("0.5:2, 0.25:-1,", 4, 0, [0.5, 0.5, 0.25, 0.25]),
        ("0.5:2, 0.25:99, 0.1", 4, 0, [0.5, 0.5, 0.25, 0.25]),  # clamped, the rest not reached
        ("0.5:2, 0.25:4", 10, 2, [0.25, 0.25]),  # an item ending where we stand is past
        ("0.5:4, 0.25", 4, 0, [0.5] * 4),
    ],
)
def test_examples(text, max_steps, start, expected):
    assert all_rates(LearningRateSchedule(text, max_steps, start), start) == expected


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("fast", "fast"),
        ("0.1:10, x:20", "x:20"),
        ("0.1:10, 0.2:x", "0.2:x"),
        ("0.1:1.5", "0.1:1.5"),
        ("0.1:1:2", "0.1:1:2"),
        (":5", ":5"),
        ("0.1:", "0.1:"),
        ("nan", "nan"),
        ("inf:5", "inf:5"),
        ("-0.1", "-0.1"),
        ("0.1:0", "0.1:0"),
        ("0.1:-2", "0.1:-2"),
        ("0.1:10, 0.2:10", "0.2:10"),
        ("0.1:10, 0.2:9", "0.2:9"),
        ("0.1, 0.2:10", "0.2:10"),
        ("0.1:-1, 0.2", "0.2"),
        ("0.1:500, bad", "bad"),  # checked although never reached
        ("0.1:500, 0.2:400", "0.2:400"),
    ],
)
def test_errors_name_the_item(text, item):
    with pytest.raises(UserError, match=rf"learning rate '{item}'"):
        LearningRateSchedule(text, 100)


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_no_rate_at_all(text):
    with pytest.raises(UserError, match="is empty"):
        LearningRateSchedule(text, 10)


@pytest.mark.parametrize(("max_steps", "start"), [(10, 10), (10, 11), (0, 0)])
def test_no_step_left(max_steps, start):
    with pytest.raises(UserError, match=f"step {start} of {max_steps}"):
        LearningRateSchedule("0.1", max_steps, start)


@pytest.mark.parametrize("start", [20, 25])
def test_every_rate_is_past(start):
    with pytest.raises(UserError, match=f"ends by step {start}"):
        LearningRateSchedule("0.1:10, 0.2:20", 100, start)


@given(st.text() | st.text(alphabet="0123456789.:,-+e_ naif"), st.integers(-3, 50), st.integers(0, 50))
def test_garbage_is_a_value_error(text, max_steps, start):
    try:
        schedule = LearningRateSchedule(text, max_steps, start)
    except ValueError:
        return
    assert start < schedule.last_step <= max_steps
    assert all(0 <= rate < float("inf") for rate in all_rates(schedule, start))


@pytest.mark.parametrize(("text", "meant"), [("0,005", "0.005"), ("0,005:100, 0,001", "0.005:100"), ("1,5", "1.5")])
def test_a_comma_for_a_decimal_point_is_seen(text, meant):
    with pytest.raises(UserError, match=f"if a decimal point was meant, write '{meant}'"):
        LearningRateSchedule(text, 10)


@pytest.mark.parametrize("text", ["0.1, 0.2", "1e-3,5", "0, 5", "1, x"])
def test_rates_that_look_like_none_with_a_comma_get_no_such_advice(text):
    with pytest.raises(UserError) as error:
        LearningRateSchedule(text, 10)
    assert "decimal" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "start", "moves"),
    [
        ("0.1", 0, True),
        ("0", 0, False),
        ("0:5, 0.1", 0, True),
        ("0:5, 0:9", 0, False),
        ("0.1:5, 0", 5, False),
        ("0.1:5, 0", 4, True),
        ("0:10, 0.1", 0, False),  # which ten steps do not reach
        ("0:10, 0.1", 9, False),
    ],
)
def test_a_training_needs_a_rate_above_zero(text, start, moves):
    assert LearningRateSchedule(text, 10, start).moves == moves
    if moves:
        training_rates(text, 10, start)
    else:
        with pytest.raises(UserError, match="Nothing would be learnt"):
            training_rates(text, 10, start)


@given(schedules(), st.integers(1, 70))
def test_a_training_moves_as_its_rates_say(text, max_steps):
    schedule = LearningRateSchedule(text, max_steps)
    assert schedule.moves == any(all_rates(schedule, 0))
