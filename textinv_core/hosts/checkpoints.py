"""Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174) of networks not written for it.

`torch.utils.checkpoint` keeps a block's inputs by reference, and gives wrong gradients, silently, where the block or
one after it changes them in place, as those of Flux do.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .autograd import ordinary, replaced_method
from .tolerant import Kept, Tolerant, unkept


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: what stands in its lists and sequences and is more than a single operation."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.children()):
            yield child


@dataclass(frozen=True)
class _Input:
    """A tensor that a block was given: one of those kept of its inputs, or a view of it, as of `Tensor.as_strided`."""

    number: int
    view: Any


def _base(tensor: Tensor) -> Tensor:
    """What `tensor` is a view of, where that can be kept in its place, else itself."""
    base = tensor._base
    if base is None or base.dtype != tensor.dtype or base.requires_grad != tensor.requires_grad:
        return tensor
    has_strides_of_a_copy = torch.empty_like(base, device="meta").stride() == base.stride()
    return base if has_strides_of_a_copy else tensor


class _Inputs:
    """What a block was given, as it was then, for another run. Tensors that lay in the same memory do so again, because
    the block may change them in place."""

    def __init__(self, given: Any, tolerant: Tolerant | None):
        self._tolerant = tolerant
        self._kept: list[Any] = []
        self._need_gradients: list[bool] = []
        bases: dict[int, tuple[int, Tensor]] = {}  # which keeps them alive, so that their ids stay theirs

        def keep(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            tensor = ordinary(value) if value.is_inference() else value
            base = _base(tensor)
            if id(base) not in bases:
                bases[id(base)] = len(self._kept), base
                self._kept.append(Kept(base) if tolerant is None else tolerant.keep(base))
                self._need_gradients.append(base.requires_grad)
            offset = tensor.storage_offset() - base.storage_offset()
            return _Input(bases[id(base)][0], None if base is tensor else (tensor.shape, tensor.stride(), offset))

        self._given = _mapped(keep, given)

    def again(self) -> Any:
        """The same once more; the tensors in it need gradients where they did."""
        tensors = list(map(self._again, self._kept, self._need_gradients))

        def again(value: Any) -> Any:
            if not isinstance(value, _Input):
                return value
            tensor = tensors[value.number]
            return tensor if value.view is None else tensor.as_strided(*value.view)

        return _mapped(again, self._given)

    def _again(self, kept: Any, needs_gradient: bool) -> Tensor:
        tensor = unkept(kept)
        if not needs_gradient:
            return tensor
        tensor = tensor.detach().requires_grad_()
        return tensor if self._tolerant is None else tensor.clone()  # which may be changed in place


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value`, or where it is a container a new one, with `function` of each thing in it."""
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, each) for each in value)
    return function(value)


class _Run:
    """One run of a block, made again when backward asks for the first of the tensors that it saved."""

    def __init__(self, forward: Callable[..., Any], args: Any, kwargs: Any, tolerant: Tolerant | None):
        self._forward, self._tolerant = forward, tolerant
        # Blocks tell each other things through their options; another run must see them as they are now.
        self._inputs = _Inputs((args, kwargs), tolerant)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._device = next((each.device for each in tensors if each.device.type != "cpu"), torch.device("cpu"))
        self._random = _random_states(self._device)
        self._count = 0
        self._saved: list[Any] = []

    def pack(self, tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def unpack(self, number: int) -> Tensor:
        if not self._saved:
            self._run_again()
        return unkept(self._saved[number])

    def _run_again(self) -> None:
        tolerant = self._tolerant
        saved: list[Any] = []

        def pack(tensor: Tensor) -> None:
            saved.append(Kept(tensor) if tolerant is None else tolerant.keep(tensor))

        random = _random_states(self._device)
        with torch.enable_grad(), saved_tensors_hooks(pack, unkept), tolerant or nullcontext():
            try:
                _set_random_states(self._device, self._random)
                args, kwargs = self._inputs.again()
                self._forward(*args, **kwargs)
            finally:
                _set_random_states(self._device, random)
        if len(saved) != self._count:
            raise RuntimeError("A part of the model does not do the same when it is run again for its gradients.")
        self._saved = saved


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of the accelerator that computes, if one does."""
    return [torch.get_rng_state(), *([] if device.type == "cpu" else [getattr(torch, device.type).get_rng_state()])]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        getattr(torch, device.type).set_rng_state(state)


def checkpointing(
    module: nn.Module, tolerance: Callable[[], Tolerant | None] = lambda: None
) -> AbstractContextManager[Any]:
    """For the length of the block, the blocks of `module` keep only their inputs for backward and run again there, with
    the random numbers of the first time.

    tolerance: gives what is in force when a block runs, if anything is. Without, a RuntimeError is raised in backward
    where inputs, or what is saved, have been changed in place.
    """

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            with torch._C.DisableTorchFunction():  # in which nothing is an inference tensor
                run = _Run(forward, args, kwargs, tolerance())
            with saved_tensors_hooks(run.pack, run.unpack):
                return forward(*args, **kwargs)

        return checkpointed

    stack = ExitStack()
    for block in list(_blocks(module)):
        stack.enter_context(replaced_method(block, "forward", wrap))
    return stack
