"""The device that the tests of hosts train on, against what a GPU does."""

import copy
import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests import simgpu


def on_device(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to("simgpu")


@pytest.mark.parametrize(
    "mix",
    [
        lambda ours, cpu: ours + cpu,
        lambda ours, cpu: cpu @ ours,
        lambda ours, cpu: ours.addcmul_(ours, cpu),
        lambda ours, cpu: torch.cat([ours, cpu]),
        lambda ours, cpu: torch.nn.functional.linear(ours, cpu),
        lambda ours, cpu: torch.where(cpu > 0, ours, ours),
        lambda ours, cpu: cpu[ours.long()],
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(on_device(3, 3), torch.ones(3, 3))


def test_numbers_of_the_cpu_do():
    assert torch.equal((on_device(3) * torch.tensor(2.0)).cpu(), torch.tensor([0.0, 2.0, 4.0]))


READS = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 1).any()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "equal": lambda x: torch.equal(x, x),
}
BLOCKING = {
    "to": lambda x: torch.ones(3).to(x),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "list as index": lambda x: x[[0, 1]],
    "cpu index": lambda x: x[torch.tensor([0, 1])],
    "put at cpu index": lambda x: x.index_put_((torch.tensor([0, 1]),), x[:1]),
}
NEITHER = {
    "slices": lambda x: x[1:].T.reshape(-1)[None] * 2,
    "made there": lambda x: torch.zeros_like(x) + torch.arange(3, device=x.device) + torch.randn(3, device=x.device),
    "device index": lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)],
    "norm": lambda x: torch.stack([x.norm(), x.isfinite().all().float()]),
    "other type": lambda x: x.to("simgpu", torch.float16),
}


@pytest.mark.parametrize("name", [*READS, *BLOCKING, *NEITHER])
def test_what_waits_is_counted(name):
    x = on_device(3, 3)
    with simgpu.counting() as waits:
        {**READS, **BLOCKING, **NEITHER}[name](x)
    assert (len(waits.reads), len(waits.blocking_uploads)) == (name in READS, name in BLOCKING), str(waits)


def test_an_upload_can_go_without_waiting():
    with simgpu.counting() as waits:
        torch.ones(3).to("simgpu", non_blocking=True)
    assert (len(waits.uploads), len(waits.blocking_uploads)) == (1, 0)


def test_the_line_that_waited_is_named():
    with simgpu.counting() as waits:
        on_device(3).sum().item()
    assert waits.reads[0].where.startswith("tests/test_simgpu.py:")
    assert waits.reads[0].where in str(waits)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Linear(6, 6),
        torch.nn.LayerNorm(6),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_backward_give_the_bits_of_the_cpu(dtype):
    def gradients(device: str) -> list[torch.Tensor]:
        layers = network().to(device, dtype)
        x = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8).to(device, dtype).requires_grad_()
        loss = checkpoint(layers, x, use_reentrant=False).float().square().mean()
        return [loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, [x, *layers.parameters()]))]

    assert all(map(torch.equal, gradients("simgpu"), gradients("cpu")))


def test_what_backward_needs_must_not_change():
    x = on_device(3).requires_grad_()
    doubled = x * 2
    loss = (doubled**2).sum()
    doubled += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_views_share_memory_and_copies_do_not():
    x = on_device(2, 3)
    copied = copy.deepcopy(x)
    x.T[0] = 7.0
    assert x[:, 0].tolist() == [7.0, 7.0]
    assert copied[:, 0].tolist() == [0.0, 3.0]
    assert copied.device == x.device


def test_memory_lives_as_long_as_its_last_view():
    x = on_device(1000) + 1
    memory = weakref.ref(x.untyped_storage().owner)
    last = x[-1:]
    del x
    gc.collect()
    assert last.tolist() == [1000.0]
    del last
    gc.collect()
    assert memory() is None
