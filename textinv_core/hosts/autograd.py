"""Let autograd pass through weights and modules that were loaded for inference only, without copying them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with memory of its own, not one made of others, as quantised ones are."""
    return type(value) in (Tensor, nn.Parameter)


def pointer(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others."""
    return tensor.untyped_storage().data_ptr() if is_plain(tensor) else id(tensor)


def is_made_of_others(tensor: Tensor) -> bool:
    """Whether a tensor has others for its memory, as quantised ones do."""
    return hasattr(tensor, "__tensor_flatten__")


def made_of(tensor: Tensor) -> dict[str, Tensor]:
    """By name, what a tensor is made of that `is_made_of_others`."""
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}  # type: ignore[attr-defined]


def remade(tensor: Tensor, parts: dict[str, Tensor]) -> Any:
    """A tensor like `tensor`, made of others."""
    kind: Any = type(tensor)
    return kind.__tensor_unflatten__(parts, kind.__tensor_flatten__(tensor)[1], tensor.shape, tensor.stride())


def ordinary(tensor: Tensor) -> Tensor:
    """An ordinary frozen tensor over the memory of `tensor`, which may be an inference tensor, or a quantised one."""
    if is_made_of_others(tensor):
        alias = remade(tensor, {name: ordinary(part) for name, part in made_of(tensor).items()})
        alias._is_param = isinstance(tensor, nn.Parameter)  # nn.Parameter would copy what it is made of
        return alias
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if not is_plain(tensor):  # of a custom node, as for GGUF, which notes on it what its numbers mean
        alias = alias.as_subclass(type(tensor))
        vars(alias).update(vars(tensor))
        return alias
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


@contextmanager
def ordinary_weights(*modules: nn.Module) -> Iterator[None]:
    """For the length of the block, all weights and buffers of `modules` are ordinary frozen tensors.

    Autograd refuses tensors that were made in inference mode, and computes gradients nobody wants for those that
    require them. Both kinds are replaced by tensors over the same memory; the originals go back in any case.
    Must be entered outside inference mode.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    aliases: dict[int, Tensor] = {}  # tied weights stay tied
    try:
        for module in (m for root in modules for m in root.modules()):
            for tensors in (module._parameters, module._buffers):
                stored: dict[str, Any] = tensors
                for name, tensor in stored.items():
                    if tensor is None or not (tensor.is_inference() or tensor.requires_grad):
                        continue
                    replaced.append((stored, name, tensor))
                    stored[name] = aliases.setdefault(id(tensor), ordinary(tensor))
        yield
    finally:
        for stored, name, tensor in reversed(replaced):
            stored[name] = tensor


def _holds_tensors(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, Tensor) for each in held)


@contextmanager
def without_leftovers(*modules: nn.Module) -> Iterator[None]:
    """After the block, no module has tensors among its attributes that it had not before: some note what they were
    given last, and with it all that its gradients went through would stay."""
    before = [(vars(module), dict(vars(module))) for root in modules for module in root.modules()]
    try:
        yield
    finally:
        for own, was in before:
            left = [name for name, value in own.items() if value is not was.get(name) and _holds_tensors(value)]
            for name in left:
                del own[name]
            own |= {name: was[name] for name in left if name in was}


@contextmanager
def replaced_method(module: nn.Module, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """For the length of the block, `module.<name>` is `wrap` of what it was."""
    own = vars(module).get(name)
    try:
        setattr(module, name, wrap(getattr(module, name)))
        yield
    finally:
        if own is None:
            vars(module).pop(name, None)  # an interrupt may have come before it was set
        else:
            setattr(module, name, own)


def storages(*modules: nn.Module) -> set[int]:
    """Where the weights of `modules` lie in memory."""
    return {pointer(weight) for module in modules for weight in module.parameters()}


class _Quantised:
    """A quantised weight, perhaps transposed, that is kept where the one it was made of lies, and in no other memory.

    used: as an operation saved it. stored: as it lies in its module, maybe on another device.
    """

    def __init__(self, used: Tensor, stored: Tensor):
        self._device, self._stored = used.device, made_of(stored)
        # Of the same names: what becomes of the parts when a weight is moved and transposed is told by their strides.
        self._layout = {name: (part.shape, part.stride()) for name, part in made_of(used).items()}
        kind: Any = type(used)
        self._how = kind, kind.__tensor_flatten__(used)[1], used.shape, used.stride()

    def numbers(self) -> Tensor:
        """What it stands for, as an ordinary tensor."""
        kind, *how = self._how
        parts = {name: self._stored[name].to(self._device).as_strided(*layout) for name, layout in self._layout.items()}
        return kind.__tensor_unflatten__(parts, *how).dequantize()


Recast = Callable[[nn.Module, Tensor], Tensor]


def lean(module: nn.Module, recast: Recast) -> AbstractContextManager[None]:
    """For the length of the block, `module`, a frozen Linear or Conv, keeps nothing for backward that it can spare.

    Hosts store weights in one type, or on one device, and compute in another. Autograd would keep each cast weight
    until backward, a second copy of the model; here it is cast once more. recast(module, like) must give the weight
    with the type and device of `like`. Convolutions also keep their input, for the gradient of a weight that has none.

    A quantised weight is unpacked for the backward pass, and only there: gradients are those of the numbers it stands
    for, and are not quantised themselves.
    """

    def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def lean_forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not (input.requires_grad and torch.is_grad_enabled()):
                return forward(input, *args, **kwargs)
            weight: Tensor = module.get_parameter("weight")
            stored, given = pointer(weight), pointer(input)

            def pack(tensor: Tensor) -> Any:
                if is_made_of_others(tensor):
                    return _Quantised(tensor, weight)
                storage = pointer(tensor)
                is_cast_weight = storage != stored and tensor.numel() == weight.numel() and not tensor.requires_grad
                if storage != given and not is_cast_weight:
                    return tensor
                like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                return storage == given, tensor.shape, tensor.stride(), like

            def unpack(packed: Any) -> Tensor:
                if isinstance(packed, Tensor):
                    return packed
                if isinstance(packed, _Quantised):
                    return packed.numbers()
                is_input, shape, stride, like = packed
                if is_input:  # only its shape is looked at
                    return like.new_empty_strided(shape, stride)
                return recast(module, like).as_strided(shape, stride)

            with saved_tensors_hooks(pack, unpack):
                return forward(input, *args, **kwargs)

        return lean_forward

    return replaced_method(module, "forward", wrap)
