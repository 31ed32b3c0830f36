"""The toy world's training goes on where it was stopped, and gives what it would have given."""

import pytest
import torch

pytest.importorskip("diffusers")
from benchmarks.toyworld import train


def weights(tmp_path, name, stop_at=None):
    """A stage of 120 steps, started again if it is stopped, on its way to known numbers."""

    def run():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        calls = []

        def loss_of(rng):
            calls.append(rng)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.normal(size=(4, 3))).float()
            loss = (module(x) - x[:, :2]).square().mean()
            return loss, loss

        train.Stage("text", module, train.Making(tmp_path / name), [(120, 120)]).run(loss_of)
        return len(calls)

    (tmp_path / name).mkdir()
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            run()
        stop_at = None
    steps = run()
    state = torch.load(tmp_path / name / "text.pt", weights_only=True)
    return state, steps, (tmp_path / name / "text.csv").read_text().splitlines()


def without_seconds(rows):
    return [row.rsplit(",", 1)[0] for row in rows]


def test_a_stage_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 50)
    whole, steps, log = weights(tmp_path, "whole")
    assert steps == 120 and len(log) == 3
    stopped, steps, log_of_stopped = weights(tmp_path, "stopped", stop_at=80)
    assert steps == 70  # from the last save on
    for part in ("module", "average"):
        assert all(torch.equal(whole[part][key], stopped[part][key]) for key in whole[part])
    assert without_seconds(log) == without_seconds(log_of_stopped)
    assert not torch.equal(whole["module"]["weight"], whole["average"]["weight"])


def test_a_finished_stage_is_not_run_again(tmp_path):
    weights(tmp_path, "done")
    file = tmp_path / "done" / "text.pt"
    before = file.read_bytes()
    module = torch.nn.Linear(3, 2)
    stage = train.Stage("text", module, train.Making(tmp_path / "done"), [(120, 120)])
    stage.run(lambda _: pytest.fail("another step"))
    assert file.read_bytes() == before
