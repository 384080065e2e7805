"""The operator of one endpoint refers to what is not his: files, models, stores, pools, servers."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace.testing import models
from tests.e2e.attacks.tenants import INPUTS, ONE_USER, PLANTED, SEC, Answer, Tenants
from tests.e2e.gateway.issuing import Issuer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, ONE_USER]

OPERATOR: Final = "operator:sec"
ENTRY: Final = {"model": "sec:1", "access": ["key", "jwt"]}
PUT: Final = f"/api/v1/endpoints/{SEC}"
PYTHON: Final = models.python_double().encode()


def put(house: Tenants, user: str = OPERATOR, **fields: Any) -> Answer:
    return house.call(user, "PUT", PUT, {**ENTRY, **fields})


def refused(house: Tenants, answer: Answer) -> None:
    """The change was refused, `sec` is as before, and the answer has no content of others."""
    assert answer.is_refusal, answer
    assert house.models_of_sec() == {SEC}
    assert PLANTED not in answer.text
    assert house.tokens["admin"] not in answer.text


# Files of the control plane's machine, as models.


def by_put(house: Tenants, path: str, **fields: Any) -> Answer:
    return put(house, model=path, **fields)


def by_split(house: Tenants, path: str, **fields: object) -> Answer:
    split = [{"model": "sec:1", "weight": 50}, {"model": path, "weight": 50}]
    entry = {key: value for key, value in ENTRY.items() if key != "model"}
    return house.call(OPERATOR, "PUT", PUT, {**entry, "versions": split, **fields})


def by_rollout(house: Tenants, path: str, **fields: object) -> Answer:
    code = {"allow_code": True} if fields.get("allow_code") else {}
    return house.call(OPERATOR, "POST", f"{PUT}/rollout", {"model": path, **code})


def by_document(house: Tenants, path: str, verb: str, **fields: object) -> Answer:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    entries = [
        entry if entry["name"] != SEC else {**ENTRY, "name": SEC, "model": path, **fields}
        for entry in document["endpoints"]
    ]
    return house.call(OPERATOR, "POST", f"/api/v1/{verb}", {**document, "endpoints": entries})


def by_apply(house: Tenants, path: str, **fields: object) -> Answer:
    return by_document(house, path, "apply", **fields)


def by_diff(house: Tenants, path: str, **fields: object) -> Answer:
    return by_document(house, path, "diff", **fields)


WAYS: Final = [by_put, by_split, by_rollout, by_apply, by_diff]
READERS: Final[list[dict[str, Any]]] = [
    {},
    {"runtime": "onnx"},
    {"runtime": "python", "allow_code": True},
]
FILES: Final = ["home/admin-token", "home/state.db", "private.pem", "home/run"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_no_file_of_the_machine_is_read_as_a_model(house: Tenants, way: Any, file: str) -> None:
    folder = house.system.home.parent
    for fields in READERS:
        answer = way(house, str(folder / file), **fields)

        refused(house, answer)
        for line in ("BEGIN PRIVATE KEY", "SQLite format", "admin-token (", "begins"):
            assert line not in answer.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", READERS, ids=str)
def test_an_answer_does_not_tell_whether_a_path_exists(
    house: Tenants, way: Any, fields: dict[str, object]
) -> None:
    folder = house.system.home.parent
    names = ("private.pem", "missing", "home/run", "home/admin-token")
    paths = [*(str(folder / name) for name in names), "/etc/shadow"]
    answers = [way(house, path, **fields).without(path, Path(path).name) for path in paths]

    assert len(set(answers)) == 1, answers
    assert answers[0][0] in {400, 403, 422}


@pytest.mark.parametrize(
    "path",
    ["./m.onnx", "../home/admin-token", "~/m.onnx", "file:///etc/passwd", "/proc/self/environ"],
)
def test_no_other_spelling_of_a_path_is_opened(house: Tenants, path: str) -> None:
    refused(house, put(house, model=path, allow_code=True))


def test_the_run_directory_of_a_replica_is_no_model(house: Tenants) -> None:
    """Model code can write there, with whatever permissions it likes."""
    repository = house.system.home / "run" / "planted" / "repo"
    (repository / SEC / "1").mkdir(parents=True)
    (repository / SEC / "1" / "model.py").write_bytes(PYTHON)
    for path in (repository, *repository.rglob("*")):
        path.chmod(0o755)

    refused(house, put(house, model=str(repository), allow_code=True))


def test_an_admin_may_name_a_path(house: Tenants) -> None:
    model = house.system.home.parent / "path.onnx"
    model.write_bytes(models.mlp(seed=40))
    model.chmod(0o644)

    assert put(house, "admin", model=str(model)).status == 200


def test_an_upload_is_the_way_for_everybody_else(house: Tenants) -> None:
    pushed = house.push(OPERATOR, SEC, models.mlp(seed=41))
    assert pushed.status == 201, pushed

    assert put(house, model=pushed.json["reference"]).status == 200


# Models of others.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["rival:2", "rival", "stock:2", "stock", "lent:2", "pooled:2"])
def test_a_model_of_others_is_not_served(house: Tenants, way: Any, model: str) -> None:
    before = house.others()
    answer = way(house, model)

    refused(house, answer)
    assert house.others() == before
    assert house.call(OPERATOR, "GET", f"/api/v1/models/{model.partition(':')[0]}").is_refusal


@pytest.mark.parametrize("way", WAYS)
def test_a_forbidden_model_and_a_missing_one_answer_alike(house: Tenants, way: Any) -> None:
    answers = {way(house, f"{name}:2").without(name) for name in ("stock", "rival", "ghost")}

    assert len(answers) == 1, answers


@pytest.mark.parametrize("model", ["stock", "rival", "lent"])
def test_versions_of_others_models_are_not_pushed_signed_or_removed(
    house: Tenants, model: str
) -> None:
    before = house.others()
    put(house, model=f"{model}:1")  # referring to it makes nobody its owner
    signature = {"key": "A" * 43 + "=", "signature": "A" * 86 + "=="}
    version = f"/api/v1/models/{model}/versions/1"
    answers = [
        house.push(OPERATOR, model, models.mlp(seed=42)),
        house.call(OPERATOR, "DELETE", version),
        house.call(OPERATOR, "POST", f"{version}/signatures", signature),
        house.call(OPERATOR, "PUT", f"{version}/reference", {}),
    ]

    assert [answer.status for answer in answers] == [403] * 4, answers
    assert house.others() == before


def test_a_model_named_as_an_endpoint_of_ones_own_stays_with_its_users(house: Tenants) -> None:
    """`operator:lent` may make an endpoint `lent`; the model `lent` is what `pub` serves."""
    before = house.others()
    answers = [
        house.push("operator:lent", "lent", models.mlp(seed=43)),
        house.call("operator:lent", "DELETE", "/api/v1/models/lent/versions/1"),
        house.call("operator:lent", "PUT", "/api/v1/endpoints/lent", {"model": "lent:1"}),
        house.call("operator:lent", "POST", "/v2/repository/models/lent/load", {}),
    ]

    assert all(answer.is_refusal for answer in answers), answers
    assert house.others() == before


def test_a_grant_opens_one_model(house: Tenants) -> None:
    reader = house.token("reader", "operator:sec", "viewer:model/stock")
    writer = house.token("writer", "operator:sec", "operator:model/stock")

    refused(house, put(house, model="stock:1"))
    assert house.push(reader, "stock", models.mlp(seed=44)).status == 403
    assert put(house, reader, model="lent:1").is_refusal
    assert put(house, reader, model="stock:1").status == 200
    pushed = house.push(writer, "stock", models.mlp(seed=44))
    assert pushed.status == 201, pushed
    version = f"/api/v1/models/stock/versions/{pushed.json['version']}"
    assert house.call(OPERATOR, "DELETE", version).status == 403
    assert house.call(writer, "DELETE", version).status == 200


def test_what_an_admin_put_at_an_endpoint_stays_usable_there(house: Tenants) -> None:
    assert house.push("admin", "once", models.mlp(seed=46)).status == 201
    refused(house, put(house, model="once:1"))
    assert put(house, "admin", model="once:1").status == 200

    assert put(house, model="once:1", timeout_s=3).status == 200
    assert put(house, model="sec:1").status == 200
    assert house.push(OPERATOR, "once", models.mlp(seed=45)).status == 403


# Feature services and online stores.

STORES: Final = {
    "below the home": "sqlite:///{home}/x.db",
    "another replica's sockets": "sqlite:///{home}/run/r2/x.db",
    "the gateway's sockets": "sqlite:///{home}/run/envoy/x.db",
    "logs": "sqlite:///{home}/logs/x.db",
    "a variable": "sqlite:////nonexistent/${{PLANTED_VARIABLE}}/x.db",
    "a variable below /proc": "sqlite:////proc/${{PLANTED_VARIABLE}}/x.db",
    "a file anywhere": "sqlite:///{folder}/anywhere/x.db",
    "a server": "redis://127.0.0.1:1/0",
    "a password": "redis://u:pl4nted-content@127.0.0.1:1/0",
    "Feast": "feast://{folder}",
    "a name that nothing has": "ghost",
}


def featured(house: Tenants, user: str, **features: object) -> Answer:
    lookup = {"service": "people", "inputs": INPUTS, **features}
    return put(house, user, model="sec:2", features=lookup)


@pytest.mark.parametrize("kind", STORES)
def test_an_endpoint_names_no_store_by_its_url(house: Tenants, kind: str) -> None:
    home = house.system.home
    url = STORES[kind].format(home=home, folder=home.parent)
    files = set(home.parent.rglob("*x.db*"))

    refused(house, featured(house, OPERATOR, online_store=url))
    reader = house.token("features", "operator:sec", "viewer:features/people")
    refused(house, featured(house, reader, online_store=url))
    status = house.call(OPERATOR, "GET", "/api/v1/status").text
    assert PLANTED not in status + house.system.log_text()
    assert home.stat().st_mode & 0o777 == 0o700
    assert set(home.parent.rglob("*x.db*")) == files
    assert not (home.parent / "anywhere").exists()


def test_a_feature_service_needs_a_grant(house: Tenants) -> None:
    refused(house, featured(house, OPERATOR))
    reader = house.token("features", "operator:sec", "viewer:features/people")

    assert featured(house, reader).status == 200


def test_a_store_is_named_by_an_admin_and_used_by_whom_he_grants_it(house: Tenants) -> None:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    stores = [{"name": "shop", "url": f"sqlite:///{house.system.home.parent}/store/x.db"}]
    applied = {**document, "online_stores": stores}
    for user in (OPERATOR, "operator"):
        assert house.call(user, "POST", "/api/v1/apply", applied).status == 403
    (house.system.home.parent / "store").mkdir()
    house.system.user.own(house.system.home.parent / "store")
    house.admin("POST", "/api/v1/apply", applied)
    poor = house.token("no-store", "operator:sec", "viewer:features/people")
    rich = house.token("store", "operator:sec", "viewer:features/people", "viewer:store/shop")

    assert featured(house, poor, online_store="shop").status == 403
    assert featured(house, rich, online_store="shop").status == 200


@pytest.mark.parametrize("part", ["endpoint", "system"])
def test_a_literal_password_is_refused_and_shown_to_nobody(house: Tenants, part: str) -> None:
    secret = "hunter2-literal"  # noqa: S105  # planted
    url = f"redis://u:{secret}@127.0.0.1:1/0"
    if part == "endpoint":
        lookup = {"service": "people", "inputs": INPUTS, "online_store": url}
        answer = put(house, "admin", model="sec:2", network=True, features=lookup)
    else:
        document = house.admin("GET", "/api/v1/spec")["spec"]
        stores = {**document, "online_stores": [{"name": "shop", "url": url}]}
        answer = house.call("admin", "POST", "/api/v1/apply", stores)

    assert answer.status in {400, 422}, answer
    assert secret not in answer.text + house.system.log_text()
    for path in ("/api/v1/spec", PUT, f"{PUT}/history", "/api/v1/trail"):
        assert secret not in house.call("admin", "GET", path).text


# Pools, and what only an admin may allow.


def test_a_pool_of_others_is_not_joined(house: Tenants) -> None:
    before = house.others()
    code = house.push("admin", SEC, PYTHON, "model.py", allow_code="true").json["reference"]
    kinds: list[dict[str, Any]] = [{}, {"model": code, "allow_code": True}]
    for fields in kinds:
        refused(house, put(house, pool="shared", **fields))
        refused(house, by_apply(house, "sec:1", pool="shared", **fields))

    assert house.others() == before


FILE: Final = "/etc/hostname"
FOR_ADMINS: Final[dict[str, dict[str, Any]]] = {
    "network": {"network": True},
    "isolation": {"isolation": "best-effort"},
    "a client certificate": {
        "upstream": {
            "url": "https://models.invalid",
            "tls": {"certificate_file": FILE, "key_file": FILE},
        }
    },
    "an authority": {"upstream": {"url": "https://models.invalid", "tls": {"ca_file": FILE}}},
    "a variable": {"upstream": {"url": "http://${PLANTED_VARIABLE}.invalid"}},
}


@pytest.mark.parametrize("kind", FOR_ADMINS)
@pytest.mark.parametrize("user", [OPERATOR, "operator"])
def test_what_only_an_admin_may_allow_is_refused(house: Tenants, user: str, kind: str) -> None:
    fields = FOR_ADMINS[kind]
    entry = {k: v for k, v in ENTRY.items() if k != "model" or "upstream" not in fields}

    refused(house, house.call(user, "PUT", PUT, {**entry, **fields}))


# Servers that someone else runs.

HOSTS: Final = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",  # noqa: S104  # an attack
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ip6-localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "metadata.google.internal",
    "models.invalid",
]


@pytest.mark.parametrize("host", HOSTS)
def test_an_upstream_is_no_way_to_the_machine_itself(house: Tenants, host: str) -> None:
    upstream = {"url": f"http://{host}:22900/a", "protocol": "http"}
    halves = [
        {"model": "sec:1", "weight": 50},
        {"upstream": upstream, "version": "9", "weight": 50},
    ]
    entry = {"access": ["key"], "upstream": upstream}
    split = {"access": ["key"], "versions": halves}
    begun = {"upstream": upstream, "version": "9"}

    refused(house, house.call(OPERATOR, "PUT", PUT, entry))
    refused(house, house.call(OPERATOR, "PUT", PUT, split))
    refused(house, house.call(OPERATOR, "POST", f"{PUT}/rollout", begun))


def test_an_admin_lists_the_hosts_that_operators_may_name(house: Tenants) -> None:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    security = {"security": {"upstream_hosts": ["models.invalid"]}}
    for user in (OPERATOR, "operator"):
        assert house.call(user, "POST", "/api/v1/apply", document | security).status == 403
    house.admin("POST", "/api/v1/apply", document | security)
    entry = {"access": ["key"], "upstream": {"url": "http://models.invalid:1"}}
    other = {"access": ["key"], "upstream": {"url": "http://other.invalid:1"}}

    assert house.call(OPERATOR, "PUT", PUT, other).is_refusal
    assert house.call(OPERATOR, "PUT", PUT, entry).status == 200


# The operator of all endpoints, who is no admin.


def changes(folder: Path) -> dict[str, dict[str, Any]]:
    """Changes of what concerns all, which an admin could make."""
    issuer = Issuer()
    keys = folder / "own-jwks.json"
    keys.write_text(issuer.key_set)
    keys.chmod(0o644)
    trusted = public_key(folder)
    jwt = {"name": "own", "issuer": "https://own.invalid", "audiences": ["a"]}
    webhook = {"name": "own", "webhook": {"url": "http://127.0.0.1:1/"}}
    job = {"name": "own", "model": "sec:1", "input": FILE, "output": f"{folder}/{{run_id}}"}
    return {
        "own issuer": {"auth": {"jwt": [{**jwt, "jwks_file": str(keys)}]}},
        "own issuer by URL": {"auth": {"jwt": [{**jwt, "jwks_url": "https://own.invalid/k"}]}},
        "own certificates": {"auth": {"certificates": [{"name": "own", "dns": "*"}]}},
        "signatures": {"security": {"require_signature": True, "trusted_keys": [str(trusted)]}},
        "trusted keys": {"security": {"trusted_keys": [str(keys)]}},
        "hosts": {"security": {"upstream_hosts": ["own.invalid"]}},
        "stores": {"online_stores": [{"name": "own", "url": "redis://own.invalid:1/0"}]},
        "alerts": {"alerts": {"receivers": [webhook]}},
        "jobs": {"jobs": [job]},
        "tracing": {"tracing": {"collector": "http://127.0.0.1:1"}},
    }


@pytest.mark.parametrize("user", ["operator", OPERATOR])
@pytest.mark.parametrize(
    "part",
    sorted(
        (
            "own issuer",
            "own issuer by URL",
            "own certificates",
            "signatures",
            "trusted keys",
            "hosts",
            "stores",
            "alerts",
            "jobs",
            "tracing",
        )
    ),
)
def test_what_concerns_all_is_changed_by_admins_only(house: Tenants, user: str, part: str) -> None:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    answer = house.call(
        user, "POST", "/api/v1/apply", {**document, **changes(house.system.home.parent)[part]}
    )

    assert answer.status == 403, answer
    assert house.admin("GET", "/api/v1/spec")["spec"] == document


def test_signatures_stay_required(house: Tenants) -> None:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    folder = house.system.home.parent
    strict = {"require_signature": False, "trusted_keys": [str(public_key(folder))]}
    house.admin("POST", "/api/v1/apply", {**document, "security": strict})

    for security in ({}, {**strict, "trusted_keys": []}):
        answer = house.call("operator", "POST", "/api/v1/apply", {**document, "security": security})
        assert answer.status == 403, answer


def public_key(folder: Path) -> Path:
    key = Ed25519PrivateKey.generate().public_key()
    path = folder / "trusted.pem"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    path.chmod(0o644)
    return path


def test_the_operator_of_all_still_changes_endpoints(house: Tenants) -> None:
    document = house.admin("GET", "/api/v1/spec")["spec"]
    entries = [{**entry, "timeout_s": 9} for entry in document["endpoints"]]

    applied = house.call("operator", "POST", "/api/v1/apply", {**document, "endpoints": entries})

    assert applied.status == 200, applied
    assert json.loads(applied.text)["changes"]
