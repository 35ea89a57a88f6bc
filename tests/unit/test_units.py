"""Durations, sizes and lists as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidegate.config.units import format_duration, format_size, parse_duration, parse_size, split_list


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("250\u00b5s", 0.00025),
        ("-1s", -1.0),
        ("+2s", 2.0),
        (" 3s ", 3.0),
        ("0", 0.0),
        (0, 0.0),
    ],
)
def test_durations_are_read_as_go_reads_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1x", "1 s", "ten", "1s1", "1S", "--1s", "1e3s", "9" * 100 + "s", "\u0661s"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="10s, 1m30s"):
        parse_duration(text)


@pytest.mark.parametrize("number", [10, 1.5, "10", "1.5"])
def test_a_duration_without_a_unit_says_what_to_write(number):
    with pytest.raises(ValueError, match=f"write {number}s"):
        parse_duration(number)


def test_endless_durations_are_refused():
    with pytest.raises(ValueError, match="at most"):
        parse_duration("10001h")


@settings(deadline=None)
@given(st.integers(min_value=-36_000_000_000_000, max_value=36_000_000_000_000))
def test_a_duration_that_we_write_reads_back_the_same(microseconds):
    seconds = microseconds / 1_000_000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("1MiB", 1 << 20),
        ("2GiB", 2 << 30),
        ("256MB", 256_000_000),
        ("4096", 4096),
        ("16 kib", 16384),
        (7, 7),
    ],
)
def test_sizes_are_bytes_or_have_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("value", ["", "KiB", "1.5MiB", "-1", "1TiB", "64 K B", True, 1.0, None, "9" * 100])
def test_what_is_no_size_is_refused_with_an_example(value):
    with pytest.raises(ValueError, match="64KiB"):
        parse_size(value)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_size_that_we_write_reads_back_the_same(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("CHAT,NOTIFY", ("CHAT", "NOTIFY")),
        (" CHAT , NOTIFY ,", ("CHAT", "NOTIFY")),
        ("CHAT NOTIFY\tX\n", ("CHAT", "NOTIFY", "X")),
        (",", ()),
        ("", ()),
        ([" A ", "", "B"], ("A", "B")),
        (("A",), ("A",)),
    ],
)
def test_lists_are_separated_by_commas_or_blanks(value, items):
    assert split_list(value) == items


@pytest.mark.parametrize("value", [5, None, {"a": 1}, ["a", 1], True])
def test_what_is_no_list_is_refused(value):
    with pytest.raises(ValueError, match="a list of texts"):
        split_list(value)
