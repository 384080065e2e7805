"""What a role includes, and for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.auth.roles import Caller, Grant, Role, parse_grant, parse_grants
from headrace.core import InvalidArgumentError


def caller(*roles: str) -> Caller:
    return Caller(name="ann", kind="user", grants=parse_grants(roles))


@pytest.mark.parametrize("text", ["viewer", "operator", "admin", "viewer:a", "operator:a-b.c_1"])
def test_a_grant_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_grant(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unknown role ''"),
        ("root", "roles are: viewer, operator, admin"),
        ("admin:fraud", "leave the endpoint out"),
        ("viewer:", "cannot name an object"),
        ("viewer:a/b", "is neither an endpoint nor one of: endpoint/NAME, model/NAME"),
        ("viewer:a:b", "cannot name an object"),
        ("viewer:model/", "cannot name an object"),
        ("viewer:model/a/b", "is neither an endpoint"),
        ("admin:model/m", "leave the endpoint out"),
        ("Viewer", "unknown role"),
    ],
)
def test_what_is_no_role_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        parse_grant(text)


def test_a_role_includes_those_below_it() -> None:
    assert caller("operator").may(Role.VIEWER)
    assert caller("admin").may(Role.OPERATOR, "fraud")
    assert not caller("viewer").may(Role.OPERATOR)
    assert not caller("operator").may(Role.ADMIN)


def test_a_role_for_an_endpoint_is_none_for_others_or_for_the_system() -> None:
    ann = caller("operator:fraud", "viewer:spam")

    assert ann.may(Role.OPERATOR, "fraud")
    assert ann.may(Role.VIEWER, "spam")
    assert not ann.may(Role.OPERATOR, "spam")
    assert not ann.may(Role.VIEWER, "other")
    assert not ann.may(Role.VIEWER)
    assert ann.may_somewhere(Role.OPERATOR)
    assert ann.endpoints(Role.VIEWER) == frozenset({"fraud", "spam"})
    assert ann.endpoints(Role.OPERATOR) == frozenset({"fraud"})
    assert caller("operator:fraud", "viewer").endpoints(Role.VIEWER) is None


def test_nobody_may_do_anything() -> None:
    nobody = caller()

    assert not any(nobody.may_somewhere(role) for role in Role)
    assert nobody.endpoints(Role.VIEWER) == frozenset()


@pytest.mark.parametrize("text", ["viewer:model/m", "operator:features/f", "viewer:store/s"])
def test_a_grant_for_another_object_is_none_for_endpoints(text: str) -> None:
    bob = caller(text)
    name = text.rpartition("/")[2]

    assert str(parse_grant(text)) == text
    assert bob.endpoints(Role.VIEWER) == frozenset()
    assert not bob.may(Role.VIEWER, name)
    assert bob.may(Role.VIEWER, name, parse_grant(text).resource)


grants = st.builds(
    Grant, st.sampled_from([Role.VIEWER, Role.OPERATOR]), st.sampled_from([None, "a", "b", "c"])
)


@given(st.lists(grants, max_size=5), st.sampled_from(list(Role)), st.sampled_from(["a", "b", "d"]))
def test_who_has_a_role_for_an_endpoint_has_it_among_his_endpoints(
    given_: list[Grant], role: Role, endpoint: str
) -> None:
    ann = Caller(name="ann", kind="user", grants=tuple(given_))
    mine = ann.endpoints(role)

    assert ann.may(role, endpoint) == (mine is None or endpoint in mine)
    assert ann.may(role) == (mine is None)
    assert ann.may_somewhere(role) == (mine is None or bool(mine))
