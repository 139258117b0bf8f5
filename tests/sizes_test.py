"""Amounts of memory and storage: decimal and binary units, everywhere the same."""

import pytest

from seed_jax.errors import UserError
from seed_jax.sizes import format_memory, format_size, parse_size


def test_decimal_and_binary_units():
    texts = ("560 B", "26.8 kB", "681 MB", "13.6 GB", "16GiB", "1.5G", "20", "2MB", "3Ti")
    assert [parse_size(text) for text in texts] == [
        560, 26800, 681 * 10**6, 136 * 10**8, 16 * 2**30, 15 * 10**8, 20, 2 * 10**6, 3 * 2**40,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["13,6 GB", "5 apples", "", "0", "-1GB", "3iB", "GB"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)


def test_printing():
    assert [format_size(size) for size in (560, 26800, 999_900, 1228836570)] == ["560 B", "26.8 kB", "1 MB", "1.23 GB"]
    assert [format_memory(size) for size in (2**20, 2**30, 5.5 * 2**30)] == ["1.00 MiB", "1.00 GiB", "5.50 GiB"]
