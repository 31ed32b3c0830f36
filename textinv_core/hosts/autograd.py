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


def ordinary(tensor: Tensor) -> Tensor:
    """An ordinary frozen tensor over the memory of `tensor`, which may be an inference tensor, or a quantised one."""
    if flatten := getattr(tensor, "__tensor_flatten__", None):
        names, how = flatten()
        inner = {name: ordinary(getattr(tensor, name)) for name in names}
        made_of: Any = type(tensor)
        alias: Any = made_of.__tensor_unflatten__(inner, how, tensor.shape, tensor.stride())
        alias._is_param = isinstance(tensor, nn.Parameter)  # nn.Parameter would copy what it is made of
        return alias
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
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


@contextmanager
def without_leftovers(*modules: nn.Module) -> Iterator[None]:
    """After the block, no module has tensors among its attributes that it had not before: some note what they were
    given last, and with it all that its gradients went through would stay."""
    before = [(vars(module), dict(vars(module))) for root in modules for module in root.modules()]
    try:
        yield
    finally:
        for own, was in before:
            for name in [
                name for name, value in own.items() if isinstance(value, Tensor) and value is not was.get(name)
            ]:
                if name in was:
                    own[name] = was[name]
                else:
                    del own[name]


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


Recast = Callable[[nn.Module, Tensor], Tensor]


def lean(module: nn.Module, recast: Recast) -> AbstractContextManager[None]:
    """For the length of the block, `module`, a frozen Linear or Conv, keeps nothing for backward that it can spare.

    Hosts store weights in one type, or on one device, and compute in another. Autograd would keep each cast weight
    until backward, a second copy of the model; here it is cast once more. recast(module, like) must give the weight
    with the type and device of `like`. Convolutions also keep their input, for the gradient of a weight that has none.
    """

    def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def lean_forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not (input.requires_grad and torch.is_grad_enabled()):
                return forward(input, *args, **kwargs)
            weight: Tensor = module.get_parameter("weight")
            stored, given = pointer(weight), pointer(input)

            def pack(tensor: Tensor) -> Any:
                storage = pointer(tensor)
                is_cast_weight = storage != stored and tensor.numel() == weight.numel() and not tensor.requires_grad
                if storage != given and not is_cast_weight:
                    return tensor
                like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                return storage == given, tensor.shape, tensor.stride(), like

            def unpack(packed: Any) -> Tensor:
                if isinstance(packed, Tensor):
                    return packed
                is_input, shape, stride, like = packed
                if is_input:  # only its shape is looked at
                    return like.new_empty_strided(shape, stride)
                return recast(module, like).as_strided(shape, stride)

            with saved_tensors_hooks(pack, unpack):
                return forward(input, *args, **kwargs)

        return lean_forward

    return replaced_method(module, "forward", wrap)
