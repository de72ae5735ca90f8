"""Numbers as a reader wants to see them."""

import math

MISSING = "–"
MINUS = "\N{MINUS SIGN}"


def metric(value: float | None) -> str:
    """Four decimals: AUC, log loss, NE, calibration."""
    return MISSING if value is None else f"{value:.4f}"


def gap(value: float | None) -> str:
    """Signed, four decimals, with a real minus sign."""
    return MISSING if value is None else f"{value:+.4f}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """A fraction as per cent, three significant digits."""
    return MISSING if value is None else f"{100 * value:.3g} %"


def signed_percent(value: float | None) -> str:
    """A relative difference as per cent, signed, two decimals, with a real minus sign."""
    return MISSING if value is None else f"{100 * value:+.2f} %".replace("-", MINUS)


def count(value: int | None) -> str:
    """Whole number with thin spaces between thousands."""
    return MISSING if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def scaled(value: float | None) -> str:
    """Three significant digits and K, M, B or T."""
    if value is None:
        return MISSING
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        # 999.5 rounds to four digits, so it already belongs to the next unit.
        if abs(value) >= 0.9995 * factor:
            return _three_digits(value / factor) + unit
    return _three_digits(value)


def flops(value: float) -> str:
    """Floating point operations with the prefixes of the SI, three significant digits."""
    return f"{scaled(value).replace(' B', ' G')}FLOP" if abs(value) >= 999.5 else f"{value:.0f} FLOP"


def size(num_bytes: float) -> str:
    """Bytes in binary units, three significant digits."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if num_bytes >= 0.9995 * 1024**power:
            return f"{_three_digits(num_bytes / 1024**power)} {unit}"
    return f"{num_bytes:.0f} B"


def seconds(value: float | None) -> str:
    """Seconds, or milliseconds below one."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def rank_ranges(ranks: list[int]) -> str:
    """Sorted ranks with runs joined: 0-3, 6."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}\N{EN DASH}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(decimals, 2)}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
