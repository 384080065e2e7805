"""Namespace of a test on a real cluster, with calls that wait for their answer."""

import builtins
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from headrace.control.kubernetes.api import RESOURCES
from tests.kube_server.lab import Lab

Object = dict[str, Any]
_VERSIONS: Final = {
    **{resource.kind: resource.api_version for resource in RESOURCES.values()},
    "Event": "v1",
    "Secret": "v1",
    "ServiceAccount": "v1",
    "ReplicaSet": "apps/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ResourceQuota": "v1",
}
_MERGE: Final = "application/merge-patch+json"
_PATIENCE_S: Final = 60.0


@dataclass(slots=True)
class TestNamespace:
    """One namespace, as its administrator sees it."""

    lab: Lab
    name: str
    http: httpx2.Client
    __test__ = False

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """Return all objects of a kind, by name."""
        answer = self.call("GET", self.path(kind), params={"labelSelector": selector})
        items: list[Object] = answer.json()["items"]
        return sorted(items, key=lambda one: str(one["metadata"]["name"]))

    def names(self, kind: str, selector: str = "") -> builtins.list[str]:
        """Return the names of all objects of a kind; of ConfigMaps without the cluster's own."""
        names = [one["metadata"]["name"] for one in self.list(kind, selector)]
        return [name for name in names if name != "kube-root-ca.crt"]

    def get(self, kind: str, name: str) -> Object:
        """Return an object; an empty one if it does not exist."""
        answer = self.http.get(self.path(kind, name))
        document: Object = {} if answer.status_code == 404 else answer.raise_for_status().json()
        return document

    def create(self, new: Object) -> Object:
        """Create an object."""
        path = self.path(new["kind"], version=new["apiVersion"])
        document: Object = self.call("POST", path, json=new).json()
        return document

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """Change an object by a merge patch."""
        headers = {"content-type": _MERGE}
        path = self.path(kind, name)
        document: Object = self.call("PATCH", path, json=change, headers=headers).json()
        return document

    def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        self.call("DELETE", self.path(kind, name))

    def evict(self, pod: str) -> bool:
        """Evict a pod, as `kubectl drain` does; return whether its disruption budget allows it."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.name},
        }
        answer = self.http.post(f"{self.path('Pod', pod)}/eviction", json=body)
        return answer.is_success

    def token(self, account: str, rules: Sequence[Object]) -> str:
        """Return a token of a new service account that has these rules."""
        group = "rbac.authorization.k8s.io"
        ref = {"apiGroup": group, "kind": "Role", "name": account}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.name}
        for kind, more in (
            ("ServiceAccount", {}),
            ("Role", {"rules": list(rules)}),
            ("RoleBinding", {"roleRef": ref, "subjects": [subject]}),
        ):
            head = {"apiVersion": _VERSIONS[kind], "kind": kind, "metadata": {"name": account}}
            self.create(head | more)
        path = f"{self.path('ServiceAccount', account)}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token: str = self.call("POST", path, json=request).json()["status"]["token"]
        return token

    def path(self, kind: str, name: str = "", *, version: str = "") -> str:
        """Return the path of a kind or an object; a kind that is not ours needs its version."""
        version = version or _VERSIONS[kind]
        root = "api" if version == "v1" else "apis"
        path = f"/{root}/{version}/namespaces/{self.name}/{kind.lower()}s"
        return f"{path}/{name}" if name else path

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:  # noqa: ANN401  # as httpx2's
        """Return the answer to any request; AssertionError with what the server says otherwise."""
        answer = self.http.request(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer


@contextmanager
def a_namespace(lab: Lab, *, pod_security: str = "restricted") -> Iterator[TestNamespace]:
    """Make a namespace whose pods must keep to a Pod Security Standard; delete it at the end."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {f"pod-security.kubernetes.io/{mode}": pod_security for mode in ("enforce", "warn")}
    metadata = {"name": name, "labels": labels}
    new = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    with lab.cluster.blocking_http() as http:
        namespace = TestNamespace(lab, name, http)
        namespace.call("POST", "/api/v1/namespaces", json=new)
        # No pod is admitted before.
        wait_until(lambda: namespace.get("ServiceAccount", "default"))
        try:
            yield namespace
        finally:
            namespace.call("DELETE", f"/api/v1/namespaces/{name}")


def wait_until(holds: Callable[[], object], timeout_s: float = _PATIENCE_S) -> None:
    """Return once `holds`; AssertionError if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
