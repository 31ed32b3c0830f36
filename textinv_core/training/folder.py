"""The folder a training leaves behind: the only place that knows a path in it."""

import errno
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..embedding import Embedding
from ..errors import UserError
from ..files import claimed, numbered, sweep, write_atomically
from ..formats import load_embedding, save_embedding
from ..images import save_picture
from .state import Damaged, read_state, write_state

log = logging.getLogger("textinv")

KEPT_STATES = 2
MAX_SETTINGS_BYTES = 4 * 2**20
LOCKLESS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # what some file systems of networks and clusters say
CSV_HEADER = "step,epoch,epoch_step,loss,learn_rate\n"  # A1111's
FIXED_LOSS_HEADER = "step,loss\n"


class LossRow(NamedTuple):
    """A line of the losses: the step, from 1; the epoch and the step in it, from 0; loss; learning rate."""

    step: int
    epoch: int
    epoch_step: int
    loss: float
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.step},{self.epoch},{self.epoch_step},{self.loss:.7f},{self.learning_rate:g}\n"

    @classmethod
    def read(cls, line: str) -> "LossRow":
        """Raises ValueError for a line that is none, or not whole."""
        step, epoch, epoch_step, loss, rate = line.split(",")
        if not line.endswith("\n"):
            raise ValueError("the line is not whole")
        return cls(int(step), int(epoch), int(epoch_step), float(loss), float(rate))


