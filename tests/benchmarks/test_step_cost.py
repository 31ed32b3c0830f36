"""What times steps, on steps that cost nothing; and that it can be imported where there is no ComfyUI."""

from contextlib import contextmanager

import pytest
import torch

from benchmarks import step_cost


def test_the_kinds_take_turns_and_the_first_round_does_not_count():
    pytest.importorskip("psutil")
    taken = []

    def kind(name):
        @contextmanager
        def ready():
            taken.append(f"{name} readied")
            yield lambda: taken.append(name)

        return ready

    seconds, memory = step_cost.measure({"a": kind("a"), "b": kind("b")}, 2, torch.device("cpu"))
    assert taken == ["a readied", "a", "b readied", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert {name: len(each) for name, each in memory.items()} == {"a": 2, "b": 2}


def test_it_can_be_imported_without_comfyui():
    assert [*step_cost.SHAPES] == ["sd15", "sdxl"]
