"""Several processes that share a training: the same bits as one alone, and nothing lost with one of them.

The processes are real; what each does is in sharing.py.
"""

import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeModel, fake_embedding, fake_examples, train
from tests.processes import LAUNCHER, environment
from textinv_core import load_embedding
from textinv_core.errors import UserError
from textinv_core.training.parallel import ALONE, Processes, join, shared, take_gpu
from textinv_core.training.settings import TrainSettings

SHARING = str(Path(__file__).with_name("sharing.py"))


def sharing(count, *arguments):
    """Run sharing.py in `count` processes, as users do."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, SHARING, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """(number of processes, name of a training, rank) -> what that process saw of it."""
    results = {}
    for count in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"by-{count}")
        done = sharing(count, "all", folder)
        assert done.returncode == 0, done.stderr
        for path in folder.glob("*.pt"):
            name, rank = path.stem.split("-")
            results[count, name, int(rank)] = torch.load(path, weights_only=True)
    return results


def same_run(a, b):
    """Whether two processes had the same losses and vectors at every step, to the last bit."""
    assert len(a["vectors"]) == len(b["vectors"])
    return a["losses"] == b["losses"] and all(
        torch.equal(x[key], y[key]) for x, y in zip(a["vectors"], b["vectors"], strict=True) for key in x
    )


@pytest.mark.parametrize(
    ("name", "steps"), [("fake", 6), ("conv", 6), ("half", 6), ("nan", 2), ("short", 6)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("count", [2, 4])
def test_every_process_has_the_bits_of_one_alone(seen, name, steps, count):
    alone = seen[1, name, 0]
    assert len(alone["losses"]) == steps
    assert all(same_run(seen[count, name, rank], alone) for rank in range(count))


@pytest.mark.parametrize("count", [2, 4])
def test_every_process_has_the_fixed_losses_of_one_alone(seen, count):
    alone = seen[1, "evaluated", 0]["losses"]
    assert len(alone) == 7 == len(set(alone))
    assert all(seen[count, "evaluated", rank]["losses"] == alone for rank in range(count))


@pytest.mark.parametrize("count", [2, 4])
def test_the_batches_of_a_step_are_shared(seen, count):
    assert seen[1, "fake", 0]["calls"] == 24
    assert [seen[count, "fake", rank]["calls"] for rank in range(count)] == [24 / count] * count


def test_a_step_that_overflows_is_made_again_by_every_process(seen):
    for (count, name, _), run in seen.items():
        if name == "half":
            vectors = [each["clip_l"] for each in run["vectors"]]
            assert not any(torch.equal(a, b) for a, b in pairwise(vectors))
            assert 24 < run["calls"] * count == seen[1, "half", 0]["calls"]


def test_a_loss_that_is_not_finite_stops_all_processes_alike(seen):
    errors = {run["error"] for (_, name, _), run in seen.items() if name == "nan"}
    assert len(errors) == 1
    assert "loss of step 3 is nan" in errors.pop()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_only_the_process_that_runs_out_of_memory_uses_checkpoints(seen, count):
    assert sum(seen[count, "short", rank]["checkpointed"] for rank in range(count)) == 1


# A process that fails


def kept(folder):
    """The steps whose embeddings are in a run's folder, and the lines of its losses."""
    steps = sorted(path.stem for path in (folder / "embeddings").glob("*.safetensors"))
    return steps, (folder / "textual_inversion_loss.csv").read_text().splitlines()[1:]


def test_what_was_learnt_is_kept_when_the_launcher_ends_the_rest(tmp_path):
    done = sharing(2, "fail-while-busy", tmp_path)
    assert done.returncode != 0
    steps, losses = kept(tmp_path)
    assert steps == ["cat-2"] and len(losses) == 2
    assert load_embedding(tmp_path / "embeddings" / "cat-2.safetensors").step == 2
    assert done.stderr.count("stopped at step 2") == 1  # the first process's alone
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_a_process_that_waits_for_a_lost_one_says_so_and_keeps_what_was_learnt(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # By hand, so that no launcher ends the other one.
    processes = [
        subprocess.Popen(
            [sys.executable, SHARING, "fail", str(tmp_path)],
            env=environment(RANK=rank, LOCAL_RANK=rank, **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    (_, first), (_, second) = (process.communicate(timeout=300) for process in processes)
    assert "FloatingPointError: something else" in second
    assert "ConnectionError: Another of the 2 processes of this training has ended" in first
    steps, losses = kept(tmp_path)
    assert steps == ["cat-2"] and len(losses) == 2


# Shares


def batches(size, number):
    return TrainSettings(("[name]",), batch_size=size, gradient_accumulation=number, learning_rate="1:2, 3", seed=9)


@pytest.mark.parametrize(
    ("count", "given", "gives"),
    [
        (1, (3, 1), (3, 1)),
        (4, (1, 12), (1, 12)),
        (3, (2, 3), (2, 3)),
        (2, (4, 1), (2, 2)),
        (4, (4, 6), (3, 8)),
        (4, (6, 2), (3, 4)),
    ],
)
def test_a_step_is_parted_into_batches_that_can_be_shared(count, given, gives):
    assert shared(batches(*given), count) == batches(*gives)


@pytest.mark.parametrize(
    ("count", "given", "advice"),
    [
        (
            3,
            (8, 4),
            "a step of 32 pictures evenly. Start as many as divide them, or set gradient_accumulation to 6 for 48",
        ),
        (
            2,
            (1, 1),
            "a step of 1 pictures evenly. Start as many as divide them, or set gradient_accumulation to 2 for 2",
        ),
        (
            4,
            (3, 2),
            "a step of 6 pictures evenly. Start as many as divide them, or set gradient_accumulation to 4 for 12",
        ),
    ],
)
def test_pictures_that_cannot_be_shared_evenly_are_an_error_that_says_what_to_set(count, given, advice):
    with pytest.raises(UserError, match=re.escape(advice)):
        shared(batches(*given), count)


@given(st.integers(2, 16), st.integers(1, 24), st.integers(1, 24))
def test_every_process_gets_the_same_share_of_the_same_pictures(count, size, number):
    try:
        settings = shared(batches(size, number), count)
    except ValueError:
        assert size * number % count > 0
        return
    assert settings.gradient_accumulation % count == 0
    assert settings.batch_size * settings.gradient_accumulation == size * number
    assert settings.batch_size <= size


def test_batches_are_checked_before_the_first_step():
    model = FakeModel()
    with pytest.raises(ValueError, match="2 processes cannot share 3 batches a step evenly"):
        next(train(model, fake_examples(), fake_embedding(), batches(1, 3), processes=Processes(1, 2)))
    assert not model.calls


# Alone


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_process_without_others_is_alone(monkeypatch, variables):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert join() == ALONE
    assert not torch.distributed.is_initialized()
    rows = torch.rand(3, 4)
    assert torch.equal(ALONE.gather(rows), rows)


@pytest.mark.parametrize(("rank", "gpu"), [(None, 0), ("0", 0), ("1", 1), ("3", 1)])
def test_processes_on_one_machine_take_its_gpus_in_turn(monkeypatch, rank, gpu):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    take_gpu()
    assert taken == [gpu]
