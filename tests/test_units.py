"""The unit parser and printer: one clear error for everything else, and a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import units
from planner.errors import UsageError

PARSERS = (
    units.parse_bytes,
    units.parse_tokens,
    units.parse_parameters,
    units.parse_seconds,
    units.parse_rate,
)


@pytest.mark.parametrize(
    "text", ["8G", "8GB", "8GiB", "8g", "8 GiB", "8192M", "8192MB", "8388608K", "8589934592"]
)
def test_memory_is_binary(text: str) -> None:
    assert units.parse_bytes(text) == 8 * 2**30


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("32k", 32768), ("32K", 32768), ("1.5k", 1536), ("1M", 1 << 20)]
)
def test_tokens_count_in_1024s(text: str, tokens: int) -> None:
    assert units.parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "count"), [("7B", 7 * 10**9), ("350M", 350 * 10**6), ("1.5b", 15 * 10**8), ("1T", 10**12)]
)
def test_parameters_are_decimal(text: str, count: int) -> None:
    assert units.parse_parameters(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("1.5", 1.5), ("2m", 120.0), ("1h", 3600.0)]
)
def test_durations_default_to_seconds(text: str, seconds: float) -> None:
    assert units.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-8G",
        "0",
        "0G",
        "nan",
        "inf",
        "1e999",
        "8 lightyears",
        "G",
        "8G8",
        "8,5G",
        "٨G",
        "８G",
        "8G\n8G",
        "0x10",
        "1e20T",
        "8\u00a0G",
    ],
)
def test_nonsense_gets_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_bytes(text, "--vram")
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("--vram")
    assert caught.value.hint


def test_an_absurd_context_is_refused() -> None:
    with pytest.raises(UsageError, match="beyond"):
        units.parse_tokens("1e15")


@given(st.text(max_size=60))
def test_any_text_is_a_positive_number_or_a_usage_error(text: str) -> None:
    for parse in PARSERS:
        try:
            value, message = parse(text), "ok"
        except UsageError as error:
            value, message = 1.0, error.message
        assert value > 0
        assert message.isascii()
        assert "\n" not in message


@given(st.integers(min_value=1, max_value=units.MAX_BYTES))
def test_printed_bytes_read_back_within_their_digits(size: int) -> None:
    printed = units.format_bytes(size)
    assert units.parse_bytes(printed) == pytest.approx(size, rel=0.06)
    assert units.format_bytes(units.parse_bytes(printed)) == printed


@given(st.integers(min_value=1, max_value=units.MAX_TOKENS))
def test_printed_tokens_read_back_exactly(tokens: int) -> None:
    assert units.parse_tokens(units.format_tokens(tokens)) == tokens


@given(st.integers(min_value=1, max_value=10**14))
def test_printed_parameters_read_back_within_their_digits(count: int) -> None:
    assert units.parse_parameters(units.format_parameters(count)) == pytest.approx(count, rel=0.06)


@given(st.floats(min_value=1e-5, max_value=1e6))
def test_printed_durations_read_back_within_their_digits(seconds: float) -> None:
    assert units.parse_seconds(units.format_seconds(seconds)) == pytest.approx(seconds, rel=0.06)


def test_a_range_prints_once_where_its_ends_agree() -> None:
    assert units.format_range(24.1, 31.4) == "24-31"
    assert units.format_range(24.1, 24.4) == "24"


def test_one_of_a_kind_has_no_plural() -> None:
    assert [units.counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
