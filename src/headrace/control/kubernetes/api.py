"""Client of a Kubernetes API server: requests, errors, and the required Role.

Objects are plain dictionaries. lightkube reads kubeconfigs and authenticates; its requests are not
used, for the reasons in `docs/explain/decisions/kubernetes-driver.md`.
"""

import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

import headrace
from headrace.control.kubernetes.names import (
    FIELD_MANAGER,
    GROUP,
    RESOURCE,
    RESOURCE_PLURAL,
    RESOURCE_VERSION,
    Object,
)
from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.core.backoff import Backoff
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.kubernetes import Autoscaler
from headrace.observe.histogram import Histogram

if TYPE_CHECKING:
    import httpx2

_PAGE: Final = 500
DURATION_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_MERGE: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_EVENT_TYPES: Final = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})
BACKOFF: Final = Backoff(first_s=0.2, limit_s=30.0)
_MAX_MESSAGE: Final = 400
_NO_API_SERVER: Final = (
    "the response is a web page, not an API server's: check for a proxy in between"
)
_ADMISSION: Final = re.compile(
    r"exceeded quota|being terminated|admission webhook|denied (the )?request|violates PodSecurity"
)
_IMMUTABLE: Final = re.compile("immutable|may not change")


class ObjectMissingError(NotFoundError):
    """The object, or its kind, does not exist."""


class ObjectChangedError(ConflictError):
    """The object changed since it was read, or another manager owns a field that we set."""


class ObjectFixedError(FailedPreconditionError):
    """The request would change an immutable field."""


class WatchExpiredError(HeadraceError):
    """The resource version is too old to watch from: everything has to be listed again."""


