"""The one place that reads `8G` and prints `7.3 GiB`.

Memory is binary, as memory is sold: `8G`, `8GB`, `8GiB` and `8192M` are all 8 x 2^30 bytes. Tokens count in
1024s: `32k` is 32768, `1M` is 1048576. Parameters are decimal: `7B` is 7 x 10^9. Durations need no unit for
seconds. Everything else is refused with one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from planner.errors import UsageError

_NUMBER = re.compile(
    r"([0-9]{1,24}(?:\.[0-9]{0,24})?|\.[0-9]{1,24})(?:[eE]([+-]?[0-9]{1,3}))?[ ]?([A-Za-z/]{0,12})"
)

_BINARY = {
    suffix + tail: 1024**power
    for power, suffix in enumerate(("", "k", "m", "g", "t"))
    for tail in ("", "b", "ib")
    if (suffix, tail) != ("", "ib")
}
_TOKENS = {"": 1, "k": 1024, "m": 1024**2}
_PARAMETERS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
_RATES = {"": 1.0, "tps": 1.0, "t/s": 1.0, "tok/s": 1.0, "tokens/s": 1.0}

MAX_BYTES = 1024**5  # 1 PiB: no machine a model is planned for holds more
MAX_TOKENS = 2**27  # 134 million: above any published context
MAX_PARAMETERS = 10**15
MAX_SECONDS = 31 * 86400.0


def parse_bytes(text: str, what: str = "size") -> int:
    """Bytes of `8G`, `8GiB`, `8192M`, `0.5T`, `1073741824`."""
    return round(_parse(text, what, _BINARY, "8G or 8192M", MAX_BYTES, "1 PiB", least=1))


def parse_tokens(text: str, what: str = "context") -> int:
    """Tokens of `4096`, `32k` (32768) or `1M` (1048576)."""
    return round(_parse(text, what, _TOKENS, "4096 or 32k", MAX_TOKENS, "128M tokens", least=1))


def parse_parameters(text: str, what: str = "size") -> int:
    """Parameters of `7B`, `350M`, `1.5B` or `1T`."""
    return round(_parse(text, what, _PARAMETERS, "7B or 350M", MAX_PARAMETERS, "1000T parameters", least=1))


def parse_seconds(text: str, what: str = "duration") -> float:
    """Seconds of `500ms`, `2s`, `1.5` or `1m`."""
    return _parse(text, what, _SECONDS, "500ms or 2s", MAX_SECONDS, "31 days")


def parse_rate(text: str, what: str = "rate") -> float:
    """Tokens per second of `20` or `20 tok/s`."""
    return _parse(text, what, _RATES, "10 or 10 tok/s", 1e9, "1e9 tok/s")


def _parse(
    text: str,
    what: str,
    units: Mapping[str, float],
    example: str,
    most: float,
    most_words: str,
    least: float = 0.0,
) -> float:
    shown = ascii(text[:40]).strip("'\"")
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} `{shown}` is not a number with a unit", f"write it like {example}")
    digits, exponent, unit = match.groups()
    if unit.lower() not in units:
        raise UsageError(f"{what} `{shown}` has the unknown unit `{unit}`", f"write it like {example}")
    value = float(digits) * 10.0 ** int(exponent or 0) if abs(int(exponent or 0)) < 40 else math.inf
    value *= units[unit.lower()]
    if not value > 0 or value < least:
        raise UsageError(f"{what} `{shown}` must be greater than zero", f"write it like {example}")
    if value > most:
        raise UsageError(f"{what} `{shown}` is beyond {most_words}", f"write it like {example}")
    return value


def format_bytes(n_bytes: float, digits: int = 1) -> str:
    """`7.3 GiB`; below 1 GiB in MiB, below 1 MiB in KiB or B. Negative numbers keep their sign."""
    size = abs(n_bytes)
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if round(size / 1024**power, digits) >= 1:
            value = n_bytes / 1024**power
            return f"{value:.{digits if power == 3 or abs(value) < 9.95 else 0}f} {unit}"
    return f"{n_bytes:.0f} B"


def format_tokens(n_tokens: float) -> str:
    """`32k` where 1024 divides it, else the number."""
    n = round(n_tokens)
    if n >= 1024**2 and n % 1024**2 == 0:
        return f"{n // 1024**2}M"
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)


def format_parameters(n: float) -> str:
    """`8.2B`, `350M`."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= 0.9995 * factor:
            return f"{_significant(n / factor)}{unit}"
    return f"{n:.0f}"


def format_seconds(seconds: float) -> str:
    """`35 ms`, `1.2 s`, `4.5 min`, `2.0 h`."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    if seconds >= 0.9995:
        return f"{_significant(seconds)} s"
    if seconds >= 0.9995e-3:
        return f"{_significant(seconds * 1e3)} ms"
    return f"{_significant(seconds * 1e6)} us"


def counted(n: int, noun: str) -> str:
    """`1 model`, `3 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_rate(tokens_per_s: float) -> str:
    """A number of tokens per second with two or three figures, without the unit."""
    return _significant(tokens_per_s)


def format_range(low: float, high: float) -> str:
    """`24-31`, or one number where the two print alike."""
    ends = (_significant(low), _significant(high))
    return ends[0] if ends[0] == ends[1] else "-".join(ends)


def _significant(value: float) -> str:
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.95 or value == 0 else f"{value:.2f}"
