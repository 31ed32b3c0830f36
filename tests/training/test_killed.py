"""Runs killed with SIGKILL at any moment and gone on with: what they leave is what an unbroken one leaves, to the bit.

What is run is in killed.py; how it is killed, in tests/killing.py.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.killing import check
from tests.processes import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(what: str, first: int, runs: int, kills: int) -> list[dict]:
    command = [sys.executable, "-m", "tests.training.killed", what, *map(str, (first, runs, kills))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ten_moments():
    assert check(run("fake", 1, 2, 5)) >= 8


def test_five_moments_on_pipelines():
    pytest.importorskip("diffusers")
    assert check(run("diffusers", 10, 1, 5)) >= 3


def test_processes_that_share_a_run_are_killed_together():
    assert check(run("shared", 50, 1, 4)) >= 2


def test_the_job_that_was_interrupted_is_gone_on_with():
    assert check(run("jobs", 60, 1, 4)) >= 2


@pytest.mark.long
def test_two_hundred_moments():
    assert check(run("fake", 100, 25, 10)) >= 200


@pytest.mark.long
def test_two_hundred_moments_on_pipelines():
    pytest.importorskip("diffusers")
    assert check(run("diffusers", 200, 25, 10)) >= 200
