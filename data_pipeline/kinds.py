"""What types of raw columns count as: the one place that knows Arrow's families of types, and how two of them meet."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

types = pa.types

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""A timestamp's unit -> how many make a second."""


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: a dictionary's values, a view's strings or bytes."""
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    return pa.binary() if types.is_binary_view(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Strings, and bytes without a fixed length, which older writers store strings as."""
    return is_string(kind) or types.is_binary(plain(kind)) or types.is_large_binary(plain(kind))


def is_string(kind: pa.DataType) -> bool:
    """Strings of any width."""
    kind = plain(kind)
    return types.is_string(kind) or types.is_large_string(kind)


def is_number(kind: pa.DataType) -> bool:
    """Integers, floats, decimals and bools."""
    kind = plain(kind)
    return is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)


def is_integer(kind: pa.DataType) -> bool:
    """Integers of any width, signed or not."""
    return types.is_integer(plain(kind))


def is_time(kind: pa.DataType) -> bool:
    """Moments: timestamps of any unit, and dates."""
    return types.is_timestamp(plain(kind)) or types.is_date(plain(kind))


def is_id(kind: pa.DataType) -> bool:
    """What ids can be read from."""
    return is_number(kind) or is_text(kind) or is_null(kind)


def is_moment(kind: pa.DataType) -> bool:
    """What a time can be read from: moments, and numbers that are Unix milliseconds."""
    return is_time(kind) or (is_number(kind) and not types.is_boolean(plain(kind))) or is_null(kind)


def is_list(kind: pa.DataType) -> bool:
    """Lists of any width, views of lists, and lists of a fixed size."""
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return views or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def is_null(kind: pa.DataType) -> bool:
    """The type that writers give a column, or the items of lists, without any value."""
    return types.is_null(plain(kind))


def decoded(values: pa.Array) -> pa.Array:
    """The same values as an array of type `plain(values.type)`."""
    if types.is_dictionary(values.type):
        return decoded(values.dictionary_decode())
    return values if plain(values.type) == values.type else values.cast(plain(values.type))


def flat(lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Length of each list, 0 for a null one, int64 [N], and the items of all lists in order."""
    # Not by a cast to `list`: that of a list view loses values (pyarrow 26.0.1).
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, decoded(pc.list_flatten(lists))


def common(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """A type that holds the values of all `kinds` exactly; text where no other does.

    A timestamp in seconds is text too: Parquet would store it in milliseconds, which not every value survives.
    """
    found: list[pa.DataType] = []
    for kind in kinds:
        kind = plain(kind)
        if not is_null(kind) and kind not in found:
            found.append(kind)
    if not found:
        return pa.null()
    if all(is_list(kind) for kind in found):
        return pa.large_list(common(kind.value_type for kind in found))
    if len(found) == 1:
        return pa.string() if types.is_timestamp(found[0]) and found[0].unit == "s" else found[0]
    if all(types.is_signed_integer(kind) for kind in found):
        return pa.int64()
    if all(types.is_unsigned_integer(kind) for kind in found):
        return pa.uint64()
    if all(types.is_floating(kind) for kind in found):
        return pa.float64()
    if all(is_text(kind) for kind in found) and not all(is_string(kind) for kind in found):
        return pa.large_binary()
    return pa.large_string()


def converted(values: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray:
    """Values as a type that `common` has found for them."""
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    # Not safe: text of bytes that are no UTF-8 is kept as it is.
    return pa.chunked_array([_converted(decoded(chunk), kind) for chunk in chunks], type=kind)


def _converted(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if types.is_large_list(kind) and is_list(values.type):
        lengths, items = flat(values)
        offsets = pa.array(np.concatenate([[0], lengths.cumsum()]))
        items = _converted(items, kind.value_type)
        return pa.LargeListArray.from_arrays(offsets, items, type=kind, mask=values.is_null())
    return values if values.type == kind else values.cast(kind, safe=False)
