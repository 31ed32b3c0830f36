"""Let autograd pass through weights and modules that were loaded for inference only, without copying them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..errors import UserError


def _ordinary(tensor: Tensor) -> Tensor:
    """An ordinary frozen tensor over the memory of `tensor`, which may be an inference tensor."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


@contextmanager
def ordinary_weights(*modules: nn.Module) -> Iterator[None]:
    """For the length of the block, all weights and buffers of `modules` are ordinary frozen tensors.

    Autograd refuses tensors that were made in inference mode, and computes gradients nobody wants for those that
    require them. Both kinds are replaced by tensors over the same memory; the originals go back in any case.
    Must be entered outside inference mode. Raises UserError for quantised weights.
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
                    if type(tensor) not in (Tensor, nn.Parameter):
                        raise UserError(
                            f"Embeddings cannot be trained on this model yet: its weights are quantised "
                            f"({type(tensor).__name__}). Load a version of it with fp16, bf16 or fp32 weights."
                        )
                    replaced.append((stored, name, tensor))
                    stored[name] = aliases.setdefault(id(tensor), _ordinary(tensor))
        yield
    finally:
        for stored, name, tensor in reversed(replaced):
            stored[name] = tensor


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
    return {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}


def tolerating_inplace(weights: set[int]) -> saved_tensors_hooks:
    """Inside, what autograd saves is copied, so that later in-place changes (`x += ...`) do not spoil it.

    Autograd checks for such changes only where no hooks stand guard. Meant for text encoders, whose activations are
    small. (`torch.autograd.graph.allow_mutation_on_saved_tensors` would do too, but sends every operation of forward
    and backward through Python.) weights: the storages, see there, that nobody changes and that are not copied.
    """

    def pack(tensor: Tensor) -> Tensor:
        return tensor if tensor.untyped_storage().data_ptr() in weights else tensor.clone()

    return saved_tensors_hooks(pack, lambda tensor: tensor)


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
            stored, given = weight.untyped_storage().data_ptr(), input.untyped_storage().data_ptr()

            def pack(tensor: Tensor) -> Any:
                storage = tensor.untyped_storage().data_ptr()
                is_cast_weight = storage != stored and tensor.numel() == weight.numel() and not tensor.requires_grad
                if storage != given and not is_cast_weight:
                    return tensor
                return storage == given, tensor.shape, tensor.stride(), tensor.new_empty(0)

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


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: what stands in its lists and sequences and is more than a single operation."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
        elif isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.children()):
            yield child


def checkpointing(module: nn.Module) -> AbstractContextManager[Any]:
    """For the length of the block, the blocks of `module` keep only their inputs for backward and run again there."""

    def copied(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return forward(*map(copied, args), **{key: copied(value) for key, value in kwargs.items()})

        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            # Dicts of options change while the network runs; both runs must see them as they are now.
            kwargs = {key: copied(value) for key, value in kwargs.items()}
            return checkpoint(run, *map(copied, args), use_reentrant=False, preserve_rng_state=False, **kwargs)

        return checkpointed

    stack = ExitStack()
    for block in list(_blocks(module)):
        stack.enter_context(replaced_method(block, "forward", wrap))
    return stack
