"""What `${NAME}` stands for, in texts and in URLs."""

import pytest

from headrace.core import FailedPreconditionError
from headrace.core.variables import filled_in, url_filled_in


def test_a_password_may_have_any_letters() -> None:
    found = url_filled_in("kafka://me:${PW}@host:9092", environment={"PW": "a@b/c"})

    assert found == "kafka://me:a%40b%2Fc@host:9092"


def test_a_variable_may_be_all_of_a_url() -> None:
    assert url_filled_in("${URL}", environment={"URL": "nats://a:b@c"}) == "nats://a:b@c"


def test_without_a_variable_it_stays_as_it_is() -> None:
    assert url_filled_in("log:demo", environment={}) == "log:demo"


def test_a_text_takes_what_variables_hold_as_it_is() -> None:
    assert filled_in("/data/${DAY}/${DAY}.csv", environment={"DAY": "1 May"}) == (
        "/data/1 May/1 May.csv"
    )


def test_what_a_variable_holds_is_not_looked_at_for_variables() -> None:
    assert filled_in("${A}", environment={"A": "${B}", "B": "no"}) == "${B}"


def test_a_variable_that_is_not_set_is_named_with_what_names_it() -> None:
    with pytest.raises(
        FailedPreconditionError, match="no variable PW: the broker's URL refers to it"
    ):
        url_filled_in("kafka://me:${PW}@host", description="the broker's URL", environment={})
