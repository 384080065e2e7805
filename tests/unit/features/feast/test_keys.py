"""Keys and fields are those that Feast writes; what it wrote is compared in tests/contract."""

from pathlib import Path

import pytest

from headrace.core import Datatype
from headrace.features import Entity
from headrace.features.feast.importing import INT32, INT64, STRING
from headrace.features.feast.values import KeyWriter, field_name, murmur3_32
from headrace.features.records import decode_key, encode_keys
from tests.unit.features.tables import CUSTOMER, view

SHOP = Entity(name="shop", join_key="a_shop", datatype=Datatype.BYTES)


@pytest.mark.parametrize(
    ("data", "hashed"),
    [
        (b"", 0),
        (b"\0\0\0\0", 0x2362F9DE),
        (b"!Ce\x87", 0xF55B516B),
        (b"!Ce", 0x7E4A8634),
        (b"!C", 0xA0F7B07A),
        (b"!", 0x72661CF4),
        ("ππππππππ".encode(), 0xEC72B6E8),
        (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723),
    ],
)
def test_the_hash_is_murmurs(data: bytes, hashed: int) -> None:
    """Values that the package `mmh3` gives, which Feast uses."""
    assert murmur3_32(data) == hashed


def test_a_field_is_the_hash_of_view_and_feature() -> None:
    assert field_name("customer_stats", "age") == murmur3_32(b"customer_stats:age").to_bytes(
        4, "little"
    )


def test_join_keys_stand_in_the_order_of_their_names() -> None:
    of = view(Path("x"), entities=(CUSTOMER, SHOP))
    (key,) = encode_keys(of, [[5], ["a,b:c"]])

    written = KeyWriter(of, {"customer_id": INT64, "a_shop": STRING}).write(key)

    assert decode_key(of, key) == [b"5", b"a,b:c"]
    assert written == (
        b"\x02\0\0\0"
        b"\x02\0\0\0\x06\0\0\0a_shop"
        b"\x02\0\0\0\x0b\0\0\0customer_id"
        b"\x02\0\0\0\x05\0\0\0a,b:c"
        b"\x04\0\0\0\x08\0\0\0\x05\0\0\0\0\0\0\0"
    )


def test_a_number_that_feasts_type_cannot_hold_names_nobody() -> None:
    of = view(Path("x"))
    small, large = encode_keys(of, [[-(1 << 31), 1 << 31]])
    writer = KeyWriter(of, {"customer_id": INT32})

    assert (writer.write(small) or b"").endswith(b"\x03\0\0\0\x04\0\0\0\0\0\0\x80")
    assert writer.write(large) is None
