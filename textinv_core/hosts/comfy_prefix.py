"""What language models make of a prompt before its first vector: always the same in a training, so done once.

They look back only, so nothing there depends on the vectors: neither states, nor the keys and values that later words
attend to, nor any gradient. Templates of their own put up to a thousand tokens there.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Integral
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel
from comfy.text_encoders.llama import Llama2_, TransformerBlock
from torch import Tensor

from .autograd import replaced_method

# Fewer tokens than these save nothing.
LEAST = 8
# Of all that is kept; those not used for the longest go first. A token of a model like Qwen3-4B takes 0.7 MB.
MOST_BYTES = 512 * 2**20

# The number of a layer -> its states, keys and values for some tokens.
Layers = dict[int, tuple[Tensor, Tensor, Tensor]]


def _layers(model: SDClipModel) -> Sequence[Any]:
    """The layers of a language model that looks back only; none of any other text encoder."""
    inner: Any = getattr(model.transformer, "model", None)
    layers = list(inner.layers) if isinstance(inner, Llama2_) else []
    return layers if all(type(layer) is TransformerBlock for layer in layers) else []


def _before_vectors(prompt: Sequence[Any]) -> int:
    """How many tokens of a prompt come before the first that is a vector; 0 where none is one."""
    return next((place for place, token in enumerate(prompt) if not isinstance(token, Integral)), 0)


def _cut(freqs: Any, places: slice) -> Any:
    return tuple(each[..., places, :] for each in freqs)


class Prefixes:
    """The beginnings of prompts, as one text encoder has encoded them; those of a batch that it encodes at once belong
    together."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[Any, Layers] = OrderedDict()

    @contextmanager
    def reused(self, model: SDClipModel) -> Iterator[None]:
        """For the length of the block, `model.encode` computes for each beginning of prompts with which it is called
        again only what comes after it, and gradients for that alone in any case."""
        layers = _layers(model)

        def wrap(encode: Callable[[list[list]], Any]) -> Callable[[list[list]], Any]:
            def encode_the_rest(prompts: list[list]) -> Any:
                length = min(map(_before_vectors, prompts))
                if length < LEAST:
                    return encode(prompts)
                beginning = tuple(tuple(prompt[:length]) for prompt in prompts)
                known = self._kept.get(beginning, {})
                with ExitStack() as stack:
                    for number, layer in enumerate(layers):
                        rest = partial(_after, length, known, number)
                        stack.enter_context(replaced_method(layer, "forward", lambda f, rest=rest: partial(rest, f)))
                    encoded = encode(prompts)
                self._keep(beginning, known)
                return encoded

            return encode_the_rest

        with replaced_method(model, "encode", wrap) if layers else ExitStack():
            yield

    def _keep(self, beginning: Any, known: Layers) -> None:
        if beginning not in self._kept:
            self._kept[beginning] = known
            self._bytes += _size(known)
        self._kept.move_to_end(beginning)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(known: Layers) -> int:
    return sum(tensor.nbytes for of_layer in known.values() for tensor in of_layer)


def _after(
    length: int,
    known: Layers,
    number: int,
    forward: Callable[..., Any],
    x: Tensor,
    attention_mask: Tensor,
    freqs_cis: Any,
    **more: Any,
) -> tuple[Tensor, None]:
    """`forward` of a layer for what comes after the first `length` tokens, and for these only where it is not known."""
    if number not in known:
        with torch.no_grad():
            states, (keys, values, _) = forward(
                x=x[:, :length].detach().clone(),  # layers change it in place
                attention_mask=attention_mask[..., :length, :length],
                freqs_cis=_cut(freqs_cis, slice(length)),
                **{**more, "past_key_value": ()},
            )
        # Copies, as views would keep more than what is counted.
        known[number] = states, keys.clone(), values.clone()
    states, keys, values = known[number]
    after, _ = forward(
        x=x[:, length:],
        attention_mask=attention_mask[..., length:, :],
        freqs_cis=_cut(freqs_cis, slice(length, None)),
        **{**more, "past_key_value": (keys, values, length)},
    )
    return torch.cat([states, after], dim=1), None
