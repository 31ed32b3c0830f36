"""Gradients through modules made for inference, exactly, and without keeping what need not be kept."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from textinv_core.errors import UserError
from textinv_core.hosts.autograd import (
    checkpointing,
    lean,
    ordinary_weights,
    replaced_method,
    storages,
    tolerating_inplace,
)


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
    [gradient] = torch.autograd.grad((y.float() * randn(*y.shape, seed=2)).sum(), x)
    return y.detach(), gradient


def alive(references):
    return sum(not reference.expired() for reference in references)


# ordinary_weights


class Net(nn.Module):
    """Parameters, buffers, and a weight that two modules share."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("absent", None)
        self.eval()

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.norm(self.conv(x)))))


X = randn(2, 4, 6, 6)


@pytest.fixture
def inference_net():
    with torch.inference_mode():
        return seeded(Net)


@pytest.fixture
def reference():
    """What the same net gives where autograd has always been allowed."""
    return run(seeded(Net), X)


def slots(net):
    return {
        (module, name): tensor
        for module in net.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
    }


def test_inference_weights_stop_autograd(inference_net):
    # The reason for all this. Should torch ever allow it, ordinary_weights can go.
    with pytest.raises(RuntimeError, match="Inference tensors"):
        run(inference_net, X)


def test_ordinary_weights_give_the_gradient_of_an_ordinary_net(inference_net, reference):
    with ordinary_weights(inference_net):
        output, gradient = run(inference_net, X)
    assert torch.equal(output, reference[0])
    assert torch.equal(gradient, reference[1])


def test_ordinary_weights_share_memory_and_put_the_originals_back(inference_net):
    before = slots(inference_net)
    addresses = {slot: tensor.data_ptr() for slot, tensor in before.items() if tensor is not None}
    with ordinary_weights(inference_net):
        inside = slots(inference_net)
        assert {slot: tensor.data_ptr() for slot, tensor in inside.items() if tensor is not None} == addresses
        assert not any(t.is_inference() or t.requires_grad for t in inside.values() if t is not None)
        assert all(isinstance(t, nn.Parameter) == isinstance(before[slot], nn.Parameter) for slot, t in inside.items())
    after = slots(inference_net)
    assert after.keys() == before.keys()
    assert all(after[slot] is before[slot] for slot in before)
    assert inference_net.conv.weight.is_inference() and inference_net.conv.weight.requires_grad


def test_ordinary_weights_see_slices_as_they_lie_in_memory():
    net = seeded(lambda: nn.Linear(6, 6))
    expected = run(net, X)
    with torch.inference_mode():
        packed = torch.zeros(100)
        packed[10:46].view(6, 6).copy_(net.weight.t())
        net.weight = nn.Parameter(packed[10:46].view(6, 6).t())  # an offset, and columns first
    with ordinary_weights(net):
        assert net.weight.stride() == (1, 6)
        output, gradient = run(net, X)
    assert torch.allclose(output, expected[0], atol=1e-6)
    assert torch.allclose(gradient, expected[1], atol=1e-6)


def test_tied_weights_stay_tied(inference_net):
    with ordinary_weights(inference_net):
        assert inference_net.first.weight is inference_net.second.weight


def test_the_same_module_may_come_twice(inference_net):
    before = slots(inference_net)
    with ordinary_weights(inference_net, nn.ModuleList([inference_net.first])):
        run(inference_net, X)
    assert all(slots(inference_net)[slot] is tensor for slot, tensor in before.items())


def test_the_originals_come_back_after_an_error(inference_net):
    before = slots(inference_net)
    with pytest.raises(KeyboardInterrupt), ordinary_weights(inference_net):
        raise KeyboardInterrupt  # as the host's interrupt, no Exception
    assert all(slots(inference_net)[slot] is tensor for slot, tensor in before.items())


def test_weights_that_require_gradients_get_none_inside(reference):
    net = seeded(Net)
    with ordinary_weights(net):
        x = X.clone().requires_grad_()
        (net(x) * randn(*X.shape, seed=2)).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(x.grad, reference[1])


