"""A change is accepted only if all that it refers to is open to the caller."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.auth.references import (
    OPERATOR_SECTIONS,
    AuthorizationFacts,
    ModelFacts,
    ReferenceKind,
    SpecReference,
    authorize,
    may_change_model,
    may_read_model,
    references_of,
)
from headrace.control.auth.roles import SYSTEM, Caller, parse_grants
from headrace.control.model.desired import DesiredState
from headrace.core import PermissionDeniedError
from headrace.core.spec.models import EndpointSpec
from headrace.core.spec.parse import SystemSpec, parse_spec


def caller(*roles: str, name: str = "ann") -> Caller:
    return Caller(name=name, kind="user", grants=parse_grants(roles))


def state(*endpoints: dict[str, Any], **sections: Any) -> DesiredState:  # noqa: ANN401  # JSON
    return DesiredState(spec={"version": 1, **sections, "endpoints": list(endpoints)})


def entry(name: str = "sec", **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    return {"name": name, "model": "sec:1", **fields}


OTHER = entry("other", model="other:1", pool="shared")
BEFORE = state(entry(), OTHER, pools=[{"name": "shared"}])
FACTS = AuthorizationFacts(
    models={"other": ModelFacts(users=frozenset({"other"}), owners=frozenset({"bob"}))}
)


def refused(change: dict[str, Any], *roles: str, facts: AuthorizationFacts = FACTS) -> str:
    after = state(change, OTHER, **{k: v for k, v in BEFORE.spec.items() if k == "pools"})
    with pytest.raises(PermissionDeniedError) as error:
        authorize(caller(*(roles or ("operator:sec",))), BEFORE, after, facts)
    return str(error.value)


def accepted(change: dict[str, Any], *roles: str, facts: AuthorizationFacts = FACTS) -> None:
    after = state(change, OTHER, **{k: v for k, v in BEFORE.spec.items() if k == "pools"})
    authorize(caller(*(roles or ("operator:sec",))), BEFORE, after, facts)


@pytest.mark.parametrize(
    ("change", "grant"),
    [
        ({"model": "other:1"}, "viewer:model/other"),
        ({"model": "other"}, "viewer:model/other"),
        ({"features": {"service": "users"}}, "viewer:features/users"),
    ],
)
def test_an_object_of_others_needs_a_grant_that_the_refusal_names(
    change: dict[str, Any], grant: str
) -> None:
    assert f"headrace users grant ann {grant}" in refused(entry(**change))
    accepted(entry(**change), "operator:sec", grant)
    accepted(entry(**change), "operator")
    assert refused(entry(**change), "operator:sec", "viewer")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "/etc/shadow"},
        {"model": "/no/such/file"},
        {"network": True},
        {"isolation": "best-effort"},
        {"memory_bytes": 1 << 40},
        {"model": None, "upstream": {"url": "https://8.8.8.8/${SECRET}"}},
        {"model": None, "upstream": {"url": "http://127.0.0.1:1"}},
        {
            "model": None,
            "upstream": {"url": "https://8.8.8.8", "tls": {"ca_file": "/etc/ssl/key.pem"}},
        },
    ],
)
def test_files_variables_and_the_sandbox_need_an_admin(change: dict[str, Any]) -> None:
    change = {key: value for key, value in entry(**change).items() if value is not None}

    refused(change)
    refused(change, "operator")
    after = state(change, OTHER, pools=[{"name": "shared"}])
    authorize(SYSTEM, BEFORE, after, AuthorizationFacts())


def test_a_path_below_a_root_needs_the_right_to_push_the_model() -> None:
    change = entry(model="/models/m.onnx")
    path = frozenset({"/models/m.onnx"})

    accepted(change, facts=AuthorizationFacts(paths=path))
    shared = ModelFacts(users=frozenset({"sec", "other"}))
    problem = refused(change, facts=AuthorizationFacts(paths=path, models={"sec": shared}))
    assert "operator:model/sec" in problem


def test_a_pool_is_joined_by_operators_of_all_its_endpoints() -> None:
    assert "pool" in refused(entry(pool="shared"))
    accepted(entry(pool="shared"), "operator:sec", "operator:other")


def test_a_fallback_is_named_by_operators_of_both_endpoints() -> None:
    assert "fallback" in refused(entry(fallback="other"))
    accepted(entry(fallback="other"), "operator:sec", "operator:other")
    accepted(entry(fallback="other"), "operator")


def test_an_endpoint_keeps_what_an_admin_gave_it() -> None:
    given_ = entry(model="m2:1", network=True, pool=None)
    given_.pop("pool")
    before = state(given_)

    authorize(
        caller("operator:sec"), before, state({**given_, "timeout_s": 1.0}), AuthorizationFacts()
    )
    authorize(
        caller("operator:sec"), before, state({**given_, "model": "m2:2"}), AuthorizationFacts()
    )
    authorize(caller("operator:sec"), before, state(entry()), AuthorizationFacts())
    with pytest.raises(PermissionDeniedError):
        authorize(caller("operator:sec"), state(entry()), before, AuthorizationFacts())


def test_a_secret_is_bound_to_where_it_is_sent() -> None:
    def with_tls(url: str) -> dict[str, Any]:
        tls = {"certificate_file": "/c.pem", "key_file": "/k.pem"}
        return {"name": "sec", "upstream": {"url": url, "tls": tls}}

    before = state(with_tls("https://8.8.8.8"))
    moved = state({**with_tls("https://8.8.8.8"), "timeout_s": 2.0})
    authorize(caller("operator:sec"), before, moved, AuthorizationFacts())
    after = with_tls("https://8.8.8.8")
    after["upstream"]["tls"]["key_file"] = "/other.pem"
    with pytest.raises(PermissionDeniedError, match="files"):
        authorize(caller("operator:sec"), before, state(after), AuthorizationFacts())


@pytest.mark.parametrize(
    "wider", [{"protocol": "http"}, {"model": "../../x"}, {"health_path": "/admin"}]
)
def test_an_upstream_that_an_admin_allowed_is_not_widened(wider: dict[str, Any]) -> None:
    def with_upstream(**fields: object) -> dict[str, Any]:
        return {"name": "sec", "upstream": {"url": "http://127.0.0.1:9000", **fields}}

    before, ann = state(with_upstream()), caller("operator:sec")

    authorize(ann, before, state({**with_upstream(), "timeout_s": 2.0}), AuthorizationFacts())
    with pytest.raises(PermissionDeniedError, match="loopback"):
        authorize(ann, before, state(with_upstream(**wider)), AuthorizationFacts())


SECTIONS = {
    "auth": {
        "jwt": [{"name": "i", "issuer": "https://i", "audiences": ["a"], "jwks_file": "/jwks"}]
    },
    "security": {"require_signature": False, "trusted_keys": ["/key.pem"]},
    "alerts": {"receivers": [{"name": "r", "webhook": {"url": "https://h"}}]},
    "tracing": {"collector": "http://127.0.0.1:4318"},
    "kubernetes": {"max_rolling_ratio": 0.5},
    "gateway": {"host": "0.0.0.0"},  # noqa: S104  # refused
}


@pytest.mark.parametrize("section", SECTIONS)
def test_settings_of_the_system_that_reach_further_need_an_admin(section: str) -> None:
    after = state(entry(), **{section: SECTIONS[section]})

    for roles in (("operator",), ("operator:sec",)):
        with pytest.raises(PermissionDeniedError):
            authorize(caller(*roles), state(entry()), after, AuthorizationFacts())
    authorize(SYSTEM, state(entry()), after, AuthorizationFacts())


def test_every_section_of_the_spec_is_an_admins_but_those_that_are_named() -> None:
    assert set(SystemSpec.model_fields) > OPERATOR_SECTIONS
    # What is new is an admin's until somebody decides otherwise, here.
    assert {"version", "endpoints", "pools", "streams", "budget", "tiers"} == OPERATOR_SECTIONS


def test_what_is_written_as_its_default_is_no_change() -> None:
    after = state(entry(), alerts={}, gateway={"host": "127.0.0.1"})

    authorize(caller("operator:sec"), state(entry()), after, AuthorizationFacts())


def test_models_belong_to_who_pushed_them_and_to_endpoints_of_their_name() -> None:
    ann = caller("operator:fraud")
    own, of_bob = (ModelFacts(owners=frozenset({name})) for name in ("ann", "bob"))
    mixed = ModelFacts(owners=frozenset({"ann", "bob"}))
    shared = ModelFacts(users=frozenset({"fraud", "spam"}))

    assert may_change_model(ann, "forest", own)
    assert not may_change_model(ann, "forest", of_bob)
    assert not may_change_model(ann, "forest", mixed)
    assert may_change_model(ann, "fraud", ModelFacts())
    assert not may_change_model(ann, "fraud", shared)
    assert not may_change_model(ann, "forest", ModelFacts(users=frozenset({"fraud"})))
    assert not may_change_model(caller("viewer:fraud"), "forest", own)
    assert may_change_model(caller("operator:model/forest"), "forest", of_bob)
    assert may_change_model(caller("operator"), "forest", shared)
    assert may_read_model(ann, "forest", shared)
    assert not may_read_model(ann, "forest", of_bob)
    assert may_read_model(caller("viewer:model/forest"), "forest", of_bob)


names = st.sampled_from(["a", "b", "c"])
models = st.fixed_dictionaries(
    {"model": st.sampled_from(["a:1", "b:2", "m:1", "n", "/p/a.onnx", "/q/b.onnx"])},
    optional={
        "network": st.just(True),  # noqa: FBT003  # a strategy's value
        "pool": st.sampled_from(["p", "q"]),
        "features": st.fixed_dictionaries({"service": st.sampled_from(["f", "g"])}),
        "timeout_s": st.sampled_from([1.0, 2.0]),
    },
).filter(lambda one: not ("pool" in one and ("network" in one or "features" in one)))
upstreams = st.builds(
    lambda url: {"upstream": {"url": url}},
    st.sampled_from(["https://8.8.8.8", "http://127.0.0.1:1", "https://8.8.8.8/${KEY}"]),
)
entries = st.one_of(models, models, upstreams)
documents = st.dictionaries(names, entries, max_size=3).map(
    lambda items: state(
        *({"name": name, **item} for name, item in items.items()),
        pools=[{"name": "p"}, {"name": "q"}],
    )
)
grants = st.lists(
    st.sampled_from(
        [
            "operator:a",
            "operator:b",
            "viewer",
            "viewer:model/m",
            "operator:model/a",
            "viewer:features/f",
        ]
    ),
    max_size=3,
)
facts = st.builds(
    lambda owners, users: AuthorizationFacts(
        models={
            model: ModelFacts(owners=frozenset(owners[model]), users=frozenset(users[model]))
            for model in "abcmn"
        },
        paths=frozenset({"/p/a.onnx"}),
    ),
    st.fixed_dictionaries({m: st.sets(st.sampled_from(["ann", "bob"])) for m in "abcmn"}),
    st.fixed_dictionaries({m: st.sets(names) for m in "abcmn"}),
)


def endpoint_of(document: DesiredState, name: str) -> EndpointSpec | None:
    spec = parse_spec(document.spec)
    return next((line for line in spec.endpoints if line.name == name), None)


def is_open(  # noqa: PLR0911  # one for each kind
    reference: SpecReference, who: Caller, before: DesiredState, known: AuthorizationFacts
) -> bool:
    """What the rules of `docs/how-to/manage-access.md` say, in other words than the code."""
    granted = set(map(str, who.grants))
    operated = {grant.removeprefix("operator:") for grant in granted if "/" not in grant}
    match reference.kind:
        case ReferenceKind.MODEL:
            return (
                (reference.name in operated and known.models[reference.name].users <= operated)
                or known.models[reference.name].owners == {"ann"}
                or bool(granted & {f"{r}:model/{reference.name}" for r in ("viewer", "operator")})
            )
        case ReferenceKind.PUSH:
            return (
                f"operator:model/{reference.name}" in granted
                or (known.models[reference.name].users <= operated)
                or known.models[reference.name].owners == {"ann"}
            )
        case ReferenceKind.FEATURES:
            return f"viewer:features/{reference.name}" in granted
        case ReferenceKind.POOL:
            entries_ = before.spec["endpoints"]
            return {e["name"] for e in entries_ if e.get("pool") == reference.name} <= operated
        case ReferenceKind.ENDPOINT:
            return reference.name in operated
        case ReferenceKind.FILE:
            return reference.name in known.paths
        case ReferenceKind.UPSTREAM:
            return reference.name.startswith("https://8.8.8.8")
        case _:
            return False


def is_accepted(
    who: Caller, before: DesiredState, after: DesiredState, known: AuthorizationFacts
) -> bool:
    try:
        authorize(who, before, after, known)
    except PermissionDeniedError:
        return False
    return True


@given(documents, documents, grants, facts)
def test_a_change_is_accepted_where_all_that_it_adds_is_granted_and_nowhere_else(
    before: DesiredState, after: DesiredState, roles: list[str], known: AuthorizationFacts
) -> None:
    who, is_granted = caller(*roles), True
    for name in "abc":
        old, new = endpoint_of(before, name), endpoint_of(after, name)
        if old == new:
            continue
        added = frozenset() if new is None else references_of(new)
        added -= frozenset() if old is None else references_of(old)
        is_granted &= f"operator:{name}" in roles
        is_granted &= all(is_open(reference, who, before, known) for reference in added)

    assert is_accepted(who, before, after, known) == is_granted


@given(documents, documents, facts)
def test_an_admin_may_change_everything(
    before: DesiredState, after: DesiredState, known: AuthorizationFacts
) -> None:
    authorize(SYSTEM, before, after, known)


@given(documents, documents, grants, facts)
def test_more_grants_never_allow_less(
    before: DesiredState, after: DesiredState, roles: list[str], known: AuthorizationFacts
) -> None:
    fewer, more = caller(*roles), caller(*roles, "operator:c", "operator:model/n")

    assert is_accepted(fewer, before, after, known) <= is_accepted(more, before, after, known)
