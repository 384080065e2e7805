"""What a broker's URL means that names variables."""

import pytest

from headrace.core import FailedPreconditionError
from headrace.streaming.secrets import resolve_broker


def test_a_password_may_have_any_letters() -> None:
    found = resolve_broker("kafka://me:${PW}@host:9092", {"PW": "a@b/c"})

    assert found == "kafka://me:a%40b%2Fc@host:9092"


def test_a_variable_may_be_all_of_it() -> None:
    assert resolve_broker("${URL}", {"URL": "nats://a:b@c"}) == "nats://a:b@c"


def test_without_a_variable_it_stays_as_it_is() -> None:
    assert resolve_broker("log:demo", {}) == "log:demo"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match=r"\$\{PW\}"):
        resolve_broker("kafka://me:${PW}@host", {})
