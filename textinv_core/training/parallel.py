"""One training shared by several processes, as `torchrun` and `accelerate launch` start them."""

import logging
import os
import signal
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import SettingError
from .settings import TrainSettings

# Others wait so long for a process, say for the first while it makes pictures between two steps.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """The processes of a training, and which of them this one is.

    rank: from 0 to count - 1. The first, 0, is the one that writes files.
    """

    rank: int
    count: int

    def gather(self, rows: Tensor) -> Tensor:
        """Everybody's `rows` [k, width], as [k * count, width]: the first row of each, by rank, then the second, ...

        rows: on the CPU; all have to call it, with the same shape. Raises ConnectionError when another process has
        ended, or is silent for `TIMEOUT`.
        """
        if self.count == 1:
            return rows
        everybodys = [torch.empty_like(rows) for _ in range(self.count)]
        try:
            torch.distributed.all_gather(everybodys, rows)
        except RuntimeError as lost:
            raise self._lost() from lost
        return torch.stack(everybodys, dim=1).flatten(0, 1)

    def share(self, value: Any) -> Any:
        """The `value` that the first process has, in all of them. Raises as `gather`."""
        if self.count == 1:
            return value
        values = [value]
        try:
            torch.distributed.broadcast_object_list(values)
        except RuntimeError as lost:
            raise self._lost() from lost
        return values[0]

    def _lost(self) -> ConnectionError:
        return ConnectionError(
            f"Another of the {self.count} processes of this training has ended or does not answer, so it cannot "
            "go on. Look for that process's own message; then start them all again."
        )


ALONE = Processes(0, 1)


def take_gpu() -> None:
    """Make the GPU of this process, by its LOCAL_RANK in the environment, the current one; nothing where there is none.

    Where GPUs are fewer than processes, some have one in common.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def heed_launcher() -> bool:
    """Whether this process was started with others, by WORLD_SIZE in the environment.

    To be called from the main thread: if so, SIGTERM, by which launchers end the rest when one process fails, is a
    SystemExit from then on, so that what was learnt is kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    signal.signal(signal.SIGTERM, _end)
    return True


def join() -> Processes:
    """Meet the processes that this one was started with, and take a GPU; ALONE where it was started by itself.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from the environment, where both launchers put
    them. To be called once, from the main thread; see `heed_launcher`.
    """
    if not heed_launcher():
        return ALONE
    take_gpu()
    # Over CPUs even where there are GPUs: what is exchanged, once a step, is some hundred kilobytes, and one way that
    # works on every system, and with several processes on one GPU, is worth more than NCCL's microseconds.
    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def end(code: object) -> NoReturn:
    """End a process that has joined others, with the exit status that SystemExit's `code` means, once all is written.

    At once, and past Python's own ending: torch's threads of the connections often abort the process there, which
    launchers take for a failure of the whole training.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # as shells count


def shared(settings: TrainSettings, count: int) -> TrainSettings:
    """`settings` with as many pictures a step, in batches that `count` processes can share evenly. (Where pictures have
    several sizes, smaller batches leave fewer of them incomplete.)

    As they are where `gradient_accumulation` divides; otherwise with the largest smaller batches, which fit into
    memory. Raises UserError where the pictures of a step cannot be divided at all, with what to set instead.
    """
    if settings.gradient_accumulation % count == 0:
        return settings
    pictures = settings.batch_size * settings.gradient_accumulation
    for size in range(min(settings.batch_size, pictures // count), 0, -1):
        if pictures % (size * count) == 0:
            return replace(settings, batch_size=size, gradient_accumulation=pictures // size)
    more = -(-settings.gradient_accumulation // count) * count
    raise SettingError(
        lambda name: (
            f"{count} processes cannot share a step of {pictures} pictures evenly. Start as many as divide them, or "
            f"set {name('gradient_accumulation')} to {more} for {settings.batch_size * more} pictures a step."
        )
    )