def test_frozen_ordinary_weights_are_left_alone():
    net = seeded(Net).requires_grad_(False)
    before = slots(net)
    with ordinary_weights(net):
        assert all(slots(net)[slot] is tensor for slot, tensor in before.items())


class QuantisedTensor(torch.Tensor):
    pass


def test_quantised_weights_are_refused_and_nothing_is_left_changed(inference_net):
    with torch.inference_mode():
        quantised = torch.Tensor._make_subclass(QuantisedTensor, torch.zeros(6, 6))
        inference_net.second._parameters["weight"] = quantised
    before = slots(inference_net)
    with pytest.raises(UserError, match=r"quantised.*QuantisedTensor"), ordinary_weights(inference_net):
        pytest.fail("entered")
    assert all(slots(inference_net)[slot] is tensor for slot, tensor in before.items())


# replaced_method


def test_replaced_method():
    net = nn.Linear(2, 2)
    with pytest.raises(KeyError), replaced_method(net, "forward", lambda forward: lambda x: -forward(x)):
        assert torch.equal(net(X[0, 0, :, :2]), -nn.Linear.forward(net, X[0, 0, :, :2]))
        raise KeyError
    assert "forward" not in vars(net)

    def own(x):
        return x

    net.forward = own
    with replaced_method(net, "forward", lambda forward: lambda x: forward(x) + 1):
        assert net(1) == 2
    assert vars(net)["forward"] is own


def test_an_interrupt_on_the_way_in_leaves_the_method():
    class Interrupting(nn.Linear):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "forward":
                raise KeyboardInterrupt

    net = Interrupting(2, 2)
    with pytest.raises(KeyboardInterrupt), replaced_method(net, "forward", lambda forward: lambda x: -forward(x)):
        pass
    assert "forward" not in vars(net)


# tolerating_inplace


