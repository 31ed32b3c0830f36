from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.shuffle import MODES, ShuffleConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def seen(config, n, step=1, draws=1500):
    draw_from = generator()
    return {tuple(config.order(n, step, draw_from)) for _ in range(draws)}


# How many orders each mode has for n = 1 to 5 vectors: the table of pull request 119.
COUNTS = {
    "off": (1, 1, 1, 1, 1),
    "all": (1, 2, 6, 24, 120),
    "trailing": (1, 1, 2, 6, 24),
    "leading": (1, 1, 2, 6, 24),
    "between": (1, 1, 1, 2, 6),
    "progressive": (1, 1, 1, 2, 6),
    "dynamic": (1, 2, 2, 2, 6),
}


def keeps_its_rows(mode, order):
    """Whether the rows that `mode` fixes for this many vectors stand where they are stored."""
    n = len(order)
    if mode == "dynamic":
        mode = {2: "all", 3: "trailing"}.get(n, "between")
    front = mode in ("trailing", "between", "progressive")
    back = mode in ("leading", "between", "progressive")
    return (not front or order[0] == 0) and (not back or order[-1] == n - 1)


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("mode", COUNTS)
def test_orders_are_exactly_those_of_the_table(mode, n):
    stored = tuple(range(n))
    expected = {stored} if mode == "off" else {p for p in permutations(stored) if keeps_its_rows(mode, p)}
    assert len(expected) == COUNTS[mode][n - 1]
    assert seen(ShuffleConfig(mode), n) == expected


def test_every_order_is_equally_likely():
    config, draw_from, counts = ShuffleConfig("all"), generator(), dict.fromkeys(permutations(range(3)), 0)
    for _ in range(3000):
        counts[tuple(config.order(3, 1, draw_from))] += 1
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, sigma 20


@pytest.mark.parametrize(
    ("step", "front", "middle", "back"),
    [
        (1, (0,), (), ()),
        (1999, (0,), (), ()),
        (2000, (0,), (), (5,)),
        (3999, (0,), (), (5,)),
        (4000, (0,), (1,), (5,)),
        (6000, (0,), (1, 2), (5,)),
        (8000, (0,), (1, 2, 3), (5,)),
        (9999, (0,), (1, 2, 3), (5,)),
        (10000, (0,), (1, 2, 3, 4), (5,)),
        (99999, (0,), (1, 2, 3, 4), (5,)),
    ],
)
def test_progressive_unlocks_the_middle_between_first_and_final_row(step, front, middle, back):
    config = ShuffleConfig("progressive", progressive_words=True)
    assert seen(config, 6, step, 300) == {front + order + back for order in permutations(middle)}


def test_between_has_the_newest_row_last():
    config = ShuffleConfig("between", progressive_words=True, unlock_every=10)
    assert [{order[-1] for order in seen(config, 6, step, 50)} for step in (9, 10, 29, 30, 50)] == [
        {0}, {1}, {2}, {3}, {5},
    ]  # fmt: skip


def test_dynamic_goes_by_the_unlocked():
    config = ShuffleConfig("dynamic", progressive_words=True, unlock_every=1)
    assert [len(seen(config, 9, step, 100)) for step in (1, 2, 3, 4)] == [2, 2, 2, 6]


def test_off_still_unlocks():
    config = ShuffleConfig(progressive_words=True, unlock_every=2)
    assert [config.order(3, step, generator()) for step in (1, 2, 3, 4, 6)] == [
        [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2],
    ]  # fmt: skip


configs = st.builds(
    ShuffleConfig,
    mode=st.sampled_from(MODES),
    progressive_words=st.booleans(),
    unlock_every=st.integers(1, 20),
)


@given(configs, st.integers(1, 40), st.integers(1, 500), st.integers(0, 2**32))
def test_an_order_is_the_unlocked_rows_once_each(config, n, step, seed):
    order = config.order(n, step, generator(seed))
    used = min(n, 1 + step // config.unlock_every) if config.progressive_words else n
    rows = list(range(used))
    if config.mode == "progressive" and used > 1:
        rows[-1] = n - 1
    assert sorted(order) == rows
    assert order == config.order(n, step, generator(seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", range(1, 5))
def test_draws_from_its_own_generator_and_only_to_shuffle(mode, n):
    own = generator()
    before, global_before = own.get_state(), torch.get_rng_state()
    ShuffleConfig(mode).order(n, 1, own)
    assert torch.equal(torch.get_rng_state(), global_before)
    assert torch.equal(own.get_state(), before) == (COUNTS[mode][n - 1] == 1)


@pytest.mark.parametrize(
    ("alias", "mode"),
    [(True, "all"), ("on", "all"), ("true", "all"), (False, "off"), ("off", "off"), ("false", "off")]
    + [(mode, mode) for mode in COUNTS],
)
def test_modes_and_aliases(alias, mode):
    assert ShuffleConfig(alias).mode == mode
    assert ShuffleConfig(alias) == ShuffleConfig(mode)


@pytest.mark.parametrize("mode", ["ALL", "True", "On", "", "shuffle", None])
def test_unknown_modes_are_errors_that_list_the_modes(mode):
    with pytest.raises(ValueError, match=f"mode {mode!r}.*off, all, trailing, leading, between, progressive, dynamic"):
        ShuffleConfig(mode)


def test_other_bad_settings():
    with pytest.raises(ValueError, match=r"per 'image'.*sample, occurrence, batch"):
        ShuffleConfig(per="image")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unlock_every is 0"):
        ShuffleConfig(unlock_every=0)
