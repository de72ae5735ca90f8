"""One id, one number: 64-bit hashes of ids and rows, the same on every machine, Python and run, pinned by a test.

What counts as the same id, whatever column, file and type it comes from:

- An integer is its value, of any width, signed or not. 2^63 and more is the negative number of the same 64 bits, as
  writers without unsigned types store it. False and True are 0 and 1.
- A whole float or decimal is that integer; a float from 2^53 on (2^24 in 32 bits, 2^11 in 16) is none, because it no
  longer tells neighbouring integers apart. NaN is a missing id.
- A string that is an integer of 64 bits as Python prints it ("0", "-5", "12") is that integer. With a leading zero, a
  plus, a space or a point ("007", "+5", " 5", "5.0") it is another id, as is every other string.
- Bytes are the string that they spell. The empty string is a missing id.

The key of an integer is its 64 bits (two's complement), that of any other string FNV-1a 64 over its bytes. Prepared
data holds keys; `table_rows` takes them to rows of tables. A change that gives an id another key has to raise
`manifest.FORMAT_VERSION` and `schema.ID_HASH`.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import kinds

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
# Arrays without a dimension: a call of numpy with a scalar takes nearly twice as long.
_GOLDEN, _LAST_SHIFT = np.array(0x9E3779B97F4A7C15, np.uint64), np.array(31, np.uint64)
_ROUNDS = (
    (np.array(30, np.uint64), np.array(0xBF58476D1CE4E5B9, np.uint64)),
    (np.array(27, np.uint64), np.array(0x94D049BB133111EB, np.uint64)),
)
BLOCK = 1 << 14
"""Values that are worked on at a time: so many, and as many beside them, stay in a core's second cache."""
_NULL_HASH = np.uint64(0x6E756C6C)
_DIGITS = r"\A(?:0|-?[1-9][0-9]{0,19})\z"
_LOWEST, _HIGHEST = -(1 << 63), (1 << 64) - 1
_FLOAT_DIGITS = 15  # decimals of no more digits differ as 64-bit floats too
_WHOLE_BELOW = {pa.float16(): 2.0**11, pa.float32(): 2.0**24, pa.float64(): 2.0**53}


@dataclass(frozen=True)
class Ids:
    """N values read as ids.

    Attributes:
        bits: uint64 [N], the keys: an integer's 64 bits or a string's hash; arbitrary where there is no id.
        integer: bool [N], the id is an integer.
        present: bool [N], neither null nor NaN nor empty.
        faulty: bool [N], present, but a number that is no integer or not exact.
    """

    bits: np.ndarray
    integer: np.ndarray
    present: np.ndarray
    faulty: np.ndarray


def read_ids(values: pa.Array) -> Ids:
    """Values of any type of number or text as ids, by the rule above.

    Raises `TypeError` for any other type.
    """
    values = kinds.decoded(values)
    kind, rows = values.type, len(values)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    nothing, everything = np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool)
    if kinds.is_null(kind):
        return Ids(np.zeros(rows, np.uint64), everything, nothing, nothing)
    if kinds.is_text(kind):
        bits, integer, length = _texts(values)
        return Ids(bits, integer, valid & (length > 0), nothing)
    if pa.types.is_floating(kind):
        floats = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        present = ~np.isnan(floats)
        whole = (np.abs(floats) < _WHOLE_BELOW[kind]) & (np.floor(floats) == floats)
        return Ids(np.where(whole, floats, 0).astype(np.int64).view(np.uint64), everything, present, present & ~whole)
    if pa.types.is_decimal(kind):
        exact = values.cast(pa.decimal256(76, max(0, kind.scale)))
        bits, whole = _decimals(exact)
        return Ids(bits, everything, valid, valid & ~whole)
    if kinds.is_integer(kind) or pa.types.is_boolean(kind):
        wide = values if kind == pa.uint64() else values.cast(pa.int64())
        bits = pc.fill_null(wide, 0).to_numpy(zero_copy_only=False).view(np.uint64)
        return Ids(bits, everything, valid, nothing)
    raise TypeError(f"cannot hash values of type {kind}")


