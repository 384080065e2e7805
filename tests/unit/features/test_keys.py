"""Equal entities make equal keys, others never; what names no entity is told with its row."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import DataSource, Entity, Feature, FeatureView
from headrace.features.records import MAX_KEY_BYTES, encode_keys, show_key

NUMBER = Entity(name="card", join_key="card_id", datatype=Datatype.INT64)
TEXT = Entity(name="shop", join_key="shop_id")


def view(*entities: Entity) -> FeatureView:
    return FeatureView(
        name="v",
        entities=entities,
        features=(Feature(name="f", datatype=Datatype.FP32),),
        source=DataSource(path=Path("x.parquet")),
    )


def test_keys_can_be_read() -> None:
    assert encode_keys(view(NUMBER), [[17, np.int64(-3)]]) == [b"card:17", b"card:-3"]
    assert encode_keys(view(NUMBER, TEXT), [[17], ["é"]]) == [b"card,shop:2:17,2:\xc3\xa9"]
    assert show_key(b"card:17") == "card:17"
    assert len(show_key(b"shop:" + b"x" * 500)) < 100


def test_text_and_its_bytes_are_the_same_entity() -> None:
    assert encode_keys(view(TEXT), [["é", "é".encode()]]) == [b"shop:\xc3\xa9"] * 2


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=4)),
        unique=True,
        max_size=20,
    )
)
def test_no_two_entities_share_a_key(pairs: list[tuple[str, str]]) -> None:
    other = Entity(name="b", join_key="b")

    keys = encode_keys(view(TEXT, other), [[a for a, _ in pairs], [b for _, b in pairs]])

    assert len(set(keys)) == len(pairs)


@pytest.mark.parametrize(
    ("entity", "value", "why"),
    [
        (NUMBER, "17", "integer"),
        (NUMBER, 17.0, "integer"),
        (NUMBER, True, "integer"),
        (NUMBER, None, "integer"),
        (NUMBER, 1 << 63, "64 bits"),
        (TEXT, 17, "text"),
        (TEXT, None, "text"),
        (TEXT, "", "1 to 1024 bytes"),
        (TEXT, "x" * (MAX_KEY_BYTES + 1), "1 to 1024 bytes"),
        (TEXT, "\ud800", "lone surrogate"),
    ],
)
def test_what_names_no_entity_is_told_with_its_row(entity: Entity, value: object, why: str) -> None:
    good = 1 if entity is NUMBER else "a"

    with pytest.raises(InvalidArgumentError, match=why) as told:
        encode_keys(view(entity), [[good, value]])

    assert f"{entity.join_key}[1]" in str(told.value)
    assert len(str(told.value)) < 200
