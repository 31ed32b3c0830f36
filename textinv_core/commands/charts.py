"""Pictures of a training: its losses, and what an embedding has changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, FAINT = (255, 255, 255), (30, 30, 34), (222, 222, 226)
POINT, LINE, FIXED = (165, 188, 222), (190, 60, 40), (30, 120, 90)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float() / 255


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` (>= 1) at most."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, low < high: `most` + 1 at most, and 1, 2 or 5 times a power of ten apart."""
    exact = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(exact))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= exact * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def loss_plot(
    losses: Sequence[float], name: str, first_step: int = 1, fixed: Sequence[tuple[int, float]] = ()
) -> Tensor:
    """The losses of a training, one a step, as points, their running mean as a line, and the fixed losses as another:
    float32 [500, 900, 3] in 0..1.

    losses: finite, at least one. first_step: the number of the first. fixed: (step, fixed loss) each; of those, the
    start's may be of the step before. Single losses say more of their noise level than of progress, so their axis ends
    where 98 % of them do.
    """
    fine = 2  # drawn so many times larger, then reduced, which smooths lines
    width, height, left, top, right, bottom = (fine * n for n in (900, 500, 80, 50, 20, 60))
    window = max(1, len(losses) // 15)
    means = running_mean(losses, window)
    highest = 1.05 * max(float(np.quantile(losses, 0.98)), max(means), *(loss for _, loss in fixed)) or 1.0
    last_step = first_step + max(len(losses) - 1, 1)

    def place(step: float, loss: float) -> tuple[float, float]:
        x = left + (step - first_step) / (last_step - first_step) * (width - left - right)
        return x, height - bottom - loss / highest * (height - top - bottom)

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    small, large = ImageFont.load_default(14 * fine), ImageFont.load_default(20 * fine)
    for loss in ticks(0, highest, 6):
        x, y = place(first_step, loss)
        draw.line((x, y, width - right, y), FAINT, fine)
        draw.text((x - 8 * fine, y), f"{loss:.3g}", INK, small, "rm")
    for step in ticks(first_step, last_step, 8):
        if step == int(step):
            draw.text((place(step, 0)[0], height - bottom + 8 * fine), f"{int(step)}", INK, small, "mt")
    for step, loss in enumerate(losses, first_step):
        if loss <= highest:
            x, y = place(step, loss)
            draw.ellipse((x - 1.5 * fine, y - 1.5 * fine, x + 1.5 * fine, y + 1.5 * fine), POINT)
    if len(means) > 1:
        draw.line([place(step, mean) for step, mean in enumerate(means, first_step)], LINE, 2 * fine, "curve")
    if len(fixed) > 1:
        draw.line([place(max(step, first_step), loss) for step, loss in fixed], FIXED, 2 * fine, "curve")
    draw.text((left, top / 2), f"Loss of {name}", INK, large, "lm")
    legend = f"points: each step; red: mean of {window}{'; green: the fixed loss' if fixed else ''}"
    draw.text((width - right, top / 2), legend, INK, small, "rm")
    draw.text(((left + width - right) / 2, height - 12 * fine), "step", INK, small, "mb")
    return _tensor(picture.reduce(fine))


@dataclass(frozen=True)
class Column:
    """Pictures under a title: float32 [n, H, W, 3] in 0..1, `across` in a row.

    captions: what stands below each row; a single one stands below the last.
    """

    title: str
    pictures: Tensor
    captions: Sequence[str] = ()
    across: int = 2


def comparison(columns: Sequence[Column], cell: int = 128) -> Tensor:
    """Columns side by side, as one picture [H, W, 3]. Each picture becomes `cell` pixels high, without smoothing."""
    gap, space, head, line = 6, 36, 60, 30
    title, small = ImageFont.load_default(26), ImageFont.load_default(16)
    widths = []
    for column in columns:
        of_pictures = column.across * (cell + gap) - gap
        texts = [title.getlength(column.title), *(small.getlength(caption) for caption in column.captions)]
        widths.append(math.ceil(max(of_pictures, *texts)))
    rows = max(-(-len(column.pictures) // column.across) for column in columns)
    size = sum(widths) + space * (len(columns) + 1), head + rows * (cell + line) + space // 2
    paper = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(paper)
    left = space
    for column, width in zip(columns, widths, strict=True):
        middle = left + width / 2
        draw.text((middle, head / 2), column.title, INK, title, "mm")
        start = round(middle - (column.across * (cell + gap) - gap) / 2)
        for i, picture in enumerate(column.pictures):
            row, place = divmod(i, column.across)
            pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
            enlarged = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            paper.paste(enlarged, (start + place * (cell + gap), head + row * (cell + line)))
        own_rows = -(-len(column.pictures) // column.across)
        for i, caption in enumerate(column.captions, own_rows - len(column.captions)):
            draw.text((middle, head + i * (cell + line) + cell + line / 2), caption, INK, small, "mm")
        left += width + space
    return _tensor(paper)
