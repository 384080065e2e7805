"""The operator and the viewer of one endpoint read, change and stop nothing else."""

import contextlib
import http.client
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from headrace.testing import models
from tests.e2e.attacks.tenants import (
    GHOST,
    HELD_BACK,
    ONE_USER,
    PLANTED,
    RIVAL,
    SEC,
    Answer,
    Tenants,
)
from tests.e2e.control.system import ROW

pytestmark = [pytest.mark.e2e, pytest.mark.slow, ONE_USER]

SCOPED: Final = ("operator:sec", "viewer:sec")
MOMENT: Final = re.compile(r"1[0-9]{9}(\.[0-9]+)?")

NAMING: Final = (
    "/api/v1/endpoints/NAME",
    "/api/v1/endpoints/NAME/history",
    "/api/v1/endpoints/NAME/history/1",
    "/api/v1/endpoints/NAME/rollout",
    "/api/v1/endpoints/NAME/payloads",
    "/api/v1/endpoints/NAME/payloads/rows",
    "/api/v1/endpoints/NAME/drift",
    "/api/v1/events?endpoint=NAME",
    "/api/v1/alerts?endpoint=NAME",
    "/api/v1/history?endpoint=NAME",
    "/api/v1/overview?search=NAME",
    "/api/v1/rollouts?endpoint=NAME",
    "/api/v1/models/NAME",
    "/api/v1/models/NAME/versions/1",
    "/api/v1/logs?source=NAME-1-1",
    "/v2/models/NAME/stats",
    "/v2/models/NAME/versions/1/stats",
)
"""What is read of one endpoint or model."""
LISTING: Final = (
    "/api/v1/status",
    "/api/v1/spec",
    "/api/v1/endpoints",
    "/api/v1/rollouts",
    "/api/v1/rollouts?active=true",
    "/api/v1/events?limit=1000",
    "/api/v1/alerts",
    "/api/v1/overview",
    "/api/v1/models",
    "/api/v1/keys",
    "/api/v1/logs?tail=100000",
    "/api/v1/logs?tail=100000&source=control",
    "/api/v1/features",
    "/api/v1/streams",
    "/api/v1/jobs",
    "/api/v1/users",
    "/api/v1/tokens",
    "/api/v1/tokens?kind=session",
    "/api/v1/trail",
    "/api/v1/trail/head",
    "/api/v1/whoami",
    "/metrics",
    "/v2/models/stats",
)
"""What is read of everything that the caller may see."""


def says_nothing_of_others(answer: Answer) -> None:
    for word in (RIVAL, "pooled", "lent", "stock", PLANTED):
        assert word not in answer.text, answer


@pytest.mark.parametrize("user", SCOPED)
@pytest.mark.parametrize("path", NAMING)
def test_what_is_forbidden_and_what_is_missing_read_alike(
    house: Tenants, user: str, path: str
) -> None:
    rival, ghost = (house.call(user, "GET", path.replace("NAME", name)) for name in (RIVAL, GHOST))

    assert PLANTED not in rival.text
    assert MOMENT.sub("0", rival.without(RIVAL)[1]) == MOMENT.sub("0", ghost.without(GHOST)[1])
    assert rival.status == ghost.status


@pytest.mark.parametrize("user", SCOPED)
@pytest.mark.parametrize("path", LISTING)
def test_a_list_has_only_what_is_the_callers_own(house: Tenants, user: str, path: str) -> None:
    says_nothing_of_others(house.call(user, "GET", path))


@pytest.mark.parametrize("user", SCOPED)
@pytest.mark.parametrize("tail", ["", "/evidence"])
def test_a_rollout_of_others_reads_as_a_missing_one(house: Tenants, user: str, tail: str) -> None:
    answers = {
        house.call(user, "GET", f"/api/v1/rollouts/{id_}{tail}").without(id_)
        for id_ in (house.rollout, "r9")
    }

    assert len(answers) == 1, answers
    assert next(iter(answers))[0] in {403, 404}


@pytest.mark.parametrize("user", SCOPED)
def test_triton_s_index_has_only_the_callers_models(house: Tenants, user: str) -> None:
    says_nothing_of_others(house.call(user, "POST", "/v2/repository/index", {}))


