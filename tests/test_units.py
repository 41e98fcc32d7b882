from __future__ import annotations

import pytest

from vdnn.units import UnitError, format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("amount", "count"),
    [
        (512, 512),
        ("512", 512),
        ("12GiB", 12 * 2**30),
        ("8GB", 8 * 10**9),
        ("500 MiB", 500 * 2**20),
        ("1.5kib", 1536),
        (".5KiB", 512),
        ("2TB", 2 * 10**12),
        ("100B", 100),
        (" 1 MB ", 10**6),
    ],
)
def test_bytes_are_read_with_binary_and_decimal_units(amount, count):
    assert parse_bytes(amount) == count


def test_a_percentage_is_of_the_total():
    assert parse_bytes("80%", 1000) == 800
    assert parse_bytes("12.5 %", 1000) == 125


def test_a_percentage_is_at_most_all():
    assert parse_bytes("100%", 1000) == 1000
    with pytest.raises(UnitError, match=r"'100\.5%': a share of the memory is at most 100%"):
        parse_bytes("100.5%", 1000)


def test_a_percentage_of_nothing_is_refused():
    with pytest.raises(UnitError, match="needs a hardware or device"):
        parse_bytes("80%")


@pytest.mark.parametrize("amount", ["", "GiB", "12 apples", "1e9", "-1GiB", "12GiB8", "80%%", None, 1.5, True])
def test_what_is_no_amount_is_refused_and_told_what_is(amount):
    with pytest.raises(UnitError, match=r"12GiB|units are B, KiB"):
        parse_bytes(amount, 1000)


@pytest.mark.parametrize("amount", [0, "0GiB", -5, "0%"])
def test_nothing_is_no_amount(amount):
    with pytest.raises(UnitError, match="more than 0"):
        parse_bytes(amount, 1000)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1500 * 1024, "1.46 MiB"),
        (10 * 2**20, "10.0 MiB"),
        (999 * 2**20, "999 MiB"),
        (1023 * 2**20, "1.00 GiB"),
        (3 * 2**40, "3.00 TiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_print_with_three_digits(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.234, "1.23 s"),
        (75, "75.0 s"),
        (0.0456, "45.6 ms"),
        (5e-6, "5.00 us"),
        (2e-9, "2.00 ns"),
        (-0.5, "-500 ms"),
    ],
)
def test_seconds_print_with_three_digits(seconds, text):
    assert format_seconds(seconds) == text


def test_what_is_printed_in_whole_units_reads_back():
    assert parse_bytes(format_bytes(3 * 2**30)) == 3 * 2**30