class Residual(nn.Module):
    """A text encoder in small: residuals are added in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6)])
        self.linears = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.in_place = in_place
        self.requires_grad_(False)

    def forward(self, x):
        x = x * 1
        for norm, linear in zip(self.norms, self.linears, strict=True):
            change = torch.softmax(linear(norm(x)), -1)
            if self.in_place:
                x += change
            else:
                x = x + change
        return x


def test_inplace_residuals_get_the_gradient_of_outplace_ones():
    net, reference = seeded(lambda: Residual(True)), seeded(lambda: Residual(False))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(net, X)
    with tolerating_inplace(storages(net)):
        output, gradient = run(net, X)
    expected_output, expected_gradient = run(reference, X)
    assert torch.equal(output, expected_output)
    assert torch.equal(gradient, expected_gradient)


def test_backward_may_come_after_the_hooks_are_gone():
    net, x = seeded(lambda: Residual(True)), X.clone().requires_grad_()
    with tolerating_inplace(storages(net)):
        y = net(x)
    [gradient] = torch.autograd.grad((y * randn(*y.shape, seed=2)).sum(), x)
    assert torch.equal(gradient, run(seeded(lambda: Residual(False)), X)[1])


def test_weights_are_not_copied_for_inplace_nets():
    net = Residual(True)
    hooks = tolerating_inplace(storages(net, nn.Linear(2, 2)))
    weight = net.linears[0].weight
    for saved in (weight, weight.detach(), weight.t()):
        assert hooks.pack_hook(saved).data_ptr() == weight.data_ptr()
    assert hooks.pack_hook(X).data_ptr() != X.data_ptr()


# lean: weights stored in fp16, computed with in fp32, as ComfyUI's operations do it


CASTS: list[StorageWeakRef] = []
INPUTS: list[StorageWeakRef] = []


class CastsWeights:
    weight_function = None

    def cast(self, like):
        weight = self.weight.to(like.dtype)
        if self.weight_function is not None:
            weight = self.weight_function(weight)
        CASTS.append(StorageWeakRef(weight.untyped_storage()))
        return weight, None if self.bias is None else self.bias.to(like.dtype)

    def forward(self, *args, **kwargs):
        return self.forward_comfy_cast_weights(*args, **kwargs)


class CastLinear(CastsWeights, nn.Linear):
    def forward_comfy_cast_weights(self, input):
        return nn.functional.linear(input, *self.cast(input))


class CastConv2d(CastsWeights, nn.Conv2d):
    def forward_comfy_cast_weights(self, input):
        INPUTS.append(StorageWeakRef(input.untyped_storage()))
        return self._conv_forward(input, *self.cast(input))


def recast(module, like):
    return module.cast(like)[0].to(like.device)


class CastNet(nn.Module):
    """Convolutions, and linears on as many places as they have outputs: activations as large as weights."""

    def __init__(self):
        super().__init__()
        self.conv = CastConv2d(4, 4, 3, padding=1)
        self.pointwise = CastConv2d(4, 4, 1, bias=False)
        self.linear = CastLinear(6, 6)
        self.plain = CastLinear(6, 6, bias=False)
        self.requires_grad_(False).half()

    def forward(self, x):
        x = torch.nn.functional.silu(self.pointwise(torch.tanh(self.conv(x))))
        return self.plain(torch.tanh(self.linear(x)) ** 2)


@pytest.fixture
def casts():
    CASTS.clear()
    INPUTS.clear()
    yield CASTS
    CASTS.clear()
    INPUTS.clear()


def all_lean(net):
    stack = ExitStack()
    for module in net.modules():
        if hasattr(module, "forward_comfy_cast_weights"):
            stack.enter_context(lean(module, recast))
    return stack


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (1, 4, 1, 6), (4, 1, 6), (4, 6, 6)])
def test_lean_modules_gives_the_same_bits(casts, shape):
    net = seeded(CastNet)
    x = randn(*shape)
    if len(shape) == 3 and shape[1] == 1:  # linears alone
        net.forward = lambda x: net.plain(torch.tanh(net.linear(x)))
    expected_output, expected_gradient = run(net, x)
    with all_lean(net):
        output, gradient = run(net, x)
    assert torch.equal(output, expected_output)
    assert torch.equal(gradient, expected_gradient)


def test_lean_modules_keeps_no_cast_weight_until_backward(casts):
    net, x = seeded(CastNet), X.clone().requires_grad_()
    kept = net(x)
    assert alive(casts) == len(casts) == 4  # so autograd does keep them
    del kept
    casts.clear()
    with all_lean(net):
        y = net(x)
        assert len(casts) == 4
        assert alive(casts) == 0
        y.sum().backward()
        assert len(casts) == 8
    del y
    assert alive(casts) == 0


def test_lean_modules_applies_what_is_patched_on_the_weight_again(casts):
    net = seeded(CastNet)
    net.linear.weight_function = lambda weight: weight * 3
    net.conv.weight_function = lambda weight: weight.flip(0)
    expected = run(net, X)
    with all_lean(net):
        output, gradient = run(net, X)
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])


def test_lean_modules_follows_columns_first_weights(casts):
    net = seeded(CastNet)
    net.linear.weight = nn.Parameter(net.linear.weight.t().contiguous().t(), requires_grad=False)
    net.conv.weight = nn.Parameter(net.conv.weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    expected = run(net, X)
    with all_lean(net):
        assert torch.equal(run(net, X)[1], expected[1])


def test_lean_modules_leaves_weights_of_the_right_type_alone(casts):
    net = seeded(CastNet).float()
    expected = run(net, X)
    casts.clear()
    with all_lean(net):
        output, gradient = run(net, X)
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])
    assert len(casts) == 4  # forward only: the stored weight serves backward


def test_lean_modules_restores_the_method(casts):
    net = CastNet()
    with all_lean(net):
        assert "forward" in vars(net.linear)
    assert not any("forward" in vars(module) for module in net.modules())


# checkpointing


class Block(nn.Module):
    """Reads its options, and writes to them as the host's blocks do."""

    hidden: list[StorageWeakRef] = []  # noqa: RUF012

    def __init__(self, linear=nn.Linear):
        super().__init__()
        self.linear = linear(6, 6)

    def forward(self, x, options=None, scale=1.0):
        options["seen"] = options.get("seen", 0) + 1
        hidden = torch.tanh(self.linear(x)) * options["index"] * options["seen"] * scale
        self.hidden.append(StorageWeakRef(hidden.untyped_storage()))
        return x + hidden**2


