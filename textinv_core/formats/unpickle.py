"""What a pickle says, without doing what it says.

A pickle is a program for a small machine with a stack, and Python's machine calls whatever it is told to. This one
makes values only: dictionaries, lists, tuples, numbers, text, and tensors that are still empty. A name stays a name;
nothing is imported or called, and nothing is hashed, compared or copied but text and numbers. So no opcode takes more
than its own length asks for, in time and memory, however often a value stands in others.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

STORAGES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
    "torch.storage.UntypedStorage": torch.uint8,
}
# Kinds of numbers that have no storage of their own: a tensor's pickle names them.
KINDS = {
    f"torch.{kind}": getattr(torch, kind)
    for kind in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, kind)  # the last came with torch 2.7
}
DICTIONARY = "collections.OrderedDict"
SETS = {"__builtin__.set", "builtins.set"}
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
PARAMETER = "torch._utils._rebuild_parameter"
PARAMETERS = "torch.nn.modules.container.ParameterDict"
KNOWN = {*STORAGES, *KINDS, DICTIONARY, *SETS, *TENSORS, PARAMETER, PARAMETERS}

MAX_NUMBERS = 2**48  # what 64 bits can count and torch can address
MAX_DIMENSIONS = 64  # torch's own bound
MAX_TENSORS = 50_000  # each takes a hundred times what asks for it again; large models have some 5,000


class AsksForCode(Exception):
    """A pickle names, as its text, what tensors do not need: Python would import it, and mostly call it."""


@dataclass(frozen=True)
class Name:
    """`<module>.<name>`, for which Python would look."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Numbers that stand elsewhere in the file, under `key`: so many of `dtype`."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Declared:
    """A tensor, empty yet, and what it is to show: these places of a storage, all of which the storage has."""

    tensor: Tensor
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Parameters:
    """torch's ParameterDict, as far as it holds something."""

    _parameters: Any = None


def unpickle(stream: BinaryIO) -> tuple[Any, list[Declared]]:
    """The value of the pickle that begins here, and the tensors in it, in their order. A set, which has to be empty,
    comes as a list.

    stream: in memory, so that a length the pickle tells of costs nothing; left behind the pickle's end.

    Raises AsksForCode, and ValueError, IndexError, KeyError or OverflowError for what is damaged or holds other things.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}
    declared: list[Declared] = []
    while True:
        byte = stream.read(1)
        if byte not in OPCODES:
            raise ValueError("it ends too early" if not byte else f"it has {byte!r} where an opcode should be")
        opcode = OPCODES[byte]
        argument: Any = opcode.arg.reader(stream) if opcode.arg else None
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[_hashed(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1" | "LONG4" | "INT" | "LONG" | "FLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING" | "STRING":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE" | "LIST" | "DICT":
                items, stack = stack, below.pop()
                stack.append(_filled({}, items) if opcode.name == "DICT" else items)
                if opcode.name == "TUPLE":
                    stack[-1] = tuple(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND" | "APPENDS":
                items, stack = ([stack.pop()], stack) if opcode.name == "APPEND" else (stack, below.pop())
                _is(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], [key, value])
            case "SETITEMS":
                items, stack = stack, below.pop()
                _filled(stack[-1], items)
            case "GLOBAL":
                stack.append(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = _is(stack.pop(), str), _is(stack.pop(), str)
                stack.append(_known(f"{module}.{name}"))
            case "BINPERSID":
                stack.append(_referred(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, name = _is(stack.pop(), tuple), _is(stack.pop(), Name)
                stack.append(_made(name.text, arguments, declared))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Tensor):  # torch.load would let it show other numbers
                    raise ValueError("it changes a tensor that it has made")
                # What an OrderedDict has besides its items, `_metadata` of a state dict, nobody needs here.
                if isinstance(stack[-1], Parameters) and isinstance(state, dict):
                    stack[-1]._parameters = state.get("_parameters")
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), declared
            case other:
                if other == "INST":  # a name and a call in one
                    _known(argument.replace(" ", "."))
                raise ValueError(f"there is more in it than text, numbers and tensors ({other})")


def _is(value: Any, kind: type) -> Any:
    """`value`, which has to be of this kind."""
    if type(value) is not kind:
        raise ValueError(f"it has a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _known(name: str) -> Name:
    if name not in KNOWN:
        raise AsksForCode(name)
    return Name(name)


def _filled(target: Any, items: list[Any]) -> dict[Any, Any]:
    """`target` with the keys and values that stand in turn in `items`."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        _is(target, dict)[_hashed(key)] = value
    return target


def _hashed(key: Any) -> Any:
    """`key`, which has to be what is hashed in no time."""
    # To hash a tuple of tuples, each twice the one before, takes for ever. Integers beyond 64 bits, of which many have
    # the same hash, take long.
    if type(key) not in (str, int, float, bool) or (type(key) is int and key.bit_length() > 64):
        raise ValueError("it has a key that is neither a text nor a number of usual size")
    return key


def _referred(identity: Any) -> Storage | Name:
    """What stands beside the pickle: a storage, and in old files a class, which came with its source."""
    match identity:
        # The last is what an old storage would be a part of.
        case ("storage", Name(text=kind), str(key), str(), int(count), *rest) if kind in STORAGES and rest in (
            [],
            [None],
        ):
            if 0 <= count < MAX_NUMBERS:
                return Storage(STORAGES[kind], key, count)
        case ("module", Name() as name, _, _):
            return name
    raise ValueError("it refers to something that is no storage of numbers")


def _made(name: str, arguments: tuple[Any, ...], declared: list[Declared]) -> Any:
    """What calling `name` would return."""
    match arguments:
        case () if name == DICTIONARY:
            return {}
        case () if name == PARAMETERS:
            return Parameters()
        case ([],) if name in SETS:  # of a ParameterDict; what is in others torch.load hashes, which may never end
            return []
        case (Tensor() as tensor, *_) if name == PARAMETER:
            return tensor
        case (Storage() as storage, offset, shape, stride, *rest) if name in TENSORS:
            dtype = storage.dtype
            if name.endswith("v3"):  # (requires_grad, hooks, dtype, ...)
                dtype = KINDS[_is(rest[2], Name).text]
            if len(declared) == MAX_TENSORS:
                raise ValueError(f"it has more than {MAX_TENSORS} tensors")
            declared.append(_declared(storage, dtype, offset, shape, stride))
            return declared[-1].tensor
    raise ValueError(f"it uses {name} in an unknown way")


def _declared(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> Declared:
    if len(_is(shape, tuple)) > MAX_DIMENSIONS or len(_is(stride, tuple)) != len(shape):
        raise ValueError(f"it has a tensor of {len(shape)} dimensions and {len(stride)} strides")
    if any(type(n) is not int or not 0 <= n < MAX_NUMBERS for n in (offset, *shape, *stride)):
        raise ValueError("it has a tensor whose shape, strides or place are no usual numbers")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    end = offset if 0 in shape else last + 1
    if math.prod(max(n, 1) for n in shape) >= MAX_NUMBERS or end * dtype.itemsize > storage.size:
        raise ValueError(f"it has a tensor of shape {list(shape)}, which is more than its numbers")
    return Declared(torch.empty(0, dtype=dtype), storage, offset, shape, stride)