@pytest.mark.parametrize("user", SCOPED)
@pytest.mark.parametrize("query", ["after=0", f"after=0&endpoint={RIVAL}"])
def test_the_stream_of_events_has_only_the_callers(house: Tenants, user: str, query: str) -> None:
    netloc = urlsplit(house.system.where().admin_url).netloc
    connection = http.client.HTTPConnection(netloc, timeout=1.0)
    received = b""
    with contextlib.closing(connection), contextlib.suppress(TimeoutError):
        token = {"authorization": f"Bearer {house.tokens[user]}"}
        connection.request("GET", f"/api/v1/watch?{query}", headers=token)
        response = connection.getresponse()
        while line := response.readline():
            received += line

    assert b"retry" in received or b"PERMISSION_DENIED" in received
    for word in (RIVAL, PLANTED, "pooled"):
        assert f'"endpoint":"{word}"'.encode() not in received
    assert PLANTED.encode() not in received


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request of `operator:sec`; `NAME`, `ROLLOUT` and `KEY` stand for what belongs to others."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [part for part in (self.body, self.headers or None) if part is not None]
        return " ".join([self.method, self.path, *map(json.dumps, parts)])


_E: Final = "/api/v1/endpoints/NAME"
_M: Final = "/api/v1/models/NAME"
ON_OTHERS: Final = (
    Attempt("PUT", _E, {"model": "sec:1"}),
    Attempt("PUT", _E, {"name": "sec", "model": "sec:1"}),
    Attempt("PUT", _E, {"model": "sec:1"}, {"if-match": '"2"'}),
    Attempt("PUT", _E, {"model": "sec:1"}, {"if-match": "*"}),
    Attempt("PUT", _E, {"model": "sec:1"}, {"if-none-match": "*"}),
    Attempt("PUT", _E, {"model": "sec:1"}, {"if-match": '"99"'}),
    Attempt("PUT", _E, {"not": "a spec"}),
    Attempt("PUT", f"{_E}?wait_s=-1", {"model": "sec:1"}),
    Attempt("DELETE", _E),
    Attempt("DELETE", _E, None, {"if-match": '"2"'}),
    Attempt("DELETE", _E, None, {"if-match": '"99"'}),
    Attempt("POST", f"{_E}/undo", {}),
    Attempt("POST", f"{_E}/undo", {"generation": 1}),
    Attempt("POST", f"{_E}/undo", {"generation": 99}),
    Attempt("POST", f"{_E}/rollout", {"version": "1"}),
    Attempt("POST", f"{_E}/rollout", {"model": "sec:1"}),
    *(
        Attempt("POST", f"{_E}/rollout/{verb}", {})
        for verb in ("promote", "pause", "resume", "abort", "rollback", "no-verb")
    ),
    Attempt("PUT", f"{_E}/drift/reference", {}),
    Attempt("DELETE", f"{_E}/drift/reference"),
    Attempt("DELETE", f"{_M}/versions/1"),
    Attempt("DELETE", f"{_M}/versions/99"),
    Attempt("PUT", f"{_M}/versions/1/reference", {}),
    Attempt("POST", "/v2/repository/models/NAME/load", {}),
    Attempt("POST", "/v2/repository/models/NAME/unload", {}),
    Attempt(
        "POST", "/v2/repository/models/NAME/unload", {"parameters": {"unload_dependents": True}}
    ),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:NAME"]}),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:sec", "infer:NAME"]}),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:NAME:1"]}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"model": "NAME:1"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"model": "NAME"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"name": "NAME", "model": "sec:1"}),
    Attempt("POST", "/api/v1/endpoints/sec/rollout", {"model": "NAME:1"}),
    Attempt("POST", "/api/v1/endpoints/sec/rollout", {"model": "NAME:1", "rollout": HELD_BACK}),
)
"""What names an endpoint or model of others, answered as for one that is missing."""
ELSEWHERE: Final = (
    Attempt("POST", "/api/v1/keys", {"name": "a"}),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:*"]}),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:*:1"]}),
    Attempt("POST", "/api/v1/keys", {"name": "a", "scopes": ["infer:SEC"]}),
    Attempt("DELETE", "/api/v1/keys/KEY"),
    Attempt("DELETE", f"/api/v1/keys/key-{PLANTED}"),
    Attempt("POST", "/api/v1/stop", {}),
    Attempt("POST", "/api/v1/gc", {}),
    Attempt("POST", "/api/v1/users", {"name": "eve", "roles": ["admin"]}),
    Attempt("POST", "/api/v1/users/change", {"name": "operator:sec", "grant": ["admin"]}),
    Attempt("POST", "/api/v1/users/change", {"name": "admin", "disabled": True}),
    Attempt("POST", "/api/v1/tokens", {"owner": "eve", "roles": ["admin"]}),
    Attempt("POST", "/api/v1/tokens", {"owner": "admin"}),
    Attempt("POST", "/api/v1/jobs/nightly/run"),
    Attempt("POST", "/api/v1/jobs/nightly/cancel", {}),
    Attempt("POST", "/api/v1/streams/s/pause"),
    Attempt("POST", "/api/v1/streams/s/resume"),
    Attempt("POST", "/api/v1/rollouts/ROLLOUT/abort", {}),
    Attempt("POST", "/api/v1/rollouts/ROLLOUT/promote", {}),
    Attempt("DELETE", "/api/v1/rollouts/ROLLOUT"),
    Attempt("POST", "/auth/token", {"token": "hrt_a_b"}),
    # Bodies.
    Attempt("PUT", "/api/v1/endpoints/sec", {"name": "rival", "model": "sec:1"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"name": "Sec", "model": "sec:1"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"name": None, "model": "sec:1"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"name": ["sec", "rival"], "model": "sec:1"}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"endpoints": [{"name": "rival", "model": "sec:1"}]}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"model": {"name": "rival"}}),
    Attempt("PUT", "/api/v1/endpoints/sec", {"model": "sec:1", "versions": [{"model": "rival:1"}]}),
    Attempt(
        "PUT",
        "/api/v1/endpoints/sec",
        {"versions": [{"model": "sec:1", "weight": 100}, {"model": "rival:1", "weight": 0}]},
    ),
    # Other spellings of a name.
    *(
        Attempt("PUT", f"/api/v1/endpoints/{spelling}", {"model": "sec:1"})
        for spelling in (
            "RIVAL",
            "r%69val",
            "riva%6C",
            "rival/",
            "rival%20",
            "rival%00",
            "rival%0d%0a",
            "sec%2f..%2frival",
            "sec/../rival",
            "sec/..%2frival",
            "./rival",
            "%2e/rival",
            "sec%3b/../rival",
            "%EF%BD%92ival",
            "riv%C3%A1l",
            "sec;rival",
            "sec,rival",
            "*",
        )
    ),
    *(
        Attempt("PUT", path, {"model": "sec:1"})
        for path in (
            "//api/v1/endpoints/rival",
            "/api//v1/endpoints/rival",
            "/api/v1/endpoints//rival",
            "/API/v1/endpoints/rival",
            "/x/../api/v1/endpoints/rival",
        )
    ),
    *(
        Attempt("PUT", "/api/v1/endpoints/sec", {"model": spelling})
        for spelling in (
            "RIVAL:1",
            " rival:1",
            "rival:1 ",
            "rival:01",
            "rival :1",
            "sec/../rival:1",
            "../rival:1",
            "\uff52ival:1",
            "rival\u0000:1",
            "sec:1\nrival:1",
            "rival:latest",
            "rival@1",
        )
    ),
    # Methods and media types.
    Attempt("PATCH", "/api/v1/endpoints/rival", {"model": "sec:1"}),
    Attempt("POST", "/api/v1/endpoints/rival", {}, {"x-http-method-override": "DELETE"}),
    Attempt("GET", "/api/v1/endpoints/rival", None, {"x-http-method-override": "DELETE"}),
    Attempt("GET", "/api/v1/endpoints/rival?_method=DELETE"),
    Attempt("GET", "/api/v1/endpoints/rival", None, {"x-original-url": "/api/v1/endpoints/sec"}),
    Attempt("GET", "/api/v1/endpoints/rival", None, {"x-headrace-caller": "admin"}),
    Attempt("GET", "/api/v1/endpoints/rival", None, {"x-forwarded-for": "127.0.0.1"}),
    Attempt("GET", "/api/v1/endpoints/rival", None, {"cookie": "headrace-session=admin"}),
)


