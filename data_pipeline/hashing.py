"""Stable 64-bit hashes of ids and rows: the same on every machine, Python and run, pinned by a test.

An integer hashes by its value (two's complement, 64 bits), a string by FNV-1a 64 over its UTF-8 bytes; both are mixed
with a salt by the SplitMix64 finaliser, so equal ids of two tables land on unrelated rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL_HASH = np.uint64(0x6E756C6C)


def hash_strings(strings: pa.Array) -> np.ndarray:
    """FNV-1a 64 of each string's UTF-8 bytes, or of bytes, uint64 [N]; a null hashes as the empty string."""
    # Equal strings are hashed once; the loop is over byte positions of the distinct ones, longest first.
    encoded = strings if pa.types.is_dictionary(strings.type) else strings.dictionary_encode()
    distinct = encoded.dictionary.cast(pa.large_binary())
    if not len(distinct):
        return np.full(len(strings), _FNV_OFFSET)
    offsets = np.frombuffer(distinct.buffers()[1], dtype=np.int64)[distinct.offset :][: len(distinct) + 1]
    data = distinct.buffers()[2]
    bytes_ = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    starts, sizes = offsets[:-1][order], lengths[order]
    hashes = np.full(len(distinct), _FNV_OFFSET)
    alive = len(hashes)
    for position in range(int(sizes[0])):
        alive = int(np.searchsorted(-sizes[:alive], -position, side="left"))
        hashes[:alive] = (hashes[:alive] ^ bytes_[starts[:alive] + position]) * _FNV_PRIME
    by_distinct = np.empty_like(hashes)
    by_distinct[order] = hashes
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return np.where(codes >= 0, by_distinct[codes], _FNV_OFFSET)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 [N]."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_values(values: pa.Array) -> np.ndarray:
    """A 64-bit hash of each integer, bool, float or string, uint64 [N]; nulls share one of their own.

    Floats hash by their 64-bit pattern. Raises `TypeError` for any other type.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), _NULL_HASH)
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        hashes = hash_strings(values)
    elif pa.types.is_floating(kind):
        floats = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        hashes = floats.view(np.uint64)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        wide = values if kind == pa.uint64() else values.cast(pa.int64())
        hashes = pc.fill_null(wide, 0).to_numpy(zero_copy_only=False).view(np.uint64)
    else:
        raise TypeError(f"cannot hash values of type {kind}")
    hashes = mix(hashes)
    if values.null_count:
        hashes = np.where(values.is_valid().to_numpy(zero_copy_only=False), hashes, _NULL_HASH)
    return hashes


def hash_ids(ids: pa.Array, *, table: str, rows: int) -> np.ndarray:
    """Row in [1, rows) of embedding table `table` for each id, int64 [N]; nulls get an arbitrary row."""
    salt = hash_strings(pa.array([table]))
    return (mix(hash_values(ids) ^ salt) % np.uint64(rows - 1)).astype(np.int64) + 1


def hash_rows(table: pa.Table) -> pa.Array:
    """A 64-bit hash of each row's content over all columns, names included, int64 [N].

    Raises `TypeError` for a column that is not integer, bool, float or string.
    """
    total = np.zeros(table.num_rows, dtype=np.uint64)
    for name in table.column_names:
        salt = hash_strings(pa.array([name]))
        column = table.column(name).combine_chunks()
        total += mix(hash_values(column) ^ salt)
    return pa.array(mix(total).view(np.int64))
