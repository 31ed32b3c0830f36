"""Gradients through weights that are made of other tensors, as ComfyUI's quantised ones are."""

import pytest
import torch
from torch import nn

from textinv_core.hosts.autograd import lean, ordinary_weights


class Eighths(torch.Tensor):
    """Numbers as whole eighths, in memory of its own kind; transposed it lies in the same. Its strides say nothing."""

    @staticmethod
    def __new__(cls, eighths):
        return torch.Tensor._make_wrapper_subclass(cls, eighths.shape, dtype=torch.float32)

    def __init__(self, eighths):
        self.eighths = eighths

    def __tensor_flatten__(self):
        return ["eighths"], None

    @staticmethod
    def __tensor_unflatten__(parts, how, shape, stride):
        return Eighths(parts["eighths"])

    def dequantize(self):
        return self.eighths.float() / 8

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.t.default:
            return Eighths(args[0].eighths.t())
        if func is torch.ops.aten.detach.default:
            return Eighths(args[0].eighths)
        plain = [each.dequantize() if isinstance(each, Eighths) else each for each in args]
        return func(*plain, **(kwargs or {}))


class Quantised(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        weight = Eighths(torch.randint(-20, 20, (outputs, inputs), generator=generator, dtype=torch.int8))
        weight._is_param = True
        self._parameters["weight"] = weight


def recast(module, like):
    return module.weight.dequantize().to(like.dtype)


@pytest.mark.parametrize("outputs", [6, 4])
@pytest.mark.parametrize("places", [1, 3])
def test_gradients_are_those_of_the_numbers_a_weight_stands_for(outputs, places):
    with torch.inference_mode():
        linear = Quantised(6, outputs)
    weight = linear.weight
    x = torch.randn(2, places, 6, requires_grad=True)
    with ordinary_weights(linear), lean(linear, recast):
        loss = (linear(x) ** 2).sum()
        [found] = torch.autograd.grad(loss, [x])
    [wanted] = torch.autograd.grad((x @ weight.dequantize().t() + linear.bias).square().sum(), [x])
    torch.testing.assert_close(found, wanted)


def test_quantised_weights_are_read_where_they_lie_and_come_back():
    with torch.inference_mode():
        linear = Quantised(6, 6)
    weight = linear.weight
    with ordinary_weights(linear):
        assert linear.weight is not weight and not linear.weight.is_inference()
        assert isinstance(linear.weight, Eighths) and isinstance(linear.weight, nn.Parameter)
        assert linear.weight.eighths.data_ptr() == weight.eighths.data_ptr()
    assert linear.weight is weight


def test_what_is_unpacked_for_forward_does_not_wait_for_backward(monkeypatch):
    unpacked = []
    original = Eighths.dequantize

    def dequantize(tensor):
        unpacked.append(tensor.shape)
        return original(tensor)

    with torch.inference_mode():
        net = nn.Sequential(Quantised(6, 6), Quantised(6, 6), Quantised(6, 6))
    x = torch.randn(2, 6, requires_grad=True)
    stack = [lean(linear, recast) for linear in net]
    with ordinary_weights(net), stack[0], stack[1], stack[2]:
        loss = net(x).sum()
        monkeypatch.setattr(Eighths, "dequantize", dequantize)
        torch.autograd.grad(loss, [x])
    assert len(unpacked) == 3