def sent(house: Tenants, attempt: Attempt, name: str = RIVAL, user: str = "operator:sec") -> Answer:
    names = {"NAME": name, "ROLLOUT": house.rollout, "KEY": house.key}
    path, body = attempt.path, json.dumps(attempt.body)
    for word, text in names.items():
        path, body = path.replace(word, text), body.replace(word, text)
    content = None if attempt.body is None else body.encode()
    return house.call(user, attempt.method, path, content, attempt.headers)


@pytest.mark.parametrize("attempt", ON_OTHERS, ids=str)
def test_an_attempt_on_others_is_answered_as_on_what_is_missing(
    house: Tenants, attempt: Attempt
) -> None:
    before = house.others()
    rival, ghost = sent(house, attempt, RIVAL), sent(house, attempt, GHOST)

    assert rival.is_refusal, rival
    assert house.others() == before
    assert house.models_of_sec() == {SEC}
    assert PLANTED not in rival.text
    assert rival.without(RIVAL) == ghost.without(GHOST)


@pytest.mark.parametrize("attempt", ELSEWHERE, ids=str)
def test_an_attempt_elsewhere_changes_nothing_of_others(house: Tenants, attempt: Attempt) -> None:
    before = house.others()
    answer = sent(house, attempt)

    assert answer.status in {401, 501} or answer.is_refusal, answer
    assert house.others() == before
    assert house.models_of_sec() == {SEC}
    assert PLANTED not in answer.text.replace(f"key-{PLANTED}", "")


