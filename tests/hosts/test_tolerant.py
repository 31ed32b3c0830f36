"""Gradients through what was written for inference alone: each right, or refused."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from torch import library, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from tests.gradients import randn, run, seeded, tolerantly
from tests.programs import assert_close, expected_of, gradients, leaves, outcome, programs
from textinv_core.hosts.autograd import storages
from textinv_core.hosts.tolerant import PRUNE_AT, Kept, Tolerant

X = randn(2, 4, 6, 6)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# Residuals added in place, as text encoders do


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inplace_residuals_get_the_gradient_of_outplace_ones(dtype):
    net, reference = (seeded(lambda in_place=in_place: Residual(in_place)).to(dtype) for in_place in (True, False))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(net, X.to(dtype))
    assert_same(tolerantly(net, X.to(dtype)), run(reference, X.to(dtype)))


def test_backward_may_come_after_the_mode_is_gone():
    net, x, tolerant = seeded(lambda: Residual(True)), X.clone().requires_grad_(), Tolerant(set())
    with tolerant, tolerant.keeping():
        y = net(x)
    [gradient] = torch.autograd.grad((y.double() * randn(*y.shape, seed=2)).sum(), x)
    assert torch.equal(gradient, run(seeded(lambda: Residual(False)), X)[1])


def test_backward_may_come_on_another_thread():
    net, x, tolerant = seeded(lambda: Residual(True)), X.clone().requires_grad_(), Tolerant(set())
    with tolerant, tolerant.keeping():
        loss = (net(x).double() * randn(*X.shape, seed=2)).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert torch.equal(x.grad, run(seeded(lambda: Residual(False)), X)[1])


def test_it_works_outside_inference_mode_within_it():
    with torch.inference_mode():
        net = seeded(lambda: Residual(True))
        with torch.inference_mode(False), torch.enable_grad():
            found = tolerantly(net, randn(2, 4, 6, 6))
    assert_same(found, run(seeded(lambda: Residual(False)), X))


# What is kept


def test_only_what_changes_is_copied_and_weights_never():
    linear = nn.Linear(6, 6)
    tolerant = Tolerant(storages(linear, nn.Linear(2, 2)))
    for weight in (linear.weight, linear.weight.detach(), linear.weight.t()):
        assert tolerant.keep(weight) is weight
    one, other = X.clone(), X.clone()
    kept = [tolerant.keep(one[0]), tolerant.keep(one), tolerant.keep(other)]
    with tolerant:
        one[1] += 1
    is_copied = [each.get().data_ptr() != its.data_ptr() for each, its in zip(kept, (one, one, other), strict=True)]
    assert is_copied == [True, True, False]
    assert torch.equal(kept[0].get(), X[0]) and torch.equal(kept[1].get(), X)


def test_what_changed_unseen_is_not_taken_for_what_was_kept():
    x = X.clone()
    kept = Kept(x)
    x += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        kept.get()


def test_what_is_kept_no_more_is_not_remembered():
    tolerant, held = Tolerant(set()), []
    for number in range(3 * PRUNE_AT):
        kept = tolerant.keep(torch.zeros(1) if number % 2 else X)
        held += [kept] if number % 1000 == 0 else []
    assert sum(map(len, tolerant._kept.values())) <= PRUNE_AT
    assert len([each for those in tolerant._kept.values() for each in those if each() is not None]) >= len(held)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_kept_alive_and_no_mode_left(error):
    tolerant, references = Tolerant(set()), []
    try:
        with tolerant, tolerant.keeping():
            x = X.clone().requires_grad_()
            hidden = torch.tanh(x)
            references += [weakref.ref(x), weakref.ref(hidden), weakref.ref(tolerant.keep(hidden))]
            hidden += x
            if error:
                raise error
            (hidden * hidden).sum().backward()
    except BaseException as caught:
        assert error is type(caught)
    del x, hidden
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert not _get_current_function_mode_stack() and not tolerant._changing
    x = X.clone().requires_grad_()
    assert (x * x).grad_fn._saved_self is x  # with no hook in between


def test_an_interrupt_within_an_operation_leaves_nothing_behind():
    class Interrupting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise KeyboardInterrupt

    tolerant, x = Tolerant(set()), X.clone()
    with pytest.raises(KeyboardInterrupt), tolerant, tolerant.keeping():
        x.add_(torch.zeros(6).as_subclass(Interrupting))
    assert not tolerant._changing and not _get_current_function_mode_stack()


# What else host code does


def cosine_of_a_changed_one(x):
    x = x * 1
    y = torch.cos(x)
    x.add_(y)  # which cos has kept
    return x * y


def halves_in_place(x):
    x = x * 1
    y = x * x
    x[:, :2] *= 0.5  # of which the whole is kept
    x[..., 1:] += x[..., :-1] * y[..., 1:]
    return x * y


def through_another_view(x):
    x = x * 1
    rows, columns = x.view(-1, 6), x.mT
    y = rows * rows
    columns.mul_(0.5)
    return (rows * y).view(x.shape)


def of_an_expanded_one(x):
    whole = torch.tanh(x[:, :1] * 1)
    y = whole.expand(x.shape) * x
    whole += 1
    return y * whole


def with_a_mask_that_changes(x):
    mask = torch.linspace(-1, 1, 6)
    y = x * mask
    torch.cos(mask, out=mask)
    is_high = mask > 0.6
    z = torch.where(is_high, y, -x)
    is_high |= True
    mask.neg_()
    return z * mask


def into_a_part_and_then_the_whole(x):
    out = torch.zeros(x.numel(), dtype=x.dtype).view(x.shape)
    out[:, 1:] = x[:, 1:]
    out += 1
    return out * out


def through_a_view_without_gradients(x):
    x = x * 1
    with torch.no_grad():
        part = x[:, 1:]
    whole, _ = (y := x * x).chunk(2)
    x.mul_(2)
    y.add_(1)
    with torch.no_grad():
        part.mul_(1)
        whole.mul_(1)
    return x * y


def twice_in_a_row(x):
    x = torch.sigmoid(x)
    x += 1
    x *= x
    return x


def dropped_out(x):
    x = x * 1
    y = x * x
    functional.dropout(x, 0.5, True, True)
    return x * y + functional.relu(y, inplace=True)


def by_keyword(x):
    x = x * 1
    y = x * x
    torch.relu_(input=x)
    return x * y


def each_of_a_list(x):
    parts = [part * 1 for part in x.unbind(1)]
    y = [part * part for part in parts]
    torch._foreach_add_(parts, 1.0)
    return torch.stack([a * b for a, b in zip(parts, y, strict=True)], 1)


def by_an_overload(x):
    x = x * 1
    y = x * x
    torch.ops.aten.add_.Tensor(x, y)
    return x * y


class Doubled(torch.autograd.Function):
    """Changes what it is given, as extensions' own functions may."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def by_a_function_of_its_own(x):
    x = x * 1
    y = x * x
    return Doubled.apply(x) * y


