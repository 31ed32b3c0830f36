"""Moving tensors to a device without waiting for it, and telling when its memory has run short."""

import torch
from torch import Tensor

# Devices that keep what a copy in the background still reads; not all promise to.
NON_BLOCKING = {"cuda"}
# How torch and its backends say so where they raise no OutOfMemoryError: CUDA's own errors, cuBLAS, MPS, XPU, the CPU.
SHORT_OF_MEMORY = ("out of memory", "out_of_device_memory", "cublas_status_alloc_failed", "can't allocate memory")


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
