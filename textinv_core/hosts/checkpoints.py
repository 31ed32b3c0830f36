"""Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174) of networks not written for it.

`torch.utils.checkpoint` keeps a block's inputs by reference, and gives wrong gradients, silently, where the block or
one after it changes them in place, as those of Flux do.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .autograd import replaced_method
from .tolerant import Kept, Tolerant, unkept


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: what stands in its lists and sequences and is more than a single operation."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.children()):
            yield child


class _Input:
    """A tensor that a block was given, as it was then."""

    def __init__(self, tensor: Tensor, tolerant: Tolerant | None):
        self._needs_gradient = tensor.requires_grad
        self._kept = Kept(tensor) if tolerant is None else tolerant.keep(tensor)

    def again(self, may_change: bool) -> Tensor:
        """The same for another run; may_change: whether that may change it in place."""
        tensor = unkept(self._kept)
        if not self._needs_gradient:
            return tensor
        tensor = tensor.detach().requires_grad_()
        return tensor.clone() if may_change else tensor


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value`, or where it is a container a new one, with `function` of each thing in it. Deeper ones stay: blocks tell
    each other through them."""
    if isinstance(value, dict):
        return {key: function(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(function, value))
    return function(value)


class _Run:
    """One run of a block, made again when backward asks for the first of the tensors that it saved."""

    def __init__(self, forward: Callable[..., Any], args: Any, kwargs: Any, tolerant: Tolerant | None):
        def kept(value: Any) -> Any:
            return _Input(value, tolerant) if isinstance(value, Tensor) else value

        self._forward, self._tolerant = forward, tolerant
        self._args = [_mapped(kept, value) for value in args]
        self._kwargs = {key: _mapped(kept, value) for key, value in kwargs.items()}
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

        def again(value: Any) -> Any:
            return value.again(tolerant is not None) if isinstance(value, _Input) else value

        def pack(tensor: Tensor) -> None:
            saved.append(Kept(tensor) if tolerant is None else tolerant.keep(tensor))

        random = _random_states(self._device)
        with torch.enable_grad(), saved_tensors_hooks(pack, unkept), tolerant or nullcontext():
            try:
                _set_random_states(self._device, self._random)
                args = [_mapped(again, value) for value in self._args]
                self._forward(*args, **{key: _mapped(again, value) for key, value in self._kwargs.items()})
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

    def copied(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            # Dicts of options change while the network runs; both runs must see them as they are now.
            args = tuple(map(copied, args))
            kwargs = {key: copied(value) for key, value in kwargs.items()}
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            run = _Run(forward, args, kwargs, tolerance())
            with saved_tensors_hooks(run.pack, run.unpack):
                return forward(*args, **kwargs)

        return checkpointed

    stack = ExitStack()
    for block in list(_blocks(module)):
        stack.enter_context(replaced_method(block, "forward", wrap))
    return stack
