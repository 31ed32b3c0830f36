"""See `fuzz`: in a process of its own, because what must not happen is that it freezes, or takes all memory."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("msgspec")  # for settings files
if sys.platform != "linux":
    pytest.skip("memory is measured as Linux tells of it", allow_module_level=True)

from tests.formats import fuzz
from tests.processes import environment
from textinv_core import load_embedding


def run(first: int, count: int) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.formats.fuzz", str(first), str(count)],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-200:]
    return ran.stdout


@pytest.mark.parametrize("number", range(len(fuzz.SEEDS)))
def test_what_gets_damaged_is_whole(tmp_path, number):
    suffix, data = fuzz.SEEDS[number]
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(data)
    assert fuzz.READERS.get(suffix, load_embedding)(path)


def check(told: str) -> None:
    """None that harms is read, but one that has as many keys as settings may have. With `-s`, pytest shows figures."""
    print(told)
    harmful = [line for line in told.splitlines() if ": read" in line]
    assert all(line.startswith("many keys of 32 parts: read") for line in harmful)


def test_a_few_files():
    check(run(len(fuzz.LARGE), len(fuzz.SMALL) + 400))


@pytest.mark.long
def test_many_files():
    check(run(0, len(fuzz.HARMFUL) + 25_000))