def hash_strings(strings: pa.Array) -> np.ndarray:
    """FNV-1a 64 of each string's UTF-8 bytes, or of bytes, uint64 [N]; a null hashes as the empty string."""
    codes, distinct = _distinct(strings)
    return np.append(_fnv(distinct), _FNV_OFFSET)[codes]


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 [N]."""
    mixed = values.copy()
    mix_in_place(mixed)
    return mixed


def mix_in_place(values: np.ndarray) -> None:
    """`mix`, which leaves its result in `values`, uint64 [N]."""
    spare = np.empty(min(len(values), BLOCK), np.uint64)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        shifted = spare[: len(block)]
        block += _GOLDEN
        for shift, factor in _ROUNDS:
            np.right_shift(block, shift, out=shifted)
            block ^= shifted
            block *= factor
        np.right_shift(block, _LAST_SHIFT, out=shifted)
        block ^= shifted


def hash_values(values: pa.Array) -> np.ndarray:
    """A 64-bit hash of each number, string or moment, uint64 [N]; equal ids hash alike, nulls and NaN share one hash.

    A number that is no id hashes by the bits of its 64-bit float, one of more digits than that holds by its digits, a
    moment by its seconds and nanoseconds, whatever its unit. Raises `TypeError` for any other type.
    """
    values = kinds.decoded(values)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if kinds.is_time(values.type):
        return np.where(known, mix(_moments(values)), _NULL_HASH)
    ids = read_ids(values)
    bits = ids.bits
    if ids.faulty.any():
        bits = np.where(ids.faulty, _no_ids(values), bits)
    if pa.types.is_floating(values.type):
        known = ids.present
    return np.where(known, mix(bits), _NULL_HASH)


def hash_rows(table: pa.Table) -> pa.Array:
    """A 64-bit hash of each row's content over all columns, names included, int64 [N].

    Raises `TypeError` for a column that is neither number, string nor moment.
    """
    total = np.zeros(table.num_rows, dtype=np.uint64)
    for name in table.column_names:
        salt = hash_strings(pa.array([name]))
        column = table.column(name).combine_chunks()
        total += mix(hash_values(column) ^ salt)
    return pa.array(mix(total).view(np.int64))


def _texts(values: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits, whether they are an integer's, and length in bytes of each string; a null is the empty string."""
    codes, distinct = _distinct(values)
    bits, integer = _fnv(distinct), np.zeros(len(distinct), dtype=bool)
    digits = pc.match_substring_regex(distinct, _DIGITS)
    if pc.any(digits).as_py():
        numbers = distinct.filter(digits).cast(pa.large_string()).cast(pa.decimal128(21, 0))
        places = np.flatnonzero(digits.to_numpy(zero_copy_only=False))
        values_, fits = _decimals(numbers)
        bits[places[fits]], integer[places[fits]] = values_[fits], True
    lengths = pc.binary_length(distinct).to_numpy(zero_copy_only=False)
    return np.append(bits, _FNV_OFFSET)[codes], np.append(integer, False)[codes], np.append(lengths, 0)[codes]


def _decimals(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The 64 bits of decimals, uint64 [N], and which of them are integers that fit into these; nulls are not."""
    whole = values.cast(pa.decimal256(76, 0), safe=False)  # cut off behind the point
    exact = pc.equal(whole.cast(values.type, safe=False), values)
    in_range = pc.and_(pc.less_equal(whole, _decimal(_HIGHEST)), pc.greater_equal(whole, _decimal(_LOWEST)))
    fits = pc.fill_null(pc.and_(exact, in_range), False)
    negative = pc.less(whole, _decimal(0))
    bits = np.zeros(len(values), dtype=np.uint64)
    for sign, kind in ((pc.invert(negative), pa.uint64()), (negative, pa.int64())):
        chosen = pc.and_(fits, pc.fill_null(sign, False))
        numbers = whole.filter(chosen).cast(kind).to_numpy(zero_copy_only=False)
        bits[chosen.to_numpy(zero_copy_only=False)] = numbers.view(np.uint64)
    return bits, fits.to_numpy(zero_copy_only=False)


def _no_ids(values: pa.Array) -> np.ndarray:
    """Bits that tell floats or decimals from each other, equal for equal ones; uint64 [N]."""
    bits = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False).view(np.uint64)
    if not pa.types.is_decimal(values.type):
        return bits
    digits = values.cast(pa.string())
    long = pc.greater(pc.binary_length(pc.utf8_rtrim(digits, "0")), _FLOAT_DIGITS)
    return np.where(pc.fill_null(long, False).to_numpy(zero_copy_only=False), hash_strings(digits), bits)


def _moments(values: pa.Array) -> np.ndarray:
    """Bits that are equal for equal moments of any unit; uint64 [N], those of nulls arbitrary."""
    if pa.types.is_date32(values.type):
        per_second, seconds_each, number = 1, 86_400, pa.int32()
    else:
        unit = "ms" if pa.types.is_date64(values.type) else values.type.unit
        per_second, seconds_each, number = kinds.PER_SECOND[unit], 1, pa.int64()
    raw = pc.fill_null(values.view(number).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    seconds, rest = np.divmod(raw, per_second)
    return mix((seconds * seconds_each).view(np.uint64)) ^ (rest * (10**9 // per_second)).view(np.uint64)


def _decimal(value: int) -> pa.Scalar:
    return pa.scalar(value, pa.int64() if value < 1 << 63 else pa.uint64()).cast(pa.decimal256(76, 0))


def _distinct(strings: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """For each string its place among the distinct ones (large_binary), -1 for a null."""
    encoded = kinds.decoded(strings).dictionary_encode()
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.cast(pa.large_binary())


def _fnv(distinct: pa.Array) -> np.ndarray:
    """FNV-1a 64 of each of some bytes without nulls; the loop is over byte positions, longest first."""
    hashes = np.full(len(distinct), _FNV_OFFSET)
    if not len(distinct):
        return hashes
    offsets = np.frombuffer(distinct.buffers()[1], dtype=np.int64)[distinct.offset :][: len(distinct) + 1]
    data = distinct.buffers()[2]
    bytes_ = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    starts, sizes = offsets[:-1][order], lengths[order]
    alive = len(hashes)
    for position in range(int(sizes[0])):
        alive = int(np.searchsorted(-sizes[:alive], -position, side="left"))
        hashes[:alive] = (hashes[:alive] ^ bytes_[starts[:alive] + position]) * _FNV_PRIME
    by_distinct = np.empty_like(hashes)
    by_distinct[order] = hashes
    return by_distinct
