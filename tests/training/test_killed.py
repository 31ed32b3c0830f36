"""Runs killed with SIGKILL at any moment and gone on with: what they leave is what an unbroken one leaves, to the bit.

What is run is in killed.py; how it is killed, in tests/killing.py.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.processes import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed(host: str, first: int, runs: int, kills: int) -> None:
    """Train so many runs, each killed so many times; none may have left anything else than an unbroken one."""
    command = [sys.executable, "-m", "tests.training.killed", host, *map(str, (first, runs, kills))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [result for result in results if result["differs"] or result["runs"] != 1] == []
    moments = sum(len(result["killed"]) for result in results)
    assert moments >= 0.9 * runs * kills  # now and then a run comes to its end before
    print(f"{moments} kills in {runs} runs on {host}: all equal to unbroken ones")


def test_twenty_moments():
    killed("fake", 0, 4, 5)


@pytest.mark.long
def test_two_hundred_moments():
    killed("fake", 100, 45, 5)


@pytest.mark.long
def test_two_hundred_moments_on_pipelines():
    pytest.importorskip("diffusers")
    killed("diffusers", 200, 45, 5)
