"""Random programs of what host code does to tensors, and the same without changing anything in place.

A program is a list of steps; each takes one or two of the registers there are, and changes the first, or makes another
one: a new tensor, or a view. What it comes to is a weighted sum of all registers.
"""

import operator

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

SIDE = 4
MOST_REGISTERS = 9


def _masked(x, y):
    x[x > 0] *= 0.5
    return x


def _without_gradient(x, y):
    with torch.no_grad():
        return x.mul_(0.5)


def _sin_into(x, y):
    if x.requires_grad or y.requires_grad:
        return x.copy_(y.sin())
    return torch.sin(y.expand(x.shape).clone(), out=x)


def _set_first(x, y):
    at = (..., 0) if x.ndim else ...
    x[at] = y[at] if y.ndim else y
    return x


# What changes x, and what x is then.
IN_PLACE = {
    "add_": (lambda x, y: x.add_(y), lambda x, y: x + y),
    "+=": (operator.iadd, lambda x, y: x + y),
    "-=": (operator.isub, lambda x, y: x - y),
    "%=": (lambda x, y: operator.imod(x, 0.3), lambda x, y: x % 0.3),
    "mul_": (lambda x, y: x.mul_(y), lambda x, y: x * y),
    "mul_ by itself": (lambda x, y: x.mul_(x), lambda x, y: x * x),
    "addcmul_ of itself": (lambda x, y: x.addcmul_(x, y), lambda x, y: x + x * y),
    "addcmul_": (lambda x, y: x.addcmul_(y, y, value=-0.5), lambda x, y: x - 0.5 * y * y),
    "tanh_": (lambda x, y: x.tanh_(), lambda x, y: x.tanh()),
    "sigmoid_": (lambda x, y: torch.sigmoid_(x), lambda x, y: x.sigmoid()),
    "silu": (lambda x, y: functional.silu(x, inplace=True), lambda x, y: functional.silu(x)),
    "copy_": (lambda x, y: x.copy_(y.cos()), lambda x, y: y.cos() + 0 * x.detach()),
    "[0] =": (_set_first, lambda x, y: _set_first(x.clone(), y)),
    "[mask] *=": (_masked, lambda x, y: torch.where(x > 0, x * 0.5, x)),
    "masked_fill_": (lambda x, y: x.masked_fill_(x > 0.5, 0.2), lambda x, y: x.masked_fill(x > 0.5, 0.2)),
    "add into": (lambda x, y: torch.add(x, y, out=x), lambda x, y: x + y),
    "mul into": (lambda x, y: torch.mul(x, y, out=x), lambda x, y: x * y),
    "exp into": (lambda x, y: torch.exp(-x * x, out=x), lambda x, y: torch.exp(-x * x)),
    "sin into": (_sin_into, lambda x, y: y.sin() + 0 * x.detach()),
    "each": (lambda x, y: torch._foreach_mul_([x], [y.expand(x.shape)]), lambda x, y: x * y),
    "no_grad": (_without_gradient, lambda x, y: x - 0.5 * x.detach()),
}
NEW = {
    "mul": lambda x, y: x * y,
    "mul by mean": lambda x, y: x * y.mean(),
    "square": lambda x, y: x * x,
    "exp": lambda x, y: torch.exp(-x * x),
    "tanh": lambda x, y: torch.tanh(x),
    "softmax": lambda x, y: torch.softmax(x, -1),
    "add": lambda x, y: x + y,
}
VIEWS = {
    "transposed": lambda x: x.mT if x.ndim == 2 else x,
    "rows": lambda x: x[1:],
    "columns": lambda x: x[..., ::2],
    "first": lambda x: x[0],
    "unsqueezed": lambda x: x[None],
    "halved": lambda x: x.narrow(0, 0, (len(x) + 1) // 2),
}
KINDS = {"in place": IN_PLACE, "new": NEW, "view": VIEWS}

programs = st.lists(
    st.one_of(
        *(st.tuples(st.just(kind), st.sampled_from(sorted(of)), *[st.integers(0, 8)] * 2) for kind, of in KINDS.items())
    ),
    min_size=1,
    max_size=12,
)


def leaves():
    """Two that gradients are asked for, float64 [SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def first_registers(leaves):
    constant = torch.linspace(-1, 1, SIDE * SIDE, dtype=torch.float64).reshape(SIDE, SIDE)
    return [*(leaf * 1 for leaf in leaves), constant]


class Places:
    """Where registers lie: in which tensor, and at which of its places each number of theirs is."""

    def __init__(self):
        whole = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)
        self.tensor, self.at = [0, 1, 2], [whole] * 3
        self.tensors = 3

    def new(self, i):
        self.at.append(torch.arange(self.at[i].numel()).reshape(self.at[i].shape))
        self.tensor.append(self.tensors)
        self.tensors += 1

    def view(self, i, name):
        self.at.append(VIEWS[name](self.at[i]))
        self.tensor.append(self.tensor[i])

    def second(self, i, j, y):
        """`y`, register j, as it can stand beside register i: the mean of another shape, a copy of what overlaps."""
        if self.at[i].shape != self.at[j].shape:
            return y.mean()
        overlaps = self.tensor[i] == self.tensor[j] and not torch.equal(self.at[i], self.at[j])
        return y.clone() if overlaps else y


def steps(program):
    """The steps of a program that can be taken: which register each is of, whether there is room for another."""
    places = Places()
    for kind, name, i, j in program:
        i, j = i % len(places.at), j % len(places.at)
        is_room = len(places.at) < MOST_REGISTERS
        if kind == "in place":
            yield places, kind, name, i, j
        elif kind == "new" and is_room:
            yield places, kind, name, i, j
            places.new(i)
        elif kind == "view" and is_room and places.at[i].ndim and VIEWS[name](places.at[i]).numel():
            yield places, kind, name, i, j
            places.view(i, name)


def take(registers, places, kind, name, i, j):
    """Take one step as host code would."""
    if kind == "view":
        registers.append(VIEWS[name](registers[i]))
        return
    second = places.second(i, j, registers[j])
    if kind == "new":
        registers.append(NEW[name](registers[i], second))
    else:
        IN_PLACE[name][0](registers[i], second)


def total(registers):
    weights = (torch.linspace(-1, 2, each.numel(), dtype=torch.float64).reshape(each.shape) for each in registers)
    return sum((each * weight).sum() for each, weight in zip(registers, weights, strict=True))


def outcome(program, leaves):
    """What a program comes to."""
    registers = first_registers(leaves)
    for step in steps(program):
        take(registers, *step)
    return total(registers)


def outcome_out_of_place(program, leaves):
    """The same where nothing is changed: tensors are rows of numbers, and whoever changes a few makes another row."""
    rows = [each.flatten() for each in first_registers(leaves)]

    def read(places, i):
        return rows[places.tensor[i]][places.at[i]]

    places = Places()
    for places, kind, name, i, j in steps(program):
        if kind == "view":
            continue
        x, second = read(places, i), places.second(i, j, read(places, j))
        if kind == "new":
            rows.append(NEW[name](x, second).flatten())
        else:
            row, at = places.tensor[i], places.at[i].flatten()
            rows[row] = rows[row].index_put([at], IN_PLACE[name][1](x, second).flatten())
    return total([read(places, i) for i in range(len(places.at))])


def gradients(loss, wanted):
    """Of an outcome, zeros where it does not depend on them."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in wanted]
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


def expected_of(program):
    """Its outcome and gradients, with nothing changed in place; programs whose numbers run away are left out."""
    wanted = leaves()
    loss = outcome_out_of_place(program, wanted)
    expected = gradients(loss, wanted)
    assume(all(each.isfinite().all() and each.abs().max() < 1e6 for each in [loss.detach(), *expected]))
    return loss.detach(), *expected


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * max(1, float(b.abs().max())))


class Part(nn.Module):
    """Some steps of a program: a block of a network."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.inner = nn.Identity()  # blocks are more than a single operation

    def forward(self, registers, options):
        registers = [*registers, *options["more"]["registers"]]
        for step in self.part:
            take(registers, *step)
        return registers


class Network(nn.Module):
    """A program in blocks of `length` steps, which take half their registers in a list and half in nested options."""

    def __init__(self, program, length):
        super().__init__()
        taken = list(steps(program))
        self.blocks = nn.ModuleList(Part(taken[at : at + length]) for at in range(0, len(taken), length))

    def forward(self, leaves):
        registers = first_registers(leaves)
        for block in self.blocks:
            registers = block(registers[:2], {"more": {"registers": registers[2:]}})
        return total(registers)
