"""The host killed in the midst of a training: the same graph, queued again, goes on, and nothing is lost."""

import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.host.test_train_node import LOAD, WORLD, graph
from tests.killing import check, left_by
from tests.rig import Server, link, make_base
from textinv_core import load_embedding


def wait_for_step(server, name: str, step: int):
    runs = server.base / "output" / "textual_inversion" / name
    while sum(path.read_bytes().count(b"\n") - 1 for path in runs.glob("*/textual_inversion_loss.csv")) < step:
        time.sleep(0.02)


def left(server, name: str) -> dict:
    [run] = left_by(server.base / "output" / "textual_inversion", name)
    return run


def test_a_server_killed_in_mid_run_loses_nothing(host, server, base, tmp_path):
    """Cancelled, queued again, killed, and queued once more on another server; then done at once."""
    shutil.copytree(WORLD / "pictures", base / "input" / LOAD["folder"], dirs_exist_ok=True)
    own = make_base(tmp_path / "comfyui")
    link(base / "custom_nodes" / "toyworld", own / "custom_nodes" / "toyworld")
    shutil.copytree(WORLD / "pictures", own / "input" / LOAD["folder"])
    told = {"steps": 60, "save_every": 20, "preview_steps": 1}
    killed = Server(host, own)
    try:
        killed.wait_until_up()
        first = killed.post(graph("broken", **told))
        wait_for_step(killed, "broken", 25)
        killed.interrupt()
        assert killed.wait(first)["status"]["status_str"] == "error"
        killed.post(graph("broken", **told))
        wait_for_step(killed, "broken", 45)
    finally:
        killed.kill()
    [cancelled] = re.findall(r"stopped at step (\d+)", killed.log_text())
    assert f"goes on from step {cancelled}" in killed.log_text()

    shutil.copytree(own / "output" / "textual_inversion", base / "output" / "textual_inversion", dirs_exist_ok=True)
    server.run(graph("broken", **told))
    assert f"broken goes on from step {cancelled} of the run" in server.log_text()
    server.run(graph("whole", **told))
    broken, whole = left(server, "broken"), left(server, "whole")
    when_cancelled = f"embeddings/broken-{cancelled}.safetensors"
    assert {*broken} - {when_cancelled} == {name.replace("whole", "broken") for name in whole}
    assert broken["textual_inversion_loss.csv"] == whole["textual_inversion_loss.csv"]
    for step in (20, 40, 60):
        a, b = (load_embedding(copy(server, name, step)).vectors for name in ("broken", "whole"))
        assert all(torch.equal(a[key], b[key]) for key in b)

    server.forget()
    started = time.monotonic()
    server.run(graph("broken", **told))
    assert "broken has been trained on this already" in server.log_text()
    assert time.monotonic() - started < 10 and left(server, "broken") == broken


def copy(server, name: str, step: int) -> Path:
    [path] = (server.base / "output" / "textual_inversion" / name).glob(f"*/embeddings/{name}-{step}.safetensors")
    return path


def test_five_moments_on_the_host(inside):
    assert check(inside("killed.py", WORLD, 10, 1, 5, timeout=600)) >= 3


@pytest.mark.long
def test_two_hundred_moments_on_the_host(inside):
    """Of runs killed in one process of the host's, as a server for each would take hours."""
    assert check(inside("killed.py", WORLD, 300, 25, 10, timeout=7200)) >= 200