class ApiUnavailableError(UnavailableError):
    """The API server cannot answer now."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ObjectFailedError(ApiUnavailableError):
    """The API server fails for this object only, for example because a webhook does not answer."""


class LeadershipLostError(UnavailableError):
    """Another control plane leads or may lead, so this process must exit."""


_ERRORS: Final[dict[int, tuple[type[HeadraceError], str]]] = {
    HTTPStatus.GONE: (WatchExpiredError, ""),
    HTTPStatus.CONFLICT: (ObjectChangedError, ""),
    HTTPStatus.NOT_FOUND: (ObjectMissingError, ""),
    HTTPStatus.FORBIDDEN: (
        PermissionDeniedError,
        " (the control plane's Role lacks this; the chart's has it)",
    ),
    HTTPStatus.UNAUTHORIZED: (
        UnauthenticatedError,
        " (is the token of its service account mounted?)",
    ),
}


def failure_of(status: int, body: bytes, retry_after: str, *, description: str) -> HeadraceError:
    """Return the error for an answer of the API server.

    Args:
        retry_after: The `retry-after` header in seconds.
        what: The request, for the message.
    """
    if body.lstrip()[:1] == b"<":
        # A 404 of a proxy does not mean that the object is gone.
        return ApiUnavailableError(f"{description}: {_NO_API_SERVER} (HTTP status {status})")
    try:
        text = str(msgspec.json.decode(body).get("message", ""))
    except (AttributeError, *UNDECODABLE):
        text = body.decode("utf-8", "replace")
    message = f"{description}: {text.strip()[:_MAX_MESSAGE] or f'HTTP status {status}'}"
    if status in {HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT}:
        return ObjectFailedError(message)
    if status >= HTTPStatus.FORBIDDEN and _ADMISSION.search(message) is not None:
        return PermissionDeniedError(message)  # a webhook chooses its status; no Role fixes it
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        try:
            retry_after_s = max(float(retry_after), 0.0)
        except ValueError:
            retry_after_s = None  # a date, or nothing
        return ApiUnavailableError(message, retry_after_s=retry_after_s)
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and _IMMUTABLE.search(message) is not None:
        return ObjectFixedError(message)
    kind, remedy = _ERRORS.get(status, (InvalidArgumentError, ""))
    return kind(f"{message}{remedy}")


def delay_s(
    failures: int,
    *,
    asked_s: float | None = None,
    backoff: Backoff = BACKOFF,
    chance: Callable[[], float] = random.random,
) -> float:
    """Return the backoff in seconds after `failures` failures in a row, with jitter.

    Args:
        asked_s: The server's `retry-after`, used as the minimum.
        chance: Random number between 0 and 1, which spreads simultaneous retries.
    """
    jittered = backoff.jittered_s(failures, chance=chance())
    return jittered if asked_s is None else max(asked_s * (1.0 + 0.1 * chance()), jittered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind and its API path."""

    kind: str
    api_version: str
    plural: str
    is_optional: bool = False
    """Whether a cluster may lack the kind, or deny access to it."""

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of all objects of this kind in a namespace, or of the named one."""
        root = "api" if "/" not in self.api_version else "apis"
        base = f"/{root}/{self.api_version}/namespaces/{namespace}/{self.plural}"
        return f"{base}/{name}" if name else base


RESOURCES: Final = {
    resource.kind: resource
    for resource in (
        Resource(kind="ConfigMap", api_version="v1", plural="configmaps"),
        Resource(kind="Service", api_version="v1", plural="services"),
        Resource(kind="Pod", api_version="v1", plural="pods"),
        Resource(kind="Deployment", api_version="apps/v1", plural="deployments"),
        Resource(
            kind="PodDisruptionBudget", api_version="policy/v1", plural="poddisruptionbudgets"
        ),
        Resource(
            kind="HorizontalPodAutoscaler",
            api_version="autoscaling/v2",
            plural="horizontalpodautoscalers",
            is_optional=True,
        ),
        Resource(
            kind="ScaledObject",
            api_version="keda.sh/v1alpha1",
            plural="scaledobjects",
            is_optional=True,
        ),
        Resource(kind="EndpointSlice", api_version="discovery.k8s.io/v1", plural="endpointslices"),
        Resource(kind="Lease", api_version="coordination.k8s.io/v1", plural="leases"),
        Resource(kind="Event", api_version="v1", plural="events"),
        Resource(
            kind=RESOURCE,
            api_version=f"{GROUP}/{RESOURCE_VERSION}",
            plural=RESOURCE_PLURAL,
            is_optional=True,
        ),
        Resource(kind="Secret", api_version="v1", plural="secrets"),
        Resource(kind="ServiceAccount", api_version="v1", plural="serviceaccounts"),
    )
}
_UNWATCHED: Final = {"Lease", "Secret", "ServiceAccount", "Event", RESOURCE}
WATCHED: Final = tuple(kind for kind in RESOURCES if kind not in _UNWATCHED)
"""Kinds that decisions depend on."""
_MANAGED: Final = ("get", "list", "watch", "create", "patch", "delete")


def role_rules(autoscaler: Autoscaler | None = None, gateway_secret: str = "") -> list[Object]:
    """Return the rules of the control plane's Role: exactly the requests of this client.

    Args:
        autoscaler: None for the rules of all autoscalers.
        gateway_secret: The one Secret that it changes; empty for none.
    """
    rules: list[tuple[str, list[str], tuple[str, ...]]] = [
        ("", ["configmaps", "services"], _MANAGED),
        ("apps", ["deployments"], _MANAGED),
        ("policy", ["poddisruptionbudgets"], _MANAGED),
        # Pods belong to their Deployment: we read them, set their deletion cost, and label the
        # leader's.
        ("", ["pods"], ("list", "watch", "patch")),
        ("discovery.k8s.io", ["endpointslices"], ("list", "watch")),
        ("coordination.k8s.io", ["leases"], ("get", "create", "update")),
        (GROUP, [RESOURCE_PLURAL], ("list", "watch", "patch")),
        (GROUP, [f"{RESOURCE_PLURAL}/status"], ("patch",)),
        ("", ["events"], ("create", "patch")),
        ("", ["serviceaccounts"], ("get",)),  # an owner of our objects
    ]
    if autoscaler in {None, Autoscaler.HPA}:
        rules.append(("autoscaling", ["horizontalpodautoscalers"], _MANAGED))
    if autoscaler in {None, Autoscaler.KEDA}:
        rules.append(("keda.sh", ["scaledobjects"], _MANAGED))
    secret = {"resources": ["secrets"], "resourceNames": [gateway_secret], "verbs": ["patch"]}
    return [
        *(
            {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}
            for group, resources, verbs in rules
        ),
        *([{"apiGroups": [""], **secret}] if gateway_secret else ()),
    ]


def connect(*, identity: str, url: str = "", context: str = "") -> "httpx2.AsyncClient":
    """Return a client of the API server; the caller closes it.

    Args:
        identity: Part of the user agent, for the server's log.
        url: URL of a proxy without authentication, such as `kubectl proxy`; empty tries the service
            account of a pod, then a kubeconfig (`KUBECONFIG`, `~/.kube/config`).
        context: Context of the kubeconfig; empty for its current one.

    Raises:
        FailedPreconditionError: No API server is configured, or the extra is not installed.
    """
    try:
        import httpx2  # noqa: PLC0415  # only this driver needs it
        from lightkube.config.client_adapter import (  # noqa: PLC0415  # as above
            AsyncClient,
            ConnectionParams,
        )
        from lightkube.config.kubeconfig import KubeConfig  # noqa: PLC0415  # as above
        from lightkube.core.exceptions import ConfigError  # noqa: PLC0415  # as above
    except ImportError as error:
        raise FailedPreconditionError(
            "the driver kubernetes needs headrace[kubernetes]: "
            "python -m pip install 'headrace[kubernetes]'"
        ) from error
    headers = {"user-agent": f"headrace/{headrace.__version__} ({identity})"}
    if url:
        return httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False)
    try:
        config = KubeConfig.from_env().get(context or None)
        if config is None or config.user is None:
            raise FailedPreconditionError(f"the kubeconfig has no context {context!r} with a user")
        client = AsyncClient(config, ConnectionParams())
    except (ConfigError, OSError) as error:
        raise FailedPreconditionError(
            f"no way to a cluster: {error}; run in a pod with a service account, set KUBECONFIG, "
            "or name a proxy (--kube-url)"
        ) from error
    client.headers.update(headers)
    return client


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectList:
    """All objects of a kind, and the resource version from which a watch continues."""

    items: list[Object]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """`ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`."""

    type: str
    live: Object

    @property
    def version(self) -> str:
        """Resource version from which the next watch continues."""
        return str(self.live["metadata"]["resourceVersion"])


@dataclass(slots=True, kw_only=True)
class ClusterApi:
    """API of one namespace of a cluster, without retries.

    All methods raise the error that `failure_of` returns for an answer, and ApiUnavailableError
    without an answer in time.
    """

    http: "httpx2.AsyncClient"
    namespace: str
    timeout_s: float = 10.0
    """Timeout of connecting and of reads."""
    write_timeout_s: float = 40.0
    """Longer than the longest timeout of a webhook, 30 s: then the server's answer has the reason.
    """
    durations: dict[tuple[str, str, str], Histogram] = field(default_factory=dict)
    """Durations of requests, without watches, by verb, kind and result: `2xx` or `failed`."""

    async def get(self, kind: str, name: str) -> Object | None:
        """Return the object; None if it does not exist."""
        try:
            return await self._request("GET", kind, name)
        except ObjectMissingError:
            return None

    async def list(self, kind: str, selector: str) -> ObjectList:
        """Return all objects with these labels, read page by page."""
        items: list[Object] = []
        params = {"labelSelector": selector, "limit": str(_PAGE)}
        type_ = {"kind": kind, "apiVersion": RESOURCES[kind].api_version}  # list items lack it
        while True:
            page = await self._request("GET", kind, params=params)
            try:
                items += [_checked({**type_, **item}) for item in page.get("items") or ()]
                following = page["metadata"].get("continue")
                version = str(page["metadata"]["resourceVersion"])
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ApiUnavailableError(f"list {kind}: the response is not a list") from error
            if not following:
                return ObjectList(items=items, version=version)
            params["continue"] = following

    async def watch(
        self, kind: str, selector: str, version: str, *, for_s: int
    ) -> AsyncIterator[WatchEvent]:
        """Yield changes after `version`, until the server ends the watch.

        Raises:
            WatchExpiredError: `version` is too old.
            ApiUnavailableError: The connection broke, or was silent for longer than `for_s`.
        """
        import httpx2  # noqa: PLC0415  # only where this driver is chosen

        params = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(for_s),
        }
        url = RESOURCES[kind].path(self.namespace)
        timeout = httpx2.Timeout(self.timeout_s, read=for_s + self.timeout_s)
        try:
            async with self.http.stream("GET", url, params=params, timeout=timeout) as answer:
                if not answer.is_success:
                    raise _failure(answer, await answer.aread(), f"watch {kind}")
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield _event(msgspec.json.decode(line), kind)
        except (httpx2.HTTPError, httpx2.StreamError, ValueError, *UNDECODABLE) as error:
            raise _no_answer(f"watch {kind}", error) from error

    async def apply(
        self,
        manifest: Object,
        *,
        force: bool,
        manager: str = FIELD_MANAGER,
        subresource: str = "",
    ) -> Object:
        """Apply a manifest on the server side; return the resulting object.

        Raises:
            ObjectChangedError: Another manager owns a field of `manifest`, and `force` is off.
        """
        params = {"fieldManager": manager, "force": "true" if force else "false"}
        name = "/".join(filter(None, (manifest["metadata"]["name"], subresource)))
        return await self._request(
            "PATCH", manifest["kind"], name, params=params, body=manifest, content_type=_APPLY
        )

    async def merge(self, kind: str, name: str, change: Object) -> Object:
        """Change some fields of an object with a merge patch."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._request(
            "PATCH", kind, name, params=params, body=change, content_type=_MERGE
        )

    async def create(self, new: Object) -> Object:
        """Create an object; ObjectChangedError if it exists."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._request("POST", new["kind"], params=params, body=new)

    async def update(self, new: Object) -> Object:
        """Replace an object of a resource version; ObjectChangedError if the version differs."""
        params = {"fieldManager": FIELD_MANAGER}
        name = new["metadata"]["name"]
        return await self._request("PUT", new["kind"], name, params=params, body=new)

    async def delete(self, live: Object) -> None:
        """Delete this version of an object, and its dependents; no error if it is gone.

        Raises:
            ObjectChangedError: The object changed since it was read.
        """
        metadata = live["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }
        try:
            await self._request("DELETE", live["kind"], metadata["name"], body=body)
        except ObjectMissingError:
            return

    async def _request(
        self,
        method: str,
        kind: str,
        name: str = "",
        *,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> Object:
        import httpx2  # noqa: PLC0415  # only where this driver is chosen

        description = f"{method.lower()} {kind} {name}".strip()
        read_s = self.timeout_s if body is None else self.write_timeout_s
        started, result = time.monotonic(), "failed"
        try:
            answer = await self.http.request(
                method,
                RESOURCES[kind].path(self.namespace, name),
                params=params,
                content=None if body is None else msgspec.json.encode(body),
                headers={"content-type": content_type, "accept": _JSON},
                timeout=httpx2.Timeout(self.timeout_s, read=read_s),
            )
            result = f"{answer.status_code // 100}xx"
            if not answer.is_success:
                raise _failure(answer, answer.content, description)
            if answer.content.lstrip()[:1] == b"<":
                raise ApiUnavailableError(f"{description}: {_NO_API_SERVER}")
            document: Object = msgspec.json.decode(answer.content)
            if not isinstance(document, dict):
                raise ValueError("the response is not an object")  # noqa: TRY004, TRY301  # like invalid JSON
        except (httpx2.HTTPError, ValueError, *UNDECODABLE) as error:
            raise _no_answer(description, error) from error
        finally:
            key = (method.lower(), kind, result)
            duration = self.durations.setdefault(key, Histogram(DURATION_BOUNDS_S))
            duration.observe(time.monotonic() - started)
        return document


def _failure(answer: "httpx2.Response", body: bytes, description: str) -> HeadraceError:
    return failure_of(
        answer.status_code, body, answer.headers.get("retry-after", ""), description=description
    )


def _no_answer(description: str, error: Exception) -> ApiUnavailableError:
    import httpx2  # noqa: PLC0415  # only where this driver is chosen

    # A server that was reached and does not answer usually waits for a webhook of the object.
    kind = ObjectFailedError if isinstance(error, httpx2.ReadTimeout) else ApiUnavailableError
    return kind(f"{description}: {type(error).__name__}: {error}".rstrip(": "))


def _event(event: object, kind: str) -> WatchEvent:
    """Return the event in one line of a watch; ValueError if it is invalid."""
    if not isinstance(event, dict) or not isinstance(live := event.get("object"), dict):
        raise ValueError("not a watch event")  # noqa: TRY004  # like invalid JSON
    if event.get("type") == "ERROR":
        message = f"watch {kind}: {live.get('message', '')}"
        if int(live.get("code") or 0) == HTTPStatus.GONE:
            raise WatchExpiredError(message)
        raise ApiUnavailableError(message)
    if event.get("type") not in _EVENT_TYPES:
        raise ValueError("not a watch event")
    return WatchEvent(type=event["type"], live=_checked(live, has_name=event["type"] != "BOOKMARK"))


def _checked(live: Object, *, has_name: bool = True) -> Object:
    """Return `live`; ValueError if it lacks the fields that identify an object."""
    metadata = live.get("metadata")
    required = {"resourceVersion", "name"} if has_name else {"resourceVersion"}
    if not isinstance(metadata, dict) or not required <= metadata.keys() or "kind" not in live:
        raise ValueError("not a Kubernetes object")
    return live