@dataclass(frozen=True)
class RunFolder:
    """`<root>/<name>/<date and time>/`. All that writes raises OSError where it cannot, but `rescue`."""

    path: Path
    _elsewhere: list[Path] = field(default_factory=list, init=False)  # copies that this folder could not take

    @classmethod
    def new(cls, root: Path, name: str, now: datetime | None = None) -> "RunFolder":
        """Make a new one, with a number behind where there is one of this second already."""
        stamp = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
        for n in range(1, 1000):
            path = root / name / (stamp if n == 1 else f"{stamp}_{n}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path)
        raise FileExistsError(f"There are 999 folders {root / name / stamp}_* already.")

    @classmethod
    def all(cls, root: Path, name: str) -> "list[RunFolder]":
        """Those there are, the newest first."""
        try:
            return [cls(path) for path in sorted((root / name).iterdir(), reverse=True) if path.is_dir()]
        except FileNotFoundError:
            return []

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether nobody else writes into it, for the length of a block; True where the file system knows no locks."""
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(claimed(self.path / "run.lock"))
            except OSError as error:
                if error.errno not in LOCKLESS:
                    raise
                mine = True
            yield mine

    # What it was told, and how it ended

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """What the training was told, of the kinds JSON knows."""
        write_atomically(self.path / "settings.json", json.dumps(settings, indent=2).encode())

    def note(self, **facts: Any) -> None:
        """Put `facts` into what was written."""
        self.write_settings({**self.settings(), **facts})

    def settings(self) -> dict[str, Any]:
        """What was written; nothing where there is nothing that can be read."""
        path = self.path / "settings.json"
        try:
            settings = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_SETTINGS_BYTES else {}
        except (OSError, ValueError):
            return {}
        return settings if isinstance(settings, dict) else {}

    # The states to go on from

    def _states(self) -> list[Path]:
        """The newest first."""
        files = [path for path in self.path.glob("state/*.safetensors") if path.stem.isdecimal()]
        return sorted(files, key=lambda path: int(path.stem), reverse=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep a training's state, and the one before it, for the case that this one is damaged."""
        path = self.path / "state" / f"{state['step']}.safetensors"
        path.parent.mkdir(exist_ok=True)
        if self._losses.is_file():  # none of those before it may be missing, whatever happens to the machine
            with open(self._losses, "ab") as file:
                os.fsync(file.fileno())
        write_state(state, path)
        for old in self._states()[KEPT_STATES:]:
            old.unlink(missing_ok=True)

    def newest_state_step(self) -> int:
        """The step of the newest, whole or not; 0 where there is none."""
        return max((int(path.stem) for path in self._states()), default=0)

    def newest_state(self) -> dict[str, Any] | None:
        """The newest that is whole; None where there is none."""
        for path in self._states():
            try:
                return read_state(path)
            except (Damaged, OSError) as error:
                log.warning(f"textinv: {error} If there is one before it, that is taken.")
        return None

    # The losses

    @property
    def _losses(self) -> Path:
        return self.path / "textual_inversion_loss.csv"

    def append_losses(self, rows: Iterable[LossRow]) -> None:
        """Write rows behind those that are there: all, or none where it cannot."""
        text = "".join(map(str, rows))
        # Without a buffer, which would write the rest when the file is closed.
        with open(self._losses, "ab", buffering=0) as file:
            size = file.tell()
            data = (text if size else CSV_HEADER + text).encode()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise

    def losses(self) -> list[LossRow]:
        """All rows that are whole; none where there is no file."""
        rows = []
        try:
            with open(self._losses, encoding="utf-8", newline="") as file:
                for line in file:
                    if line.rstrip() != CSV_HEADER.rstrip():  # other programs end lines otherwise
                        rows.append(LossRow.read(line))
        except (FileNotFoundError, ValueError):  # what comes behind a line that broke off is none
            pass
        return rows

    def cut_losses(self, step: int) -> None:
        """Drop all rows after `step`, and what is not whole."""
        rows = "".join(str(row) for row in self.losses() if row.step <= step)
        write_atomically(self._losses, (CSV_HEADER + rows).encode())

    @property
    def _fixed_losses(self) -> Path:
        return self.path / "fixed_loss.csv"

    def write_fixed_losses(self, rows: Iterable[tuple[int, float]]) -> None:
        """Write all of a training's: (step, fixed loss) each, in place of those that are there."""
        text = FIXED_LOSS_HEADER + "".join(f"{step},{loss!r}\n" for step, loss in rows)
        write_atomically(self._fixed_losses, text.encode())

    def fixed_losses(self) -> list[tuple[int, float]]:
        """Those that were written; none where there is no file, or it was not written by `write_fixed_losses`."""
        try:
            _, *lines = self._fixed_losses.read_text("utf-8").splitlines()
            rows = [line.split(",") for line in lines]
            return [(int(step), float(loss)) for step, loss in rows]
        except (FileNotFoundError, ValueError):
            return []

    def rewind(self, step: int) -> None:
        """Drop what will be written anew by a training that goes on from `step`: losses, and states that are none; and
        what a killed one was in the midst of writing."""
        sweep(self.path)
        if self._losses.is_file():
            self.cut_losses(step)
        if self._fixed_losses.is_file():
            self.write_fixed_losses(row for row in self.fixed_losses() if row[0] <= step)
        for path in self._states():
            if int(path.stem) > step:
                path.unlink()

    # Embeddings and pictures

    def save(self, embedding: Embedding) -> Path:
        """Keep a copy of an embedding as it is now; returns where."""
        path = self.copy(embedding.name, embedding.step)
        path.parent.mkdir(exist_ok=True)
        save_embedding(embedding, path)
        return path

    def copy(self, name: str, step: int | None) -> Path:
        """Where a copy is kept."""
        return self.path / "embeddings" / f"{name}-{step}.safetensors"

    def rescue(self, embedding: Embedding) -> Path | None:
        """Keep a copy wherever it can be written: in this folder, else in the output folder, in the system's for
        temporary files, at home; returns where, None for nowhere."""
        try:
            return self.save(embedding)
        except OSError:
            for place in self._refuges():
                try:
                    path = numbered(place / f"{embedding.name}-{embedding.step}.safetensors")
                    save_embedding(embedding, path)
                except OSError:
                    continue
                self._elsewhere.append(path)
                return path
        return None

    def _refuges(self) -> Iterator[Path]:
        yield from self.path.parents[2:3]  # the folder that the root is in
        with suppress(OSError):  # where none can be written into that it could be
            yield Path(tempfile.gettempdir())
        yield Path(os.path.expanduser("~"))

    def load(self, name: str, step: int) -> Embedding | None:
        """The copy of a step; None where there is none that can be read."""
        try:
            copy = load_embedding(self.copy(name, step))
        except (OSError, UserError):
            return None
        return replace(copy, name=name)

    def withdraw(self, step: int) -> None:
        """Take back the copies, previews and states that were written of steps after `step`, which have turned out to
        be no good."""
        pictures = self.path.glob("image*/*.png")
        for path in [*self.path.glob("embeddings/*.safetensors"), *pictures, *self._states()]:
            copied = path.stem.rpartition("-")[2]
            if copied.isdecimal() and int(copied) > step:
                path.unlink()

    def prune(self, every: int, keep: int, spared: Collection[int] = ()) -> None:
        """Of the copies of steps that `every` divides leave the newest `keep`, >= 1, and those of steps in `spared`."""
        copies = self._of_steps("embeddings/*.safetensors")
        for step in sorted(step for step in copies if step % every == 0)[:-keep]:
            if step not in spared:
                copies[step].unlink(missing_ok=True)

    def newest(self) -> Path | None:
        """The copy that was written last; None where there is none."""
        copies = [*self.path.glob("embeddings/*.safetensors"), *self._elsewhere]
        return max(copies, key=lambda path: path.stat().st_mtime_ns, default=None)

    def save_preview(self, picture: Tensor, embedding: Embedding, texts: Mapping[str, str]) -> Path:
        """Keep a picture, float32 [H, W, 3] in 0..1, made with an embedding, and `texts` in it; returns where.

        Its pixels are those of the file that ComfyUI's Save Image would write, which cuts off where others round.
        """
        path = self.path / "images" / f"{embedding.name}-{embedding.step}.png"
        save_picture((picture.clamp(0, 1) * 255).floor() / 255, path, texts)
        return path

    def save_image_embedding(self, picture: Tensor, embedding: Embedding) -> None:
        """Keep a picture with the embedding in its pixels. Raises UserError where it cannot hold it."""
        path = self.path / "image_embeddings" / f"{embedding.name}-{embedding.step}.png"
        path.parent.mkdir(exist_ok=True)
        save_embedding(embedding, path, picture)

    def previews(self) -> dict[int, Path]:
        """Step -> the preview that was made after it."""
        return self._of_steps("images/*.png")

    def _of_steps(self, pattern: str) -> dict[int, Path]:
        paths = [(path.stem.rpartition("-")[2], path) for path in self.path.glob(pattern)]
        return {int(step): path for step, path in paths if step.isdecimal()}

    def save_plot(self, picture: Tensor) -> None:
        """Keep a drawing of the losses, float32 [H, W, 3] in 0..1."""
        save_picture(picture, self.path / "loss.png")
