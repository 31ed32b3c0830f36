"""Runs that are killed with SIGKILL, again and again, and gone on with until they end; told from one never broken.

Each try is a forked child, so that it costs nothing to start: the parent has imported all, and must not have computed
anything, as threads do not come along. Knows nothing of the core: `work` runs a training in a folder.
"""

import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Work = Callable[[Path], None]
TOO_LONG = 600.0  # seconds
TOUCHES = {"open", "os.mkdir", "os.remove", "os.rename", "os.truncate", "os.listdir", "os.scandir"}


@dataclass(frozen=True)
class Try:
    """seconds: that it took. touches: how often it did something to the files below the folder, told by `_counting`."""

    was_killed: bool
    seconds: float
    touches: int


def attempt(work: Work, root: Path, processes: int = 1, after: float = TOO_LONG, touch: int = 0) -> Try:
    """Run `work(root)` in a child, or in several that can meet as a launcher's, which are all killed after so many
    seconds, or right before one of them touches files below `root` for the nth time.

    Raises RuntimeError where it fails of itself, or takes for ever.
    """
    count = root.parent / f"{root.name}.touches"
    count.write_bytes(b"")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    started = time.monotonic()
    running = [_start(work, root, count, touch, {**together, "RANK": rank}) for rank in range(processes)]
    statuses = []
    while running:
        seconds = time.monotonic() - started
        for child in [*running]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                running.remove(child)
                statuses.append(status)
        if any(statuses) or seconds >= after:
            for child in running:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)
    was_killed = any(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL for status in statuses)
    # Where one was killed, another may have failed of that.
    if seconds >= TOO_LONG or (any(statuses) and not was_killed):
        raise RuntimeError(f"the run in {root} failed, or took {seconds:.0f} s: {statuses}")
    return Try(was_killed, seconds, count.stat().st_size)


def _start(work: Work, root: Path, count: Path, touch: int, variables: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update({name: str(value) for name, value in variables.items()})
        with open(count, "ab", buffering=0) as file:
            _counting(str(root), file.fileno(), touch)
            work(root)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _counting(root: str, count: int, fatal: int) -> None:
    """From now on write a byte to `count` whenever this process touches what is below `root`; die at the nth time."""
    touches = 0

    def look(event: str, arguments: tuple) -> None:
        nonlocal touches
        if event in TOUCHES and any(isinstance(each, str | Path) and root in str(each) for each in arguments):
            touches += 1
            os.write(count, b".")
            if touches == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def broken(work: Work, root: Path, whole: Try, kills: int, chance: random.Random, processes: int = 1) -> list[str]:
    """Run `work` to its end with so many kills on the way, at moments all over it; returns when each was.

    whole: how one is that is not broken. The moments are the least of several that are drawn evenly from what is left,
    half of them in time, half between two touches of the folder.
    """
    moments, left = [], 1.0
    while True:
        if len(moments) == kills:
            attempt(work, root, processes)
            return moments
        share = left * min(chance.random() for _ in range(kills - len(moments)))
        if chance.random() < 0.5:
            one = attempt(work, root, processes, after=share * whole.seconds)
            when = f"after {one.seconds:.3f} s"
        else:
            touch = max(1, round(share * whole.touches))
            one = attempt(work, root, processes, touch=touch)
            when = f"at touch {touch}"
        if not one.was_killed and moments:  # it came to its end before
            return moments
        if not one.was_killed:
            shutil.rmtree(root)
            continue
        moments.append(when)
        left = max(0.05, left - share)


def left_by(root: Path, name: str = "*") -> list[dict[str, Any]]:
    """What each run, `<root>/<name>/<run>`, has left: what is in its files, by path, but in those that say
    how it came to be. Folders that nothing was written into are none: a run was killed there before it began."""
    folders = [folder for folder in sorted(root.glob(f"{name}/*")) if (folder / "settings.json").is_file()]
    return [
        {
            str(path.relative_to(folder)): _content(path)
            for path in folder.rglob("*")
            if path.is_file() and path.name != "run.lock" and path.parent.name != "state"
        }
        for folder in folders
    ]


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.loads(data)
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])  # which has them in any order
    header.get("__metadata__", {}).pop("modelspec.date", None)
    return header, data[end:]


def check(results: list[dict[str, Any]]) -> int:
    """How often runs were killed, where all of them left what an unbroken one leaves; fails where one did not.

    A run may come to its end before the last of its kills.
    """
    assert [result for result in results if result["differs"]] == []
    kills = sum(len(result["killed"]) for result in results)
    assert any(result["went on"] for result in results)  # else it always begins anew
    print(f"{len(results)} runs, killed {kills} times: all as unbroken ones")
    return kills
