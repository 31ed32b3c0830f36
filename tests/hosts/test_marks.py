"""What tells things apart, and what does not."""

import functools
import subprocess
import sys
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.processes import environment
from textinv_core.hosts.marks import SAMPLES, mark, sample


class Colour(Enum):
    RED = 1
    BLUE = 2


class Slots:
    __slots__ = ("a", "never")

    def __init__(self, a):
        self.a = a


@dataclass
class Holder:
    value: object


class OtherHolder(Holder):
    pass


def closure(by, at=0):
    def scale(x, offset=at):
        return x * by + offset

    return scale


def pair(by):
    """What one finds for the other to use, as core's patch for merging tokens does it."""
    found, calls = None, 0

    def find(x):
        nonlocal found

        def count():
            nonlocal calls
            calls += 1

        count()
        found = x * by

    def use():
        return found, by

    return use, find


def either(first):
    return (lambda x: x * 2) if first else (lambda x: x * 3)


def linear(seed, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(3, 2, bias)


def schedule(shift):
    module = nn.Module()
    module.register_buffer("sigmas", torch.ones(3))
    module.shift = shift
    return module


def edited(n, at):
    tensor = torch.zeros(n)
    tensor[at:] = 1
    return tensor


# Each a thing that is another than all others.
DIFFERENT = [
    0, 1, True, 1.0, 1.0 + 1e-15, "1", b"1", None, (), (1, 2), [1, 2], (2, 1), ((1,), 2), (1, (2,)), {1, 2}, {1: 2},
    {"a": {"b": 1}}, {"a": {"b": 2}}, Colour.RED, Colour.BLUE, torch.float16, np.float32(1), np.ones(3), np.zeros(3),
    torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, dtype=torch.float16), torch.ones(3), torch.tensor([1, 2]),
    edited(10_000, 9_000), edited(10_000, 2_000), torch.tensor([1j]), torch.tensor([1.0]).to(torch.float8_e4m3fn),
    Holder(1), Holder(2), OtherHolder(1), Holder(Holder(1)), Holder, OtherHolder, Slots(1), Slots(2),
    closure(1), closure(2), closure(1, at=1), closure(torch.ones(2)), either(True), either(False),
    functools.partial(closure(1)), functools.partial(closure(1), 3), functools.partial(closure(1), x=3),
    Holder(1).__eq__, Holder(2).__eq__, Holder(1).__repr__, len, sum, functools,
    linear(0), linear(1), linear(0, bias=False), schedule(1.0), schedule(2.0),
]  # fmt: skip


def test_what_differs_is_told_apart():
    marks = [mark(value) for value in DIFFERENT]
    same = [(a, b) for i, a in enumerate(DIFFERENT) for j, b in enumerate(DIFFERENT) if i < j and marks[i] == marks[j]]
    assert same == []
    assert {len(each) for each in marks} == {16}
    # Deep inside other things, too.
    assert len({mark({"patches": [closure({"scale": (value,)})]}) for value in DIFFERENT}) == len(DIFFERENT)


def test_a_sample_is_from_all_over():
    for start in range(0, 9_000, 900):
        tensor = torch.zeros(100, 100)
        assert mark(tensor.view(-1)[start : start + 1000].fill_(1) * 0) == mark(torch.zeros(1000))
        assert mark(tensor) != mark(torch.zeros(100, 100)), start
    assert len({mark(torch.eye(SAMPLES)[i]) for i in range(SAMPLES)}) == SAMPLES  # small ones as a whole


def test_what_does_not_count():
    def circle():
        loop = {"number": 1}
        loop["self"] = loop
        return loop

    for make in (uuid.uuid4, object, circle, lambda: Holder(torch.Generator()), lambda: closure(closure(1))):
        assert mark(make()) == mark(make())
    assert mark(torch.device("cpu")) == mark(torch.device("cuda"))
    assert mark({"a": 1, "b": 2}) == mark({"b": 2, "a": 1})
    assert mark(linear(0).train()) == mark(linear(0).eval())
    wide = torch.arange(12.0).reshape(3, 4)
    assert mark(wide.t()) == mark(wide.t().contiguous())
    with torch.inference_mode():
        assert mark(torch.ones(3)) == mark(torch.ones(3).clone())
    assert mark(torch.ones(3, requires_grad=True)) == mark(torch.ones(3))


def test_where_custom_nodes_lie_does_not_count():
    def loaded(module):
        return type("Patch", (), {"__module__": module})

    assert mark(loaded("/a/custom_nodes/pack.nodes")) == mark(loaded(r"C:\\b\\custom_nodes\\pack.nodes"))
    assert mark(loaded("/a/custom_nodes/pack.nodes")()) == mark(loaded("/b/custom_nodes/pack.nodes")())
    assert mark(loaded("/a/custom_nodes/pack")) != mark(loaded("/a/custom_nodes/other"))


def test_a_module_s_state_of_the_moment_does_not_count():
    module = linear(0)
    before = mark(module)
    module.is_loaded = True
    assert mark(module) == before
    with torch.no_grad():
        module.bias += 1
    assert mark(module) != before


def test_meta_tensors_have_no_values():
    assert mark(torch.empty(3, device="meta")) == mark(torch.empty(3, device="meta"))


def test_samples_in_a_type():
    values = torch.tensor([1.0, 1 / 3])
    assert sample(values, torch.float16) == sample(values.half(), torch.float16) == sample(values.half())
    assert sample(values, torch.float16) != sample(values)
    assert sample(torch.tensor([1, 2]), torch.float16) == sample(torch.tensor([1, 2]))


def test_what_functions_find_when_they_are_used_does_not_count():
    use, find = pair(2)
    before = mark({"in": find, "out": use}), mark([use, find])
    find(torch.ones(3))
    assert (mark({"in": find, "out": use}), mark([use, find])) == before
    assert mark([*pair(2)]) == before[1] != mark([*pair(3)])


def test_stand_ins():
    def instead(value):
        return value.value if isinstance(value, Holder) else value

    assert mark([Holder(3)], instead) == mark([OtherHolder(3)], instead) == mark([3])
    assert mark(Holder(Holder([1])), instead) == mark([1])


def test_the_same_in_another_process():
    script = "from tests.hosts.test_marks import DIFFERENT, mark; print(*map(mark, [*DIFFERENT, {*'abcdefgh'}]))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(PYTHONHASHSEED="1"),  # of the order of sets, which is another here
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [mark(value) for value in [*DIFFERENT, {*"abcdefgh"}]]


def test_what_nests_deep_ends():
    value = []
    for _ in range(50):
        value = [value, value]
    assert len(mark(value)) == 16
