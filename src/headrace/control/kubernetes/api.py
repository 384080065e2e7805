"""The requests that the driver makes of an API server, as plain objects.

Not by a client library's models: those drop fields that they do not know, so that drift in them
would go unseen, and lightkube's watch begins anew after 410 without a list, so that what was
deleted meanwhile would stay for ever. Its reading of kubeconfigs and its authentication are used
(`headrace.control.kubernetes.connection`).
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.control.kubernetes.failures import (
    NO_API_SERVER,
    ApiUnavailableError,
    ObjectMissingError,
    WatchExpiredError,
    failure_of,
)
from headrace.control.kubernetes.names import FIELD_MANAGER, Object
from headrace.control.kubernetes.resources import RESOURCES
from headrace.core import HeadraceError

if TYPE_CHECKING:
    import httpx2

_PAGE: Final = 500
_GONE: Final = 410
_OK: Final = 300
_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_MERGE: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_MARK: Final = frozenset({"resourceVersion"})
_TYPES: Final = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})
_NAME: Final = frozenset({"resourceVersion", "name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """All objects of a kind, and the version from which a watch goes on."""

    items: list[Object]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """`ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`."""

    type: str
    found: Object

    @property
    def version(self) -> str:
        """From where the next watch goes on."""
        return str(self.found["metadata"]["resourceVersion"])


@dataclass(slots=True, kw_only=True)
class ClusterApi:
    """One namespace of one cluster; nothing is retried here.

    All methods raise what `failure_of` makes of an answer, and ApiUnavailableError where there was
    none in `timeout_s`.
    """

    http: "httpx2.AsyncClient"
    namespace: str
    timeout_s: float = 10.0

    async def get(self, kind: str, name: str) -> Object | None:
        """The object; None if there is none."""
        try:
            return await self._ask("GET", kind, name)
        except ObjectMissingError:
            return None

    async def list(self, kind: str, selector: str) -> Listed:
        """All that have these labels, page by page."""
        items: list[Object] = []
        params = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            page = await self._ask("GET", kind, params=params)
            resource = RESOURCES[kind]
            told = {"kind": kind, "apiVersion": resource.api_version}  # items of lists lack them
            try:
                items += [_whole({**told, **item}, _NAME) for item in page.get("items") or ()]
                following = page["metadata"].get("continue")
                version = str(page["metadata"]["resourceVersion"])
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ApiUnavailableError(f"list {kind}: this is no list of them") from error
            if not following:
                return Listed(items=items, version=version)
            params["continue"] = following

    async def watch(
        self, kind: str, selector: str, version: str, *, for_s: int
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `version`, until the server ends it.

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
                if answer.status_code >= _OK:
                    body = await answer.aread()
                    raise _failure(answer, body, f"watch {kind}")
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield _event(json.loads(line), kind)
        except (httpx2.HTTPError, httpx2.StreamError, ValueError) as error:
            raise ApiUnavailableError(f"watch {kind}: {_name(error)}") from error

    async def apply(self, wanted: Object, *, force: bool, manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply: the object as it is then.

        Raises:
            ObjectChangedError: Others manage what we say, and `force` is off.
        """
        params = {"fieldManager": manager, "force": "true" if force else "false"}
        name = wanted["metadata"]["name"]
        return await self._ask(
            "PATCH", wanted["kind"], name, params=params, body=wanted, content_type=_APPLY
        )

    async def merge(self, kind: str, name: str, change: Object) -> Object:
        """Change some fields of an object."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._ask("PATCH", kind, name, params=params, body=change, content_type=_MERGE)

    async def create(self, new: Object) -> Object:
        """Make an object; ObjectChangedError if it is there."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._ask("POST", new["kind"], params=params, body=new)

    async def update(self, new: Object) -> Object:
        """Write an object of a known version; ObjectChangedError if it has another now."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._ask("PUT", new["kind"], new["metadata"]["name"], params=params, body=new)

    async def delete(self, found: Object) -> None:
        """Remove this very object, and what belongs to it; no error if it is gone."""
        metadata = found["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"]},
        }
        try:
            await self._ask("DELETE", found["kind"], metadata["name"], body=body)
        except ObjectMissingError:
            return

    async def _ask(
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

        what = f"{method.lower()} {kind} {name}".strip()
        try:
            answer = await self.http.request(
                method,
                RESOURCES[kind].path(self.namespace, name),
                params=params,
                content=None if body is None else json.dumps(body),
                headers={"content-type": content_type, "accept": _JSON},
                timeout=self.timeout_s,
            )
            if answer.status_code >= _OK:
                raise _failure(answer, answer.content, what)
            if answer.content.lstrip()[:1] == b"<":
                raise ApiUnavailableError(f"{what}: {NO_API_SERVER}")
            found: Object = answer.json()
            if not isinstance(found, dict):
                raise ValueError("the answer is no object")  # noqa: TRY004, TRY301  # as what is no JSON
        except (httpx2.HTTPError, ValueError) as error:
            raise ApiUnavailableError(f"{what}: {_name(error)}") from error
        return found


def _failure(answer: "httpx2.Response", body: bytes, what: str) -> HeadraceError:
    return failure_of(answer.status_code, body, answer.headers.get("retry-after", ""), what=what)


def _event(told: object, kind: str) -> WatchEvent:
    """One line of a watch; ValueError if it is none."""
    if not isinstance(told, dict) or not isinstance(found := told.get("object"), dict):
        raise ValueError("this is no event")  # noqa: TRY004  # as what is no JSON
    if told.get("type") == "ERROR":
        code = int(found.get("code") or 0)
        message = f"watch {kind}: {found.get('message', '')}"
        if code == _GONE:
            raise WatchExpiredError(message)
        raise ApiUnavailableError(message)
    if told.get("type") not in _TYPES:
        raise ValueError("this is no event")
    needs = _MARK if told["type"] == "BOOKMARK" else _NAME
    return WatchEvent(type=told["type"], found=_whole(found, needs))


def _whole(found: Object, needs: frozenset[str]) -> Object:
    """An object as everybody relies on it; ValueError if it lacks what names it."""
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or not needs <= metadata.keys() or "kind" not in found:
        raise ValueError("this is no object of a cluster")
    return found


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
