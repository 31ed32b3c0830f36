"""Which devices there are, moving tensors to one without waiting for it, and telling when its memory has run short."""

import torch
from torch import Tensor

from .errors import UserError

# Devices that keep what a copy in the background still reads; not all promise to.
NON_BLOCKING = {"cuda"}
# How torch and its backends say so where they raise no OutOfMemoryError: CUDA's own errors, cuBLAS, MPS, XPU, the CPU.
SHORT_OF_MEMORY = (
    "out of memory",
    "out_of_device_memory",
    "cublas_status_alloc_failed",
    "defaultcpuallocator",
    "cannot allocate memory",
)
NO_MEMORY = (
    "There is not enough memory. Smaller pictures take less (width and height), and so do batch_size 1, "
    "gradient_checkpointing on, a model in half precision (precision bf16), and other programs when they are closed."
)


def device_called(name: str) -> torch.device:
    """The device that torch calls `name`, such as cpu, cuda, cuda:1 or mps; `auto` is the fastest there is.

    Raises UserError, with those there are, for one that cannot be computed on here.
    """
    there = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    there += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(there[0].removesuffix(":0"))
    try:
        device = torch.device(name)
        # There and back: some devices are there in name alone, and "meta" keeps no numbers.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"There is no device {name!r} here that could compute. What there is: {', '.join(there)}; auto takes the "
            "fastest."
        ) from None
    return device


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, where it may be already.

    An ordinary copy waits until a GPU has done all it was asked to do before; from pinned memory it need not.
    """
    if tensor.device.type != "cpu" or device.type not in NON_BLOCKING:
        return tensor.to(device)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory has run short, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SHORT_OF_MEMORY)


def in_words(error: Exception) -> str:
    """What to tell the person whom `error` has stopped: its own message, unless that is torch's, of memory."""
    return NO_MEMORY if is_out_of_memory(error) else str(error)
