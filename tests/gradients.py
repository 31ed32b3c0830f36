"""What tests of gradients share: networks with the same weights each time, and what comes of running them."""

import torch

from textinv_core.hosts.tolerant import Tolerant


def seeded(make, seed=0):
    """`make()` with weights that do not depend on which test ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def randn(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(net, x, *args, **kwargs):
    """Output of `net` and the gradient of a weighted sum of it with respect to `x`."""
    x = x.clone().requires_grad_()
    y = net(x, *args, **kwargs)
    [gradient] = torch.autograd.grad((y.double() * randn(*y.shape, seed=2)).sum(), x)
    return y.detach(), gradient


def tolerantly(net, x, *args, tolerant=None, **kwargs):
    """As `run`, in `tolerant`."""
    tolerant = tolerant or Tolerant(set())
    with tolerant, tolerant.keeping():
        return run(net, x, *args, **kwargs)


def alive(references):
    return sum(not reference.expired() for reference in references)
