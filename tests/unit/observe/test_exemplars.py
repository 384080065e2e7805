from hypothesis import given
from hypothesis import strategies as st

from headrace.observe import Exemplars


def test_a_bucket_keeps_a_request_for_a_second() -> None:
    exemplars = Exemplars(3)

    exemplars.keep(1, 0.2, ("trace_id", "abc"), 100.0)

    assert exemplars.due == [0.0, 101.0, 0.0]
    found = exemplars.between(0, 2)
    assert found is not None
    assert found[:3] == ("trace_id", "abc", 0.2)
    assert exemplars.between(1, 2) is None


def test_of_several_buckets_the_newest_request_is_told() -> None:
    exemplars = Exemplars(3)
    for place, found in enumerate(("a", "b", "c")):
        exemplars.keep(place, 0.1, ("request_id", found), 1.0)

    newest = exemplars.between(-1, 1)

    assert newest is not None
    assert newest[1] in {"a", "b"}


@given(st.text() | st.from_regex("[a-z0-9-]{1,120}", fullmatch=True))
def test_an_id_that_is_no_word_is_not_told(identity: str) -> None:
    exemplars = Exemplars(1)
    exemplars.keep(0, 0.1, ("request_id", identity), 1.0)

    found = exemplars.between(-1, 0)

    assert exemplars.due == [2.0]
    assert found is None or (found[1] == identity and not set(identity) & set('"\\\n\r\x85 '))
