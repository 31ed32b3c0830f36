"""Blocks run again for backward: the same gradients, whatever blocks do to what they are given, or an error."""

import gc
import weakref
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _get_current_function_mode_stack

from tests.gradients import alive, randn, run, seeded, tolerantly
from tests.programs import Network, assert_close, expected_of, gradients, leaves, programs
from textinv_core.hosts.checkpoints import checkpointing
from textinv_core.hosts.tolerant import Tolerant

X = randn(2, 4, 6, 6)


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
    expected, told = run(net, X, {}), {}
    with checkpointing(net):
        output, gradient = run(net, X, told)
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])
    assert told == {"seen": 3, "index": -99}  # what blocks tell each other is told once


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
        assert alive(hidden) == 0


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


def test_without_gradients_nothing_is_kept_or_run_again(hidden):
    net = seeded(lambda: Blocks(True))
    with checkpointing(net), torch.no_grad():
        net(X, {})
    with checkpointing(net):
        y = net(X, {})  # nothing needs a gradient
    assert not y.requires_grad and len(hidden) == 6


# What blocks do with what they are given


class Doing(nn.Module):
    """Two blocks that do something, and what comes after."""

    def __init__(self, do, *more):
        super().__init__()
        self.more = more

        class Does(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Identity()

            def forward(self, *args, **kwargs):
                return do(*args, **kwargs)

        self.blocks = nn.ModuleList([Does(), Does()])

    def forward(self, x):
        x = x * 1
        for block in self.blocks:
            x = block(x, *self.more) if self.more else block(x)
        x += 1
        return x * x


def checkpointed(net, x, tolerant=None):
    """As `run`, with checkpoints, in `tolerant`."""
    with ExitStack() as stack:
        stack.enter_context(checkpointing(net, lambda: tolerant))
        if tolerant is not None:
            stack.enter_context(tolerant)
            stack.enter_context(tolerant.keeping())
        x = x.clone().requires_grad_()
        y = net(x)
        loss = (y.double() * randn(*y.shape, seed=2)).sum()
    [gradient] = torch.autograd.grad(loss, x)  # with the mode gone, as trainings do
    return y.detach(), gradient


def assert_checkpoints_change_nothing(net, expected):
    """Tolerantly; and without, they are refused or right."""
    for a, b in zip(checkpointed(net, X.double(), Tolerant(set())), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    try:
        output, gradient = checkpointed(net, X.double())
    except RuntimeError as error:
        assert "in-place" in str(error) or "inplace" in str(error) or "in place" in str(error)
    else:
        assert torch.allclose(output, expected[0]) and torch.allclose(gradient, expected[1], rtol=1e-9)


def outplace(f):
    """The gradient of two times `f` and what comes after, with nothing changed in place."""
    return run(lambda x: (f(f(x * 1)) + 1) ** 2, X.double())


def test_a_block_may_change_its_input():
    def do(x):
        y = torch.tanh(x)
        x += y * y
        x.mul_(y)
        return x

    assert_checkpoints_change_nothing(Doing(do), outplace(lambda x: (x + torch.tanh(x) ** 2) * torch.tanh(x)))


def test_a_block_may_change_a_view_of_its_input():
    def do(x):
        y = x * x
        x[:, 1:] *= 0.5
        x.mT[..., 0] = 0.1
        return x * y

    def same(x):
        factor = torch.tensor([1, 0.5, 0.5, 0.5])[:, None, None]
        changed = torch.cat([torch.full_like(x[:, :, :1], 0.1), (x * factor)[:, :, 1:]], 2)
        return changed * x * x

    assert_checkpoints_change_nothing(Doing(do), outplace(same))


def test_a_block_may_be_given_the_same_tensor_twice():
    def block(x, context):
        x += torch.tanh(context)  # which changes what it reads
        return x * context

    class Twice(Doing):
        def forward(self, x):
            x = x * 1
            for block in self.blocks:
                x = block(x, x)
            return x

    expected = run(lambda x: ((x + torch.tanh(x)) ** 2 + torch.tanh((x + torch.tanh(x)) ** 2)) ** 2, X.double())
    assert_checkpoints_change_nothing(Twice(block), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_may_be_given_parts_of_one_tensor(nested):
    """As streams of pictures and of text are."""

    def block(whole, parts):
        parts = parts["of"][0] if nested else parts
        first, second = parts
        y = first * second
        whole *= 0.5
        first += y
        second.copy_(torch.sin(y))
        return whole + parts[0].mean()

    class Parts(Doing):
        def forward(self, x):
            for block in self.blocks:
                x = x * 1
                parts = x[:, :2], x[:, 2:]
                x = block(x, {"of": [parts]} if nested else parts)
                x.add_(parts[1].sum())
            return x

    def same(x):
        for _ in range(2):
            y = x[:, :2] * x[:, 2:]
            first, second = x[:, :2] * 0.5 + y, torch.sin(y)
            x = torch.cat([first, second], 1) + first.mean() + second.sum()
        return x

    assert_checkpoints_change_nothing(Parts(block), run(same, X.double()))


def test_what_others_change_later_is_as_it_was_given():
    mask = torch.linspace(0, 1, 6)

    def do(x, options):
        return x * x * options["to"]["mask"] + options["factor"]

    class Changing(Doing):
        def forward(self, x):
            options = {"to": {"mask": mask.clone()}, "factor": 2}
            for block in self.blocks:
                x = block(x, options)
                options["to"]["mask"].mul_(-1)
                options["factor"] += 1
                x += 1
            options["to"].clear()
            return x

    expected = run(lambda x: -((x * x * mask + 3) ** 2) * mask + 4, X.double())
    assert_checkpoints_change_nothing(Changing(do), expected)


def test_what_a_block_tells_the_next_one_is_as_it_was():
    def do(x, options):
        told = options.setdefault("told", {"times": 0, "cache": []})
        told["times"] += 1
        told["cache"].append(x * told["times"])
        return sum(told["cache"]) * x

    class Telling(Doing):
        def forward(self, x):
            options = {}
            for block in self.blocks:
                x = block(x, options)
            return x

    net = Telling(do)
    assert_checkpoints_change_nothing(net, run(net, X.double()))


def test_a_block_has_the_random_numbers_of_the_first_time():
    def do(x):
        return nn.functional.dropout(x * torch.rand(6), 0.5) * x

    net = Doing(do)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before, expected = torch.get_rng_state(), tolerantly(net, X)
        torch.manual_seed(0)
        found = checkpointed(net, X, Tolerant(set()))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        with torch.no_grad():
            net(X)
        assert torch.equal(torch.get_rng_state(), state)  # backward takes none
        assert not torch.equal(state, before)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


LIKE = {
    "columns first": lambda: X.mT.clone().mT,
    "every other": lambda: randn(4, 4, 6, 12)[::2, :, :, ::2],
    "a view of every other": lambda: randn(4, 4, 6, 12)[::2, :, :, ::2].detach()[:, 1:],
    "channels last": lambda: X.to(memory_format=torch.channels_last, copy=True)[:, 1:],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", LIKE)
def test_inputs_may_lie_in_memory_as_they_like(dtype, made):
    def do(x, options):
        like = options["like"][0]
        y = x[:, : like.shape[1]] * like
        like.mul_(0.5)
        x[:, : like.shape[1]] += y * like
        return x

    def net():
        like = LIKE[made]()
        return Doing(do, {"like": [like if dtype == torch.float32 else like.to(dtype)]})

    x = X.to(dtype)
    for a, b in zip(checkpointed(net(), x, Tolerant(set())), tolerantly(net(), x), strict=True):
        assert torch.equal(a, b)


def test_an_expanded_input_is_one():
    like = torch.linspace(-1, 1, 6).requires_grad_()

    def do(x, like):
        return torch.tanh(x * like) * like

    net = Doing(do, (like * 1).expand(X.shape))
    for a, b in zip(checkpointed(net, X, Tolerant(set())), tolerantly(net, X), strict=True):
        assert torch.equal(a, b)


def test_inference_tensors_may_be_given_and_lie_in_lists():
    with torch.inference_mode():
        scale, more = torch.linspace(-1, 1, 6), torch.linspace(1, 2, 6)

    def do(x, scale, options):
        return x * scale + x * x * options["more"][0]

    net = Doing(do, scale, {"more": [more]})
    expected = outplace(lambda x: x * scale.clone() + x * x * more.clone())
    for a, b in zip(checkpointed(net, X.double(), Tolerant(set())), expected, strict=True):
        assert torch.allclose(a, b)


def test_what_does_otherwise_when_it_is_run_again_is_an_error():
    runs = []

    def do(x):
        runs.append(x)
        return x * x if len(runs) < 3 else x

    with pytest.raises(RuntimeError, match="does not do the same"):
        checkpointed(Doing(do), X, Tolerant(set()))
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_an_error_in_a_block_leaves_nothing_behind(error, when):
    """In the first or second block, or when one of them is run again."""
    references = []

    def do(x):
        hidden = torch.tanh(x)
        references.append(weakref.ref(hidden))
        if len(references) == when + 1:
            raise error
        x += hidden * hidden
        return x

    net, random = Doing(do), torch.get_rng_state()
    with pytest.raises(error):
        checkpointed(net, X, Tolerant(set()))
    gc.collect()
    assert [reference() for reference in references] == [None] * (when + 1)
    assert not _get_current_function_mode_stack() and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert not any("forward" in vars(block) for block in net.blocks)
    x = X.clone().requires_grad_()
    assert (x * x).grad_fn._saved_self is x  # with no hook in between


def test_what_blocks_put_into_options_is_not_kept_alive():
    """The options with the tensors in them, whose graph holds the runs, which hold what they were given."""
    references = []

    def do(x, options):
        y = torch.tanh(x)
        options["told"]["last"] = y * y
        references.append(weakref.ref(options["told"]["last"]))
        return y * y

    x = X.clone().requires_grad_()
    net = Doing(do, {"told": {}})
    with checkpointing(net):
        net(x)
    del net.more
    gc.collect()
    assert [reference() for reference in references] == [None] * 2


def test_backward_may_be_asked_for_twice():
    runs = []

    def do(x):
        runs.append(x.shape)
        return torch.tanh(x) * x

    net, x = Doing(do), X.clone().requires_grad_()
    with checkpointing(net):
        loss = net(x).sum()
        first = torch.autograd.grad(loss, x, retain_graph=True)
        assert len(runs) == 4
        assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])
        assert len(runs) == 4


# Random programs


@hypothesis_settings(max_examples=150)
@given(programs, st.integers(1, 4))
def test_any_program_in_blocks_has_the_gradient_of_one_that_changes_nothing(program, length):
    expected, wanted, tolerant = expected_of(program), leaves(), Tolerant(set())
    net = Network(program, length)
    with checkpointing(net, lambda: tolerant):
        with tolerant, tolerant.keeping():
            loss = net(wanted)
        found = gradients(loss, wanted)
    assert_close([loss.detach(), *found], expected)


@hypothesis_settings(max_examples=100)
@given(programs, st.integers(1, 4), st.booleans())
def test_any_program_that_is_not_refused_has_the_right_gradient(program, length, is_checkpointed):
    expected, wanted, net = expected_of(program), leaves(), Network(program, length)
    with ExitStack() as stack:
        if is_checkpointed:
            stack.enter_context(checkpointing(net))
        try:
            loss = net(wanted)
            found = gradients(loss, wanted)
        except RuntimeError:
            return
    assert_close([loss.detach(), *found], expected)
