"""What is packed for a page is what it unpacks."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fulgurite.viewer.message import ALIGN, DTYPES, finite, pack, unpack

TYPES = st.sampled_from(DTYPES).map(lambda name: np.dtype("<" + name))


@given(
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.lists(arrays.arrays(TYPES, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)), max_size=4),
)
def test_a_message_comes_back_as_it_was(header: dict[str, str], columns: list[np.ndarray]) -> None:
    header.pop("arrays", None)
    named = {f"column {index}": column for index, column in enumerate(columns)}
    found, back = unpack(pack(header, named))
    assert {name: value for name, value in found.items() if name != "arrays"} == header
    assert list(back) == list(named)
    for name, column in named.items():
        assert back[name].dtype == column.dtype
        np.testing.assert_array_equal(back[name], column)


@given(st.text(), st.lists(st.integers(0, 5), max_size=4))
def test_every_array_lies_where_a_browser_may_read_it_in_place(text: str, sizes: list[int]) -> None:
    data = pack({"text": text}, {str(i): np.zeros(size, np.uint8) for i, size in enumerate(sizes)})
    (length,) = struct.unpack_from("<I", data)
    assert (4 + length) % ALIGN == 0
    assert all(offset % ALIGN == 0 for _, _, _, offset in unpack(data)[0]["arrays"])


def test_a_number_type_that_a_browser_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="array times is of int64: a page reads u1, i1, u2"):
        pack({}, {"times": np.zeros(2, np.int64)})


def test_what_json_cannot_say_is_none() -> None:
    assert [finite(value) for value in (1.23456789, float("nan"), float("inf"), None)] == [
        1.234568,
        None,
        None,
        None,
    ]