@pytest.mark.parametrize("attempt", [*ON_OTHERS, *ELSEWHERE][::3], ids=str)
def test_a_viewer_changes_nothing(house: Tenants, attempt: Attempt) -> None:
    before = house.others(), house.admin("GET", "/api/v1/spec")
    answer = sent(house, attempt, user="viewer:sec")

    assert answer.status in {401, 501} or answer.is_refusal, answer
    assert (house.others(), house.admin("GET", "/api/v1/spec")) == before


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"sec:1","model":"rival:1"}',
        b'{"model":"rival:1","model":"sec:1"}',
        b'{"name":"sec","model":"sec:1","name":"rival"}',
        b'{"name":"rival","model":"sec:1","name":"sec"}',
        b'{"model":"sec:1","mod\\u0065l":"rival:1"}',
        b'{"model":"sec:1","pool":null,"pool":"shared"}',
        b'{"model":"sec:1","network":false,"network":true}',
        b"model: rival:1\n",
        b'[{"model":"rival:1"}]',
        b'{"model":"sec:1"}{"model":"rival:1"}',
    ],
)
def test_a_body_that_says_two_things_gets_nothing_of_others(house: Tenants, body: bytes) -> None:
    before = house.others()
    house.call("operator:sec", "PUT", "/api/v1/endpoints/sec", body)
    entry = house.admin("GET", "/api/v1/endpoints/sec")["spec"]

    assert house.others() == before
    assert house.models_of_sec() == {SEC}
    assert not entry.get("pool")
    assert not entry.get("network")


# Whole documents.


def document(house: Tenants) -> dict[str, Any]:
    spec: dict[str, Any] = house.admin("GET", "/api/v1/spec")["spec"]
    return spec


def entry_of(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in spec["endpoints"] if entry["name"] == name)


def renamed(spec: dict[str, Any]) -> dict[str, Any]:
    """The entries of `sec` and `rival` under each other's name."""
    other = {SEC: RIVAL, RIVAL: SEC}
    entries = [{**e, "name": other.get(e["name"], e["name"])} for e in spec["endpoints"]]
    return {**spec, "endpoints": entries}


def doubled(spec: dict[str, Any]) -> dict[str, Any]:
    entries = [*spec["endpoints"], {**entry_of(spec, SEC), "name": RIVAL}]
    return {**spec, "endpoints": entries}


def added(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "endpoints": [*spec["endpoints"], {"name": "sec2", "model": "sec:1"}]}


def own_only(spec: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "endpoints": [entry_of(spec, SEC)]}


def without_rival(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "endpoints": [e for e in spec["endpoints"] if e["name"] != RIVAL]}


def newer_rival(spec: dict[str, Any]) -> dict[str, Any]:
    entries = [{**e, "model": e["model"].partition(":")[0]} for e in spec["endpoints"]]
    return {**spec, "endpoints": entries}


def more_in_the_pool(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "pools": [{"name": "shared", "replicas": 3}]}


def own_pool(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "pools": [*spec["pools"], {"name": "own"}]}


def no_pools(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "pools": []}


def stream_of(spec: dict[str, Any]) -> dict[str, Any]:
    source = {"broker": "log:a", "topics": ["t"]}
    stream = {"name": "s", "endpoint": RIVAL, "source": source, "sink": {"topic": "out"}}
    return {**spec, "streams": [stream]}


def stream_of_model(spec: dict[str, Any]) -> dict[str, Any]:
    source = {"broker": "log:a", "topics": ["t"]}
    stream = {"name": "s", "model": "rival:1", "source": source, "sink": {"topic": "out"}}
    return {**spec, "streams": [stream]}


def job_of_model(spec: dict[str, Any]) -> dict[str, Any]:
    job = {"name": "j", "model": "rival:1", "input": "/etc/*.csv", "output": "/tmp/{run_id}"}  # noqa: S108  # not written
    return {**spec, "jobs": [job]}


