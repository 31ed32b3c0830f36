"""The previews of a run: pictures generated with what was learnt by a step, and kept in its folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..embedding import Embedding
from ..errors import UserError
from ..hosts.base import Host, Sampling
from ..images import load_image
from .folder import RunFolder
from .preview import Preview

log = logging.getLogger("textinv")


@dataclass(frozen=True)
class Previewed:
    """Pictures generated with what was learnt by a step, float32 [n, H, W, 3] in 0..1: one, or the frames of a video.

    path: where the first is kept; None where it could not be written.
    """

    step: int
    pictures: Tensor
    path: Path | None


class Previews:
    """What generates a run's previews, and keeps them in its folder; what fails costs only a preview.

    prompt: that names the embedding. shape: of the first training picture's latent, [C, ..., h, w]. texts: go into the
    files, by name; None for how each was generated, as A1111 writes that.
    """

    def __init__(
        self,
        preview: Preview,
        host: Host,
        prompt: str,
        shape: Sequence[int],
        folder: RunFolder,
        texts: Mapping[str, str] | None,
    ):
        self._preview, self._host, self._prompt, self._shape = preview, host, prompt, shape
        self._folder, self._texts = folder, texts
        self._has_complained = False

    def is_due(self, step: int) -> bool:
        """Whether there is to be one on the way, after this step."""
        return self._preview.every > 0 and step % self._preview.every == 0

    def generate(self, embedding: Embedding) -> Iterator[Previewed]:
        """The preview of `embedding`; none, and a line in the log, where that fails. Raises what interrupts."""
        preview, host = self._preview, self._host
        sides = zip((preview.height, preview.width), self._shape[-2:], strict=True)
        cells = [side // host.latent_multiple or own for side, own in sides]
        sampling = Sampling(preview.steps, preview.cfg, preview.negative, preview.sampler, preview.scheduler)
        try:
            pictures = host.sample([self._prompt], [preview.seed], [*self._shape[:-2], *cells], sampling, [embedding])
        except Exception:  # whatever it is, hours of training do not depend on it
            log.exception(f"textinv: the preview of step {embedding.step} failed; {self._left(embedding)}")
            return
        yield Previewed(embedding.step or 0, pictures, self._kept(embedding, pictures[0]))

    def at_the_end(self, embedding: Embedding) -> Iterator[Previewed]:
        """As `generate`. All else is done: to interrupt it costs only that."""
        made = []
        try:
            made = list(self.generate(embedding))
        except (KeyboardInterrupt, *self._host.interrupts) as stopped:
            if isinstance(stopped, KeyboardInterrupt) and type(stopped) is not KeyboardInterrupt:
                raise  # no Ctrl-C, but what ends the process
            log.warning(f"textinv: the preview was cancelled; {self._left(embedding)}")
        yield from made

    def _left(self, embedding: Embedding) -> str:
        is_there = embedding.step in self._folder.previews()
        old = f" The picture of step {embedding.step} is one from before, made as it was told then." if is_there else ""
        return f"what was learnt is kept.{old}"

    def _kept(self, embedding: Embedding, picture: Tensor) -> Path | None:
        texts = {"parameters": self._parameters(picture)} if self._texts is None else self._texts
        # The picture is the last, because it tells whether there has been a preview.
        with self._complaining(embedding):
            self._folder.save_image_embedding(picture, embedding)
        with self._complaining(embedding):
            return self._folder.save_preview(picture, embedding, texts)
        return None

    @contextmanager
    def _complaining(self, embedding: Embedding) -> Iterator[None]:
        """What cannot be written in the block is left, and said once."""
        try:
            yield
        except (OSError, UserError) as error:
            if not self._has_complained:
                self._has_complained = True
                log.warning(
                    f"textinv: not all of the preview of step {embedding.step} could be kept in the run's folder: "
                    f"{error}. It is tried again with the next one."
                )

    def _parameters(self, picture: Tensor) -> str:
        preview, (height, width) = self._preview, picture.shape[:2]
        negative = f"Negative prompt: {preview.negative}\n" if preview.negative else ""
        return (
            f"{self._prompt}\n{negative}Steps: {preview.steps}, Sampler: {preview.sampler or self._host.samplers[0]}, "
            f"CFG scale: {preview.cfg:g}, Seed: {preview.seed}, Size: {width}x{height}"
        )


def all_of(folder: RunFolder, steps: range, made: Mapping[int, Tensor]) -> list[Tensor]:
    """The previews of a run after any of `steps`, in their order, each [n, H, W, 3], and all as large as the last.

    made: by step; others are read from the folder, where they were put before the run was gone on with.
    """
    found = dict(made)
    for step, path in folder.previews().items():
        if step in steps and step not in made:
            try:
                found[step] = load_image(path)[0][None]
            except UserError as error:
                log.warning(f"textinv: the preview {path} cannot be read, and is left out: {error}.")
    in_order = [found[step] for step in sorted(found)]
    alike = [pictures for pictures in in_order if pictures.shape[1:] == in_order[-1].shape[1:]]
    if len(alike) < len(in_order):
        log.info(
            f"textinv: of the run's {len(in_order)} previews {len(in_order) - len(alike)} come in another size than "
            f"the last one, and are only in {folder.path / 'images'}."
        )
    return alike
