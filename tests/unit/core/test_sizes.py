"""Sizes as people write them."""

import pytest

from headrace.core.sizes import size_bytes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", 1),
        ("512MiB", 512 << 20),
        ("1.5 GB", 1_500_000_000),
        ("2g", 2 << 30),
        ("0", None),
        ("0.1b", None),
        ("nan", None),
        ("inf gb", None),
        ("1e400", None),
        ("MiB", None),
        ("3 TB", None),
        ("-1", None),
    ],
)
def test_a_size_is_read_or_it_is_none(text: str, found: int | None) -> None:
    assert size_bytes(text) == found
