"""Gradients through code that was written for inference alone: it changes tensors in place, writes into given memory,
calls operations that have no backward, and takes tensors that autograd refuses."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .autograd import is_plain, ordinary, pointer

# Those that host code calls with `out=` on what needs gradients. Not all there are: the host's fp8_linear finds out by
# the error of `torch.clamp(..., out=)` that it has to take the path that can be trained through.
INTO_GIVEN = {torch.add, torch.mul, torch.exp}
# Besides those whose names end with _, as do those that `x += y` and its like call.
IN_PLACE = {"__setitem__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
OPERATIONS = torch._ops.OpOverloadPacket, torch._ops.OpOverload
# So many are kept before those that are gone are forgotten.
PRUNE_AT = 10_000


class Kept:
    """A tensor as it was when it was kept for the backward pass."""

    __slots__ = ("__weakref__", "_tensor", "_version")

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = tensor.detach(), tensor._version

    def copy(self) -> None:
        """Keep a copy of it, before it is changed."""
        self._tensor = self._tensor.clone()
        self._version = 0

    def get(self) -> Tensor:
        """The tensor; RuntimeError where it has been changed nevertheless."""
        if self._tensor._version != self._version:
            raise RuntimeError("A tensor that is needed for gradients has been changed in place.")
        return self._tensor


def unkept(value: Any) -> Any:
    """What was given to be kept, where it has been, and anything else as it is."""
    return value.get() if isinstance(value, Kept) else value


def _changed(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """What an operation changes in place, among other things; it is not known which arguments operations of the host's
    change."""
    changed: Sequence[Any] = ()
    name = name.partition(".")[0]  # behind which an overload has its own
    if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        given = [*args, *kwargs.values()]
        changed = given if isinstance(func, OPERATIONS) else given[:1]
    elif kwargs.get("inplace"):
        changed = args[:1]
    if "out" in kwargs:
        changed = [*changed, kwargs["out"]]
    return [each for value in changed for each in (value if isinstance(value, list | tuple) else [value])]


def _needs_gradient(args: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in args)


class Tolerant(TorchFunctionMode):
    """Inside it and its `keeping()`, what autograd would refuse is done so that gradients come out right.

    - What is saved for backward is copied just before something changes it in place, and nothing else is.
    - Of `INTO_GIVEN`, where gradients are needed, `out=` becomes the operation and a copy of its result.
    - Inference tensors are taken as ordinary ones over the same memory.
    - Operations that have no backward are replaced by what `instead` gives for them.

    (`torch.autograd.graph.allow_mutation_on_saved_tensors` does the first, but not within a checkpoint.) It costs a few
    microseconds an operation. May be entered again, on any thread, as backward does.

    constant: memory that nobody changes, see `storages`. instead: an operation -> one that does the same and has a
    backward, or None.
    """

    def __init__(self, constant: set[int], instead: Callable[[Any], Any | None] = lambda function: None):
        super().__init__()
        self._constant, self._instead = constant, instead
        # By memory, what is kept of it.
        self._kept: dict[int, list[weakref.ref[Kept]]] = {}
        self._count, self._prune_at = 0, PRUNE_AT
        self._changing: set[int] = set()

    def keeping(self) -> saved_tensors_hooks:
        """Inside, what autograd saves is kept; see `keep`."""
        return saved_tensors_hooks(self.keep, unkept)

    def keep(self, tensor: Tensor) -> Any:
        """`tensor` as it is now, for `unkept`."""
        if not is_plain(tensor) or pointer(tensor) in self._constant:
            return tensor
        kept, memory = Kept(tensor), pointer(tensor)
        if memory in self._changing:  # by the very operation that saves it
            kept.copy()
            return kept
        self._count += 1
        if self._count >= self._prune_at:
            alive = {place: [each for each in those if each() is not None] for place, those in self._kept.items()}
            self._kept = {place: those for place, those in alive.items() if those}
            self._count = sum(map(len, self._kept.values()))
            self._prune_at = max(PRUNE_AT, 2 * self._count)
        self._kept.setdefault(memory, []).append(weakref.ref(kept))
        return kept

    @contextmanager
    def _change(self, tensors: Sequence[Any]) -> Iterator[None]:
        plain = [tensor for tensor in tensors if is_plain(tensor)]
        for tensor in plain:
            if tensor.requires_grad and torch.is_grad_enabled():
                tensor.grad_fn  # noqa: B018  (until asked, a view whose base needs gradients since is taken for a leaf)
        changing = {pointer(tensor) for tensor in plain} - self._changing
        for memory in changing:
            for reference in self._kept.pop(memory, ()):
                if kept := reference():
                    kept.copy()
        self._changing |= changing
        try:
            yield
        finally:
            self._changing -= changing

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        changed = _changed(func, name, args, kwargs)
        if not (changed or torch.is_grad_enabled()):
            return func(*args, **kwargs)
        is_lost = any(isinstance(value, Tensor) and value.is_inference() for value in changed)
        args = [_ordinary(value) for value in args]
        if kwargs:
            kwargs = {key: _ordinary(value) for key, value in kwargs.items()}
        if torch.is_grad_enabled():
            if is_lost and _needs_gradient([*args, *kwargs.values()]):
                # They would be, in the ordinary tensor over the same memory, that nobody asks again.
                raise RuntimeError("What needs gradients cannot be written into a tensor that inference mode has made.")
            if kwargs.get("out") is not None and func in INTO_GIVEN and _needs_gradient([*args, kwargs["out"]]):
                given = kwargs.pop("out")
                result = func(*args, **kwargs)
                with self._change([given]):
                    return given.copy_(result)
            if isinstance(func, OPERATIONS) and _needs_gradient(args) and (instead := self._instead(func)):
                with self:
                    return instead(*args, **kwargs)
        if not changed:
            return func(*args, **kwargs)
        with self._change(changed):
            return func(*args, **kwargs)


def _ordinary(value: Any) -> Any:
    """`value`, with ordinary tensors for inference tensors, in lists too."""
    if isinstance(value, Tensor):
        return ordinary(value) if value.is_inference() else value
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) and each.is_inference() for each in value):
        return type(value)(map(_ordinary, value))
    return value