class Blocks(nn.Module):
    """Blocks as UNets hold them: in lists, in sequences in lists; single operations among them."""

    def __init__(self, by_keyword):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), nn.Sequential(Block(), nn.Tanh()), nn.ModuleList([Block()])])
        self.by_keyword = by_keyword
        self.requires_grad_(False)

    def forward(self, x, options):
        for index, group in enumerate(self.blocks, 1):
            options["index"] = index
            for module in [group] if isinstance(group, Block) else group:
                if isinstance(module, nn.Tanh):
                    x = module(x)
                elif self.by_keyword:
                    x = module(x, scale=0.5, options=options)
                else:
                    x = module(x, options, 0.5)
        options["index"] = -99
        return x


@pytest.fixture
def hidden():
    Block.hidden.clear()
    yield Block.hidden
    Block.hidden.clear()


def block_modules(net):
    return [module for module in net.modules() if isinstance(module, Block)]


@pytest.mark.parametrize("by_keyword", [True, False])
def test_checkpointing_gives_the_same_bits(hidden, by_keyword):
    net = seeded(lambda: Blocks(by_keyword))
    # What blocks write into the options stays with them: each starts from what was there when it was called.
    expected_output, expected_gradient = run(copied_options(net), X, {})
    with checkpointing(net):
        output, gradient = run(net, X, {})
    assert torch.equal(output, expected_output)
    assert torch.equal(gradient, expected_gradient)


def copied_options(net):
    """A copy of `net` in which each block gets options of its own, without checkpoints."""
    net = copy.deepcopy(net)
    for block in block_modules(net):
        forward = block.forward
        block.forward = lambda x, options=None, scale=1.0, forward=forward: forward(x, dict(options), scale)
    return net


def test_checkpointing_keeps_nothing_inside_the_blocks(hidden):
    net = seeded(lambda: Blocks(True))
    x = X.clone().requires_grad_()
    kept = net(x, {})
    assert alive(hidden) == len(hidden) == 3
    del kept
    hidden.clear()
    with checkpointing(net):
        y = net(x, {})
        assert len(hidden) == 3
        assert alive(hidden) == 0
        y.sum().backward()
        assert len(hidden) == 6


def test_checkpointing_restores_forward(hidden):
    net = Blocks(True)

    def own(x, options, scale):
        return x

    net.blocks[0].forward = own
    with checkpointing(net):
        assert all("forward" in vars(block) for block in block_modules(net))
        assert vars(net.blocks[0])["forward"] is not own
    assert vars(net.blocks[0])["forward"] is own
    assert not any("forward" in vars(block) for block in block_modules(net)[1:])


class ConvBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = CastConv2d(4, 4, 3, padding=1), CastLinear(6, 6)

    def forward(self, x):
        return x + self.linear(self.conv(torch.nn.functional.silu(x)))


@pytest.fixture
def conv_blocks():
    return seeded(lambda: nn.Sequential(ConvBlock(), ConvBlock())).requires_grad_(False).half()


def test_checkpoints_and_lean_modules_together_give_the_same_bits(casts, conv_blocks):
    expected_output, expected_gradient = run(conv_blocks, X)
    with all_lean(conv_blocks), checkpointing(conv_blocks):
        output, gradient = run(conv_blocks, X)
    assert torch.equal(output, expected_output)
    assert torch.equal(gradient, expected_gradient)


def test_checkpoints_keep_no_cast_weight(casts, conv_blocks):
    with all_lean(conv_blocks), checkpointing(conv_blocks):
        y = conv_blocks(X.clone().requires_grad_())
        assert y.requires_grad
        assert len(casts) == 4 and alive(casts) == 0


def test_checkpoints_keep_no_input_of_a_convolution(casts, conv_blocks):
    with all_lean(conv_blocks), checkpointing(conv_blocks):
        y = conv_blocks(X.clone().requires_grad_())
        assert y.requires_grad
        assert len(INPUTS) == 2 and alive(INPUTS) == 0
