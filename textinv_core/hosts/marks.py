"""Telling one model from another by all that hangs on it: a digest of values that is the same in every process."""

import dis
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Set
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import Tensor, nn

SAMPLES = 16  # of a tensor's values: what is fine-tuned or merged differs in nearly all
DEPTH = 16  # of things in things; ends circles, too
PLAIN = bool | int | float | complex | str | bytes | PurePath | range | torch.dtype | np.generic | None


def mark(value: Any, stand_in: Callable[[Any], Any] = lambda value: value) -> str:
    """16 hex digits that tell a value from another, with what is in it: numbers, texts, types, containers, tensors by
    shape, type and a sample of their values, modules by their weights, functions and objects by all that they hold.

    Says the same of the same in every process, and after it was used: of what has an address, a device or a random name
    alone, only the type counts, neither a mapping nor a set has an order, and what functions of it write into variables
    that they share does not count. stand_in: told of everything that is not plain; what it returns is looked at
    instead, which is the thing itself where there is nothing to replace.
    """
    written: dict[int, CellType] = {}
    digest = _Walk(stand_in, written).digest(value, DEPTH)
    if written:  # what reads them may have come first
        digest = _Walk(stand_in, written).digest(value, DEPTH)
    return digest.hex()[:16]


def sample(tensor: Tensor, dtype: torch.dtype | None = None, most: int = SAMPLES) -> tuple[Any, ...]:
    """A tensor's shape, type, and about `most` values from all over it, as they are in `dtype`: plain values for
    `mark`."""
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    shape = tuple(tensor.shape)
    if flatten := getattr(tensor, "__tensor_flatten__", None):  # a quantised one: what it is made of
        return "tensor", shape, *(sample(getattr(tensor, name)) for name in flatten()[0])
    if tensor.is_meta:
        return "tensor", shape, dtype
    # An odd stride does not stay in one column.
    values = tensor.detach().flatten()[:: max(1, tensor.numel() // most) | 1].cpu().to(dtype)
    values = torch.view_as_real(values) if values.is_complex() else values
    return "tensor", shape, dtype, values.double().numpy().tobytes()


def _hash(kind: str, parts: Iterable[bytes] = ()) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _name(thing: type | FunctionType) -> str:
    # Modules of custom nodes are called by where they lie, which is another path on another machine.
    module = re.split(r"[/\\]", thing.__module__ or "")[-1]
    return f"{module}.{thing.__qualname__}"


def _state(value: Any) -> dict[str, Any]:
    """What an object holds."""
    slots = [name for type_ in type(value).__mro__ for name in vars(type_).get("__slots__", ())]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _code(code: CodeType) -> list[Any]:
    """What tells functions of one name from each other, in one version of Python."""
    return [
        code.co_code,
        code.co_names,
        *(_code(each) if isinstance(each, CodeType) else each for each in code.co_consts),
    ]


def _cells(function: FunctionType) -> dict[str, CellType]:
    """The variables of functions around it that a function uses, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _written(code: CodeType) -> set[str]:
    """The names of such variables that a function, or one in it, writes."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_DEREF"}
    within = (_written(each) for each in code.co_consts if isinstance(each, CodeType))
    return own.union(*within).intersection(code.co_freevars)


class _Walk:
    """Digests, by which things in mappings and sets have an order, and each thing that is met again is known."""

    def __init__(self, stand_in: Callable[[Any], Any], written: dict[int, CellType]):
        """written: variables that functions write, by address, which are left out; those that are met are added."""
        self._stand_in, self._written = stand_in, written
        # By address and depth, as what is too deep is left out; kept alive with it, as addresses are given out again.
        self._known: dict[tuple[int, int], tuple[Any, bytes]] = {}

    def digest(self, value: Any, depth: int) -> bytes:
        if isinstance(value, Enum):
            return _hash(f"{_name(type(value))}.{value.name}")
        if isinstance(value, PLAIN):
            return _hash(f"{type(value).__name__} {value!r}")
        if (id(value), depth) not in self._known:
            instead = self._stand_in(value)
            digest = self._looked_into(value, depth) if instead is value else self.digest(instead, depth)
            self._known[id(value), depth] = value, digest
        return self._known[id(value), depth][1]

    def _looked_into(self, value: Any, depth: int) -> bytes:
        kind = _name(type(value))
        if isinstance(value, type):
            return _hash(f"type {', '.join(map(_name, value.__mro__))}")
        if isinstance(value, ModuleType | BuiltinFunctionType):
            return _hash(f"{kind} {value.__name__}")
        if isinstance(value, Tensor):
            return self._all(kind, sample(value), depth)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return self._all(kind, [value.shape, str(value.dtype), value.tobytes()], depth)
        if depth == 0 or isinstance(value, UUID):
            return _hash(kind)
        if isinstance(value, Mapping):
            return _hash(kind, sorted(self._all("item", item, depth) for item in value.items()))
        if isinstance(value, Set):
            return _hash(kind, sorted(self.digest(each, depth - 1) for each in value))
        if isinstance(value, list | tuple):
            return self._all(kind, value, depth)
        return self._all(kind, self._held(value), depth)

    def _all(self, kind: str, values: Iterable[Any], depth: int) -> bytes:
        return _hash(kind, [self.digest(each, depth - 1) for each in values])

    def _held(self, value: Any) -> list[Any]:
        """What a function, module or other object is made of."""
        if isinstance(value, partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, FunctionType):
            cells = _cells(value)
            self._written |= {id(cells[name]): cells[name] for name in _written(value.__code__)}
            empty = CellType()
            cells = [each.cell_contents for each in cells.values() if id(each) not in self._written and each != empty]
            return [_name(value), _code(value.__code__), value.__defaults__, value.__kwdefaults__, cells, vars(value)]
        if isinstance(value, nn.Module):
            weights = dict(value.named_parameters())
            # Where there are weights, hosts note on modules where these are now; a noise schedule has none.
            own = {} if weights else {name: each for name, each in vars(value).items() if isinstance(each, PLAIN)}
            own.pop("training", None)
            return [type(value), own, weights, dict(value.named_buffers())]
        return [type(value), _state(value)]
