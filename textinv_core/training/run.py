"""The folder a training leaves behind, and running one so that nothing learnt is lost."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ..dataset import Example, batches_per_epoch
from ..embedding import Embedding
from ..files import write_atomically
from ..formats import save_embedding
from ..hosts.base import TrainableModel
from ..shuffle import ShuffleConfig
from .loop import Progress, TrainingError, train
from .parallel import ALONE, Processes
from .settings import TrainSettings

log = logging.getLogger("textinv")

CSV_HEADER = "step,epoch,epoch_step,loss,learn_rate\n"  # A1111's


@dataclass(frozen=True)
class Trained:
    """What a training gives: the embedding, one loss a step, and where its folder is."""

    embedding: Embedding
    losses: list[float]
    folder: Path


def new_run_folder(root: Path, name: str, now: datetime | None = None) -> Path:
    """Make `<root>/<name>/<date and time>/`, with a number behind where there is one already."""
    stamp = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    for n in range(1, 1000):
        folder = root / name / (stamp if n == 1 else f"{stamp}_{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"There are 999 folders {root / name / stamp}_* already.")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for the length of the block. They only ever reach the main thread; elsewhere this does
    nothing."""
    handlers = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # One that was not set from Python could not be put back from there.
                if (handler := signal.getsignal(number)) is not None:
                    handlers[number] = handler
                    signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Record:
    """Writes a run's files as it goes on."""

    def __init__(self, folder: Path, batches_a_step: int, batches_an_epoch: int):
        self.folder, self._batches_a_step, self._batches_an_epoch = folder, batches_a_step, batches_an_epoch
        self.losses: list[float] = []
        self._rows, self._saved_at = [CSV_HEADER], None

    def step(self, progress: Progress) -> None:
        self.losses.append(progress.loss)
        epoch, batch = divmod((progress.step - 1) * self._batches_a_step, self._batches_an_epoch)
        row = (
            f"{progress.step},{epoch},{batch // self._batches_a_step},{progress.loss:.7f},{progress.learning_rate:g}\n"
        )
        self._rows.append(row)

    def write_losses(self) -> None:
        write_atomically(self.folder / "textual_inversion_loss.csv", "".join(self._rows).encode())

    def save(self, embedding: Embedding) -> Path:
        path = self.folder / "embeddings" / f"{embedding.name}-{embedding.step}.safetensors"
        if self._saved_at != embedding.step:
            path.parent.mkdir(exist_ok=True)
            save_embedding(embedding, path)
            self._saved_at = embedding.step
        return path


def run_training(
    model: TrainableModel,
    examples: Sequence[Example],
    embedding: Embedding,
    settings: TrainSettings,
    folder: Path,
    shuffle: ShuffleConfig | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    processes: Processes = ALONE,
) -> Trained:
    """Train `embedding`, recording everything in `folder`; see `loop.train` for what is learnt and raised.

    on_step: called after each optimizer step; whatever it raises ends the run, an interrupt for example.

    Whatever ends the run after its first step, the vectors of the last good step are in `embeddings/` and the losses
    in `textual_inversion_loss.csv`; a TrainingError's message then says where. In the main thread, Ctrl-C and SIGTERM
    are ignored while these are written after an interrupt or error.

    Of several processes, the first alone writes to its `folder`, and logs.
    """
    progress = None
    steps = train(model, examples, embedding, settings, shuffle, processes)
    if processes.rank > 0:
        losses = []
        for progress in steps:
            losses.append(progress.loss)
            on_step(progress)
        assert progress is not None
        return Trained(progress.embedding(), losses, folder)
    told = {**asdict(settings), "shuffle": asdict(shuffle or ShuffleConfig()), "embedding": embedding.name}
    told |= {"pictures": len(examples), "vectors": {key: list(rows.shape) for key, rows in embedding.vectors.items()}}
    write_atomically(folder / "settings.json", json.dumps(told, indent=2).encode())
    batches_an_epoch = batches_per_epoch(examples, settings.batch_size)
    record = _Record(folder, settings.gradient_accumulation, batches_an_epoch)
    log_every = min(max(10, settings.steps // 50), 100)
    started = time.monotonic()
    try:
        for progress in steps:
            record.step(progress)
            if progress.step % log_every == 0 or progress.step == progress.last_step:
                done = len(record.losses)
                recent = record.losses[-log_every:]
                pace = (time.monotonic() - started) / done
                log.info(
                    f"textinv: {embedding.name}, step {progress.step}/{progress.last_step}, loss {progress.loss:.4f} "
                    f"(mean of {len(recent)}: {sum(recent) / len(recent):.4f}), rate {progress.learning_rate:g}, "
                    f"{pace:.2f} s a step, {_duration(pace * (progress.last_step - progress.step))} left"
                )
                record.write_losses()
            if settings.save_every and progress.step % settings.save_every == 0:
                record.save(progress.embedding())
            on_step(progress)
        assert progress is not None  # the learning rates reach at least one step, and the last one writes the losses
        trained = progress.embedding()
        record.save(trained)
        return Trained(trained, record.losses, folder)
    except BaseException as stopped:
        if progress is None:
            raise
        with _uninterrupted():
            path = record.save(progress.embedding())
            record.write_losses()
            log.warning(f"textinv: stopped at step {progress.step}; what was learnt so far is in {path}")
        if isinstance(stopped, TrainingError):
            raise TrainingError(f"{stopped} The embedding of step {progress.step} is kept in {path}.") from stopped
        raise