HABITS = [
    cosine_of_a_changed_one,
    halves_in_place,
    through_another_view,
    of_an_expanded_one,
    with_a_mask_that_changes,
    into_a_part_and_then_the_whole,
    through_a_view_without_gradients,
    twice_in_a_row,
    dropped_out,
    by_keyword,
    each_of_a_list,
    by_an_overload,
    by_a_function_of_its_own,
]


def slope(net, x, tolerant):
    """Of a weighted sum of what comes out along a direction, by its gradient, and measured."""
    direction = randn(*x.shape, seed=3, dtype=torch.float64)
    weights = randn(*x.shape, seed=2, dtype=torch.float64)

    def loss(x):
        torch.manual_seed(0)
        return (net(x) * weights).sum()

    x = x.double().requires_grad_()
    with tolerant, tolerant.keeping():
        [gradient] = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        measured = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    return float((gradient * direction).sum()), float(measured)


@pytest.mark.parametrize("net", HABITS, ids=lambda net: net.__name__)
@torch.random.fork_rng()
def test_the_gradient_is_the_slope(net):
    by_gradient, measured = slope(net, X, Tolerant(set()))
    assert by_gradient == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("net", HABITS, ids=lambda net: net.__name__)
@torch.random.fork_rng()
def test_what_was_kept_by_none_is_as_it_would_be(net):
    torch.manual_seed(0)
    expected = net(X.clone())
    torch.manual_seed(0)
    with torch.no_grad(), Tolerant(set()):
        assert torch.equal(net(X.clone()), expected)


def test_batches_run_one_after_another_share_what_they_change():
    """Two forward passes before the first backward, as no training does now, and a loss without gradients between."""
    buffer, tolerant = torch.linspace(-1, 1, 6), Tolerant(set())

    def net(x):
        y = x * buffer
        buffer.mul_(-0.5)
        return y * y

    x = X.clone().requires_grad_()
    with tolerant, tolerant.keeping():
        losses = [net(x).sum(), net(x).sum()]
        with torch.no_grad():
            net(x)
    found = [torch.autograd.grad(loss, x)[0] for loss in reversed(losses)][::-1]
    for factor, gradient in zip((1, -0.5), found, strict=True):
        assert torch.allclose(gradient, 2 * X * (factor * torch.linspace(-1, 1, 6)) ** 2)


# Tensors that inference mode has made