def open_gateway(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "gateway": {"host": "0.0.0.0"}}  # noqa: S104  # an attack


def tiers(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "tiers": [{"name": "gold", "priority": 100}]}


def nothing(_: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "endpoints": []}


DOCUMENTS: Final = (
    renamed,
    doubled,
    added,
    own_only,
    without_rival,
    newer_rival,
    more_in_the_pool,
    own_pool,
    no_pools,
    stream_of,
    stream_of_model,
    job_of_model,
    open_gateway,
    tiers,
    nothing,
)


@pytest.mark.parametrize("verb", ["apply", "diff"])
@pytest.mark.parametrize("changed", DOCUMENTS)
def test_a_document_that_changes_what_is_not_his_is_refused(
    house: Tenants, verb: str, changed: Any
) -> None:
    before = house.others()
    answer = house.call("operator:sec", "POST", f"/api/v1/{verb}", changed(document(house)))

    assert answer.status in {400, 403, 422}, answer
    assert house.others() == before
    assert house.models_of_sec() == {SEC}
    assert PLANTED not in answer.text


def test_a_document_in_another_order_changes_nothing_of_others(house: Tenants) -> None:
    before, spec = house.others(), document(house)
    house.call(
        "operator:sec", "POST", "/api/v1/apply", {**spec, "endpoints": spec["endpoints"][::-1]}
    )

    assert house.others() == before


def test_a_diff_says_nothing_of_others(house: Tenants) -> None:
    spec = document(house)
    entries = [{**e, "timeout_s": 2} if e["name"] == SEC else e for e in spec["endpoints"]]
    answer = house.call("operator:sec", "POST", "/api/v1/diff", {**spec, "endpoints": entries})

    says_nothing_of_others(answer)


def test_an_expected_generation_tells_nothing_of_others(house: Tenants) -> None:
    spec = own_only(document(house))
    answers = {
        house.call(
            "operator:sec", "POST", f"/api/v1/apply?expected={name}:{generation}", spec
        ).without()
        for name in (RIVAL, GHOST)
        for generation in (0, 2, 99)
    }

    assert len(answers) == 1, answers


def test_feedback_is_for_requests_of_ones_own(house: Tenants) -> None:
    key = house.admin("POST", "/api/v1/keys", {"name": "all", "scopes": ["infer:*"]})
    url = f"{house.system.where().http_url}/v2/models/{RIVAL}/infer"
    assert house.system.call("POST", url, {**ROW, "id": "req-rival"}, token=key["key"])[0] == 200
    answers = {
        house.call(
            "operator:sec", "POST", "/api/v1/feedback", {"request_id": id_, "reward": 1}
        ).without(id_)
        for id_ in ("req-rival", "req-ghost")
    }
    house.admin("DELETE", f"/api/v1/keys/{key['id']}")

    assert len(answers) == 1, answers


def test_a_key_of_others_is_revoked_as_a_missing_one(house: Tenants) -> None:
    answers = {
        house.call("operator:sec", "DELETE", f"/api/v1/keys/{key}").without(key)
        for key in (house.key, f"key-{PLANTED}", "no-such-key")
    }

    assert len(answers) == 1, answers


def test_a_model_pushed_by_others_cannot_be_replaced_by_its_content(house: Tenants) -> None:
    """The registry answers with the version that has this content, whose name is another's."""
    copied = house.push("operator:sec", SEC, models.mlp(seed=2))

    assert copied.status == 201, copied
    assert copied.json["name"] == SEC
    says_nothing_of_others(copied)


def test_a_new_model_belongs_to_nobody_s_endpoint(house: Tenants) -> None:
    """Whoever may push `sec` does not invent other names."""
    answers = [
        house.push("operator:sec", name, models.mlp(seed=50))
        for name in ("fresh", "sec2", "SEC", "sec.", "s", "..", "sec%2f..%2frival")
    ]

    assert all(answer.status in {400, 403, 404, 422} for answer in answers), answers


def test_a_user_without_his_role_any_more_does_nothing(house: Tenants) -> None:
    user = house.token("leaver", "operator:sec")
    house.admin("POST", "/api/v1/users/change", {"name": "leaver", "revoke": ["operator:sec"]})

    for method, path, body in (
        ("GET", "/api/v1/endpoints/sec", None),
        ("PUT", "/api/v1/endpoints/sec", {"model": "sec:1"}),
        ("DELETE", "/api/v1/endpoints/sec", None),
    ):
        assert house.call(user, method, path, body).status in {401, 403}
