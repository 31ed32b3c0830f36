"""Gradients through modules made for inference, exactly, and without keeping what need not be kept."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.gradients import alive, randn, run, seeded
from textinv_core.hosts.autograd import (
    lean,
    ordinary,
    ordinary_weights,
    replaced_method,
    storages,
    without_leftovers,
)
from textinv_core.hosts.checkpoints import checkpointing
from textinv_core.hosts.tolerant import Tolerant

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


class Scaled(Tensor):
    """A weight as hosts keep quantised ones: small numbers and a scale, made whole in each operation."""

    @staticmethod
    def __new__(cls, small, scale):
        return Tensor._make_wrapper_subclass(cls, small.shape, dtype=scale.dtype, device=small.device)

    def __init__(self, small, scale):
        self.small, self.scale = small, scale

    def __tensor_flatten__(self):
        return ["small", "scale"], type(self)

    @staticmethod
    def __tensor_unflatten__(inner, made_of, shape, stride):
        return made_of(inner["small"], inner["scale"])

    def whole(self):
        return self.small.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].small, args[0].scale)
        args = [each.whole() if isinstance(each, Scaled) else each for each in args]
        return func(*args, **(kwargs or {}))


class Stacked(Scaled):
    """Its small numbers are quantised once more."""


class Packed(torch.Tensor):
    """A weight as a custom node keeps it: bytes, and notes of what they mean, its shape among them."""

    @property
    def shape(self):
        return self.meant


class Notes(nn.Module):
    """Notes what it was given last, as some of the host's networks do."""

    last, loose = None, None

    def forward(self, x):
        self.last, self.seen, self.log, self.count = x, x * 2, {"x": x}, 1
        return x


def test_what_modules_note_of_a_training_goes_with_it():
    net, x = Notes(), X.clone().requires_grad_()
    net.last = earlier = torch.zeros(1)
    with pytest.raises(KeyboardInterrupt), without_leftovers(nn.Sequential(net)):
        net(x)
        raise KeyboardInterrupt
    assert net.last is earlier and net.count == 1
    assert not {"seen", "log"} & vars(net).keys()


def test_weights_of_a_custom_node_s_kind_keep_what_is_noted_on_them():
    net = nn.Linear(4, 4)
    with torch.inference_mode():
        packed = torch.arange(6, dtype=torch.uint8).as_subclass(Packed)
        packed.meant = torch.Size([4, 4])
        net._parameters["weight"] = packed
    with ordinary_weights(net):
        weight = net._parameters["weight"]
        assert type(weight) is Packed and weight.meant == (4, 4) and not weight.is_inference()
        assert weight.size() == (6,) and weight.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    assert net._parameters["weight"] is packed


def quantised(made_of=Scaled):
    small, scale = randn(6, 6, seed=5).mul(50).round().to(torch.int8), torch.tensor(0.02)
    return Stacked(Scaled(small, torch.tensor(1.0)), scale) if made_of is Stacked else made_of(small, scale)


@pytest.fixture(params=[Scaled, Stacked])
def quantised_net(request):
    """Its second linear has a quantised weight, which is no copy of what the first has."""
    with torch.inference_mode():
        net = seeded(Net)
        net.second.weight = nn.Parameter(quantised(request.param), requires_grad=False)
    return net


def test_quantised_weights_give_the_gradient_of_whole_ones(quantised_net):
    whole = seeded(Net)
    whole.second.weight = nn.Parameter(quantised().whole())
    with pytest.raises(RuntimeError, match="nference"):
        run(quantised_net, X)
    expected = run(whole, X)
    with ordinary_weights(quantised_net):
        output, gradient = run(quantised_net, X)
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])


def numbers(weight):
    """What a quantised weight is made of."""
    names, _ = weight.__tensor_flatten__()
    inner = [getattr(weight, name) for name in names]
    return [plain for each in inner for plain in (numbers(each) if isinstance(each, Scaled) else [each])]


def test_quantised_weights_share_memory_and_come_back(quantised_net):
    before, weight = slots(quantised_net), quantised_net.second.weight
    with ordinary_weights(quantised_net):
        alias = quantised_net.second.weight
        assert type(alias) is type(weight) and isinstance(alias, nn.Parameter) and alias is not weight
        assert [each.data_ptr() for each in numbers(alias)] == [each.data_ptr() for each in numbers(weight)]
        assert not any(each.is_inference() or each.requires_grad for each in [alias, *numbers(alias)])
        assert (alias.shape, alias.dtype) == (weight.shape, weight.dtype)
        assert "weight" in dict(quantised_net.second.named_parameters())
    assert all(slots(quantised_net)[slot] is tensor for slot, tensor in before.items())
    assert all(each.is_inference() for each in numbers(quantised_net.second.weight))


def test_tied_quantised_weights_stay_tied(quantised_net):
    quantised_net.first.weight = quantised_net.second.weight
    with ordinary_weights(quantised_net):
        assert quantised_net.first.weight is quantised_net.second.weight


def test_quantised_weights_are_neither_copied_nor_looked_after(quantised_net):
    with ordinary_weights(quantised_net):
        weight, tolerant = quantised_net.second.weight, Tolerant(storages(quantised_net))
        assert tolerant.keep(weight) is weight
        for stored in numbers(weight):
            assert ordinary(stored).data_ptr() == stored.data_ptr()


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


# lean modules in checkpoints


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
