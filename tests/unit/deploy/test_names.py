import re

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.names import label_value
from headrace.deploy.export import object_name

_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


@given(_NAMES, st.integers(1, 10**18 - 1))
def test_every_name_is_one_that_dns_takes(endpoint: str, version: int) -> None:
    assert _LABEL.fullmatch(object_name("headrace", endpoint, str(version)))
    assert _LABEL.fullmatch(object_name("", endpoint))
    assert len(object_name("headrace", endpoint, longest=55)) <= 55


def test_plain_names_stay_as_they_are() -> None:
    assert object_name("headrace", "fraud", "2") == "headrace-fraud-2"
    assert object_name("headrace", "fraud.v1").startswith("headrace-fraud-v1-")


@given(_NAMES, _NAMES)
def test_what_had_to_change_is_told_apart_by_a_hash(one: str, other: str) -> None:
    assert one == other or object_name("headrace", one) != object_name("headrace", other)


@given(_NAMES)
def test_a_label_takes_any_endpoint(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label_value(name))