@pytest.fixture
def made_in_inference():
    with torch.inference_mode():
        return torch.linspace(-1, 1, 6)


def test_inference_tensors_may_be_given(made_in_inference):
    a = made_in_inference
    uses = [
        lambda x, a: x * a,
        lambda x, a: torch.mul(input=x, other=a),
        lambda x, a: torch.stack([x, x * 0 + a]) * a[None],
        lambda x, a: torch.cat((x, a.expand(2, 4, 1, 6)), 2) ** 2,
        lambda x, a: torch.einsum("...i,i->...i", x, a) * a.view(1, 6),
        lambda x, a: x[:, :, :, a.argsort()] * a.sin(),
    ]
    for use in uses:
        assert_same(tolerantly(use, X, a), run(use, X, a.clone()))


def test_inference_tensors_may_be_changed_by_what_needs_no_gradient(made_in_inference):
    def net(x, a):
        y = x * a
        a.mul_(2)
        return y * a

    before = made_in_inference.clone()
    with torch.no_grad(), Tolerant(set()):
        net(X, made_in_inference)
        made_in_inference.div_(2)
    assert_same(tolerantly(net, X, made_in_inference), run(lambda x: x * before * (before * 2), X))
    assert torch.equal(made_in_inference, before * 2)


def writes(name):
    def write(x, a):
        y = x[0, 0, 0]
        if name == "setitem":
            a[1:] = y[1:]
        elif name == "out":
            torch.add(y, y, out=a)
        else:
            a += y
        return a * x

    return write


@pytest.mark.parametrize("name", ["setitem", "out", "add"])
def test_gradients_are_not_lost_in_inference_tensors(made_in_inference, name):
    with pytest.raises(RuntimeError, match="inference mode"):
        tolerantly(writes(name), X, made_in_inference)


# Operations without a backward


@library.custom_op("textinv_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@library.custom_op("textinv_tests::swap_", mutates_args={"x", "y"})
def swap_(x: torch.Tensor, y: torch.Tensor) -> None:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)


def scaled_otherwise(x, by):
    x = x * 1
    y = x * x  # which keeps x
    x *= by
    return x + 0 * y


def swapped_otherwise(x, y):
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)


INSTEAD = {"scaled": scaled_otherwise, "swap_": swapped_otherwise}


def instead(operation):
    return INSTEAD.get(operation.__name__.partition(".")[0])


SCALED = [torch.ops.textinv_tests.scaled, torch.ops.textinv_tests.scaled.default, scaled]


@pytest.mark.parametrize("operation", SCALED, ids=["packet", "overload", "function"])
def test_an_operation_without_a_backward_is_replaced_where_one_is_needed(operation):
    asked = []

    def known(operation):
        asked.append(operation)
        return instead(operation)

    with pytest.raises(RuntimeError, match="backward"):
        run(lambda x: operation(x, 3.0), X)
    found = tolerantly(lambda x: operation(x, 3.0), X, tolerant=Tolerant(set(), known))
    assert_same(found, run(lambda x: x * 3, X))
    assert len(asked) == 1
    with Tolerant(set(), known):
        operation(X, 3.0)  # nothing needs a gradient
    assert len(asked) == 1


def test_one_that_nothing_is_known_for_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="backward"):
        tolerantly(lambda x: scaled(x, 3.0), X)


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_operations_may_change_several_tensors(needs_gradient):
    def net(x, swap):
        a, b = (x * 2, x * 3) if needs_gradient else (torch.ones(6), torch.arange(6.0))
        kept = x * a + x * b * b
        swap(a, b)
        return kept * a + b

    found = tolerantly(net, X, torch.ops.textinv_tests.swap_, tolerant=Tolerant(set(), instead))
    if needs_gradient:
        expected = run(lambda x: (x * x * 2 + x * (x * 3) ** 2) * (x * 3) + x * 2, X)
    else:
        expected = run(lambda x: (x + x * torch.arange(6.0) ** 2) * torch.arange(6.0) + 1, X)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def test_the_error_by_which_a_host_takes_another_path_still_comes():
    x = X.clone().requires_grad_()
    with Tolerant(set()), pytest.raises(RuntimeError, match="out="):
        torch.clamp(x, -1, 1, out=torch.empty_like(x))


# Random programs


@hypothesis_settings(max_examples=150)
@given(programs)
def test_any_program_has_the_gradient_of_one_that_changes_nothing(program):
    expected, wanted, tolerant = expected_of(program), leaves(), Tolerant(set())
    with tolerant, tolerant.keeping():
        loss = outcome(program, wanted)
    assert_close([loss.detach(), *gradients(loss, wanted)], expected)
    assert not _get_current_function_mode_stack()
