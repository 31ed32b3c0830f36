import io
import os
import pickle
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.formats.unpickle import AsksForCode, unpickle


def value(pickled):
    return unpickle(io.BytesIO(pickled))[0]


KEYS = st.text() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.booleans()
PLAIN = KEYS | st.none() | st.integers()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple), max_leaves=20
)


@pytest.mark.parametrize("protocol", range(6))
@given(VALUES)
def test_values_are_pythons(protocol, data):
    after = value(pickle.dumps(data, protocol))
    assert repr(after) == repr(data)  # 1, 1.0 and True are equal


def test_what_is_shared_stays_shared():
    one = [1]
    loop = {"a": one, "b": (one, one)}
    loop["loop"] = loop
    after = value(pickle.dumps(loop, 2))
    assert after["a"] is after["b"][0] is after["b"][1] and after["loop"] is after


def test_ordered_dictionaries_and_sets():
    data = OrderedDict(b=1, a=set())
    data._metadata = OrderedDict()  # as a state dict has
    after = value(pickle.dumps(data, 2))
    assert list(after.items()) == [("b", 1), ("a", [])]


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"a": 1, 2: [True, 2.5, b"".decode(), evil]}])
def test_code_is_named_whatever_the_protocol(protocol, place):
    with pytest.raises(AsksForCode, match=rf"^{os.system.__module__}\.system$"):
        value(pickle.dumps(place(Calls(os.system, "true")), protocol))


@pytest.mark.parametrize(
    "pickled",
    [
        b"(S'true'\niposix\nsystem\n.",
        b"(cposix\nsystem\nS'true'\no.",
        b"(I1\nF2.5\nL3L\nVx\ndcposix\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93.",
    ],
)
def test_code_is_named_however_it_is_asked_for(pickled):
    with pytest.raises(AsksForCode, match=r"^posix\.system$"):
        value(pickled)


@pytest.mark.parametrize("key", [None, (), (1,), 2**64, [1]])
def test_only_texts_and_usual_numbers_are_keys(key):
    """A tuple of tuples is hashed for ever, and many large integers have one hash."""
    inside = pickle.dumps(key, 2)[2:-1]
    for pickled in (b"}" + inside + b"K\x01s.", b"}(" + inside + b"K\x01u.", b"(" + inside + b"K\x01d."):
        with pytest.raises(ValueError, match="neither a text nor a number"):
            value(pickled)


def test_values_are_remembered_under_usual_numbers():
    with pytest.raises(ValueError, match="neither a text nor a number"):
        value(b"Np%d\n." % 2**64)


@pytest.mark.parametrize(
    ("pickled", "error"),
    [
        (b"", ValueError),
        (b".", IndexError),
        (b"\xff.", ValueError),
        (b"h\x00.", KeyError),
        (b"}a.", IndexError),
        (b"]}a", ValueError),
        (b"})a.", ValueError),
        (b"]K\x01K\x02s.", ValueError),
        (b"}(K\x01u.", ValueError),
        (b"K\x01)R.", ValueError),
        (b"c__builtin__\nset\n](K\x01e\x85R.", ValueError),  # torch would hash what is in it
        (b"(icollections\nOrderedDict\n.", ValueError),
        (b"ccollections\nOrderedDict\n]\x85R.", ValueError),  # would copy it
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", ValueError),
    ],
)
def test_damaged_pickles(pickled, error):
    with pytest.raises(error):
        value(pickled)


def test_texts_of_bytes_are_read_as_latin_1():
    assert value(b"U\x01\xe9.") == "\xe9"
