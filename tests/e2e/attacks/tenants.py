"""A system of several tenants: who has which token, and what an admin sees that belongs to others.

Endpoint `sec` belongs to the operator `operator:sec`; `rival`, `pub` and `pooled` do not. No
endpoint uses model `stock`; `pub` uses model `lent`, and an endpoint `lent` does not exist.
"""

import contextlib
import http.client
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from headrace.features import apply_definitions
from headrace.testing import models
from tests.e2e.control.system import System
from tests.e2e.ordinary_user import OrdinaryUser

SEC: Final = "sec"
RIVAL: Final = "rival"
GHOST: Final = "ghost"
"""A name that nothing has, as long as `rival`."""
PLANTED: Final = "pl4nted-content"
"""Stands in labels, metadata, key names and variables that `operator:sec` may not read."""
REFUSED: Final = frozenset({400, 403, 404, 405, 409, 412, 413, 415, 421, 422, 428})
INPUTS: Final = {"x": ["spend", "amount", "age", "hour"]}
"""How the model `matmul` takes the features of the service `people`."""
DEFINITIONS: Final = {
    "entities": [{"name": "customer", "join_key": "customer_id", "datatype": "INT64"}],
    "feature_views": [
        {
            "name": "stats",
            "entities": ["customer"],
            "source": {"path": "customers.parquet"},
            "features": [
                {"name": "age", "datatype": "INT64", "default": -1},
                {"name": "spend", "datatype": "FP32", "default": 0.0},
            ],
        }
    ],
    "feature_services": [{"name": "people", "features": ["stats"]}],
}
ROLES: Final = {
    "operator": "operator",
    "viewer": "viewer",
    "operator:sec": "operator:sec",
    "viewer:sec": "viewer:sec",
    "operator:lent": "operator:lent",
}
ONE_USER: Final = pytest.mark.parametrize(
    "building",
    ["as root" if os.geteuid() == 0 else "as an ordinary user"],
    indirect=True,
    scope="module",
)
"""Mark of tests whose result does not depend on the user that runs the system.

Root is preferred: it can open every file, so only the checks under test refuse one.
"""
HELD_BACK: Final = {
    "strategy": "canary",
    "steps": [{"weight": 10, "until": "approval"}],
    "max_duration_s": 86400,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and whole body of an answer."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def is_refusal(self) -> bool:
        return self.status in REFUSED

    def without(self, *names: str) -> tuple[int, str]:
        """Status and body with `names` replaced, to compare two answers."""
        text = self.text
        for name in names:
            text = text.replace(name, "NAME")
        return self.status, text


@dataclass(slots=True)
class Tenants:
    """A started system, and requests of its users by name; `admin` is the owner of the home."""

    system: System
    tokens: dict[str, str] = field(default_factory=dict)
    rollout: str = ""
    """The id of the rollout of `rival`, which waits for approval."""
    key: str = ""
    """The id of the API key for `rival`."""

    def call(  # as requests are written: who, verb, path, body, headers
        self,
        user: str,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> Answer:
        """The answer to a request whose path is sent as written; bytes are sent as they are."""
        netloc = urlsplit(self.system.where().admin_url).netloc
        connection = http.client.HTTPConnection(netloc, timeout=timeout_s)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.tokens[user]}", **(headers or {})}
        if content is not None:
            sent.setdefault("content-type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, content, sent)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        return Answer(response.status, text, {k.lower(): v for k, v in response.getheaders()})

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """The document that the admin gets."""
        answer = self.call("admin", method, path, body)
        assert answer.status < 300, answer
        return answer.json

    def push(
        self, user: str, model: str, content: bytes, filename: str = "m.onnx", **query: str
    ) -> Answer:
        """Upload a version of `model`."""
        text = "&".join(
            f"{name}={value}" for name, value in {"filename": filename, **query}.items()
        )
        binary = {"content-type": "application/octet-stream"}
        return self.call(user, "POST", f"/api/v1/models/{model}?{text}", content, binary)

    def token(self, name: str, *roles: str) -> str:
        """Make user `name` with these roles; the name, for `call`."""
        created = self.admin("POST", "/api/v1/tokens", {"owner": name, "roles": list(roles)})
        self.tokens[name] = created["token"]
        return name

    def others(self) -> dict[str, Any]:
        """All that does not belong to `operator:sec`, as an admin sees it."""
        spec = self.admin("GET", "/api/v1/spec")["spec"]
        endpoints = self.admin("GET", "/api/v1/endpoints")["endpoints"]
        stored = self.admin("GET", "/api/v1/models")["models"]
        rollouts = self.admin("GET", "/api/v1/rollouts")["rollouts"]
        return {
            "system": {k: v for k, v in spec.items() if k not in {"endpoints", "version"}},
            "entries": {e["name"]: e for e in spec["endpoints"] if e["name"] != SEC},
            "generations": {e["name"]: e["generation"] for e in endpoints if e["name"] != SEC},
            "models": [
                (m["reference"], m["digest"], m["signatures"]) for m in stored if m["name"] != SEC
            ],
            "rollouts": [(r["id"], r["phase"]) for r in rollouts if r["endpoint"] != SEC],
            "keys": [
                (k["id"], k["state"])
                for k in self.admin("GET", "/api/v1/keys")["keys"]
                if k["scopes"] != ["infer:sec"]
            ],
            "users": self.admin("GET", "/api/v1/users")["users"],
            "reference": self.admin("GET", f"/api/v1/endpoints/{RIVAL}/drift")["reference"][
                "source"
            ],
        }

    def models_of_sec(self) -> set[str]:
        """Names of the models that `sec` refers to, in the spec and as served."""
        view = self.admin("GET", f"/api/v1/endpoints/{SEC}")
        entry, revisions = view["spec"], view["status"]["revisions"]
        references = [r["model"] for r in revisions if r["desired_weight"]]
        references += [v.get("model") for v in (entry, *(entry.get("versions") or ()))]
        return {reference.partition(":")[0] for reference in references if reference}

    def restore(self, original: Mapping[str, Any]) -> None:
        """Apply the `original` spec again if it is not the present one."""
        if self.admin("GET", "/api/v1/spec")["spec"] != original:
            self.call("admin", "POST", f"/api/v1/endpoints/{SEC}/rollout/abort", {})
            self.admin("POST", "/api/v1/apply", original)


@contextlib.contextmanager
def tenants(user: OrdinaryUser, **settings: Any) -> Iterator[Tenants]:
    """The system, ready, with everything in it."""
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with (
        tempfile.TemporaryDirectory(prefix="hr-") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(directory)
        folder.chmod(0o755)
        patch.setenv("PLANTED_VARIABLE", PLANTED)
        (folder / "features.yaml").write_text(json.dumps(DEFINITIONS))
        (folder / "private.pem").write_text(f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n")
        (folder / "private.pem").chmod(0o600)
        apply_definitions(folder / "features.yaml", folder / "home")
        system = System(folder / "home", user=user)
        try:
            system.start(spec={"version": 1}, **{"allow_code": False, **settings})
            system.wait_for(lambda _: True)
            house = Tenants(system, {"admin": system.token()})
            _furnish(house)
            yield house
        finally:
            system.close()


def _furnish(house: Tenants) -> None:
    for seed, name in enumerate((SEC, *(RIVAL, "stock", "lent", "pooled") * 2)):
        source = "" if name == SEC else PLANTED
        pushed = house.push("admin", name, models.mlp(seed=seed), source=source)
        assert pushed.status == 201, pushed
    assert house.push("admin", SEC, models.matmul(), "matmul.onnx").status == 201
    guarded = {"access": ["key", "jwt"]}
    rival = {"labels": {"prob": [PLANTED, "yes"]}, "drift": {}, "timeout_s": 7}
    house.admin(
        "POST",
        "/api/v1/apply?wait_s=60",
        {
            "version": 1,
            "pools": [{"name": "shared"}],
            "endpoints": [
                {"name": SEC, "model": "sec:1", **guarded},
                {"name": RIVAL, "model": "rival:1", **guarded, **rival},
                {"name": "pub", "model": "lent:1", "access": "public"},
                {"name": "pooled", "model": "pooled:1", "pool": "shared", **guarded},
            ],
        },
    )
    for name, role in ROLES.items():
        house.token(name, role)
    key = {"name": f"key-{PLANTED}", "scopes": [f"infer:{RIVAL}"]}
    house.key = house.admin("POST", "/api/v1/keys", key)["id"]
    started = {"version": "2", "rollout": HELD_BACK}
    house.rollout = house.admin("POST", f"/api/v1/endpoints/{RIVAL}/rollout", started)["id"]
    house.system.wait_for(lambda _: _phase(house) == "paused" and house.system.status()["ready"])


def _phase(house: Tenants) -> str:
    return str(house.admin("GET", f"/api/v1/rollouts/{house.rollout}")["phase"])
