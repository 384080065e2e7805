"""The API server itself: a store, its controllers and scripted faults, by HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from tests.kubernetes_server.controllers import Controllers, InstantRuntime, Runtime
from tests.kubernetes_server.fields import FieldConflictError, Object
from tests.kubernetes_server.http import HangUpError, HttpServer, Request, Response
from tests.kubernetes_server.schemas import InvalidObjectError, load
from tests.kubernetes_server.store import RefusedError, Store, matches

KINDS: Final = {
    ("", "configmaps"): "ConfigMap",
    ("", "services"): "Service",
    ("", "pods"): "Pod",
    ("apps", "deployments"): "Deployment",
    ("policy", "poddisruptionbudgets"): "PodDisruptionBudget",
    ("autoscaling", "horizontalpodautoscalers"): "HorizontalPodAutoscaler",
    ("discovery.k8s.io", "endpointslices"): "EndpointSlice",
    ("coordination.k8s.io", "leases"): "Lease",
    ("keda.sh", "scaledobjects"): "ScaledObject",
}
_SCHEMAS: Final = (
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "Pod"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("coordination.k8s.io/v1", "Lease"),
)


@dataclass(slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` requests that it is about, instead of an answer.

    `verbs`, `kind` and `client` (a part of the user agent) empty are about all. `status` answers,
    with `message`; `hang_up` ends the connection; `delay_s` answers late; `page` is said instead of
    a document, and of a watch it is all that comes. `after`: once the request was carried out, so
    that whoever asked cannot know.
    """

    verbs: frozenset[str] = frozenset()
    kind: str = ""
    client: str = ""
    times: int = 1
    status: int = 0
    retry_after: str = ""
    hang_up: bool = False
    after: bool = False
    delay_s: float = 0.0
    page: bytes = b""
    message: str = "a fault that a test asked for"

    def is_about(self, verb: str, kind: str, client: str) -> bool:
        """Whether a request is meant."""
        is_meant = (not self.verbs or verb in self.verbs) and self.kind in {"", kind}
        return self.times > 0 and is_meant and self.client in client


@dataclass(slots=True, kw_only=True)
class FakeApiServer:
    """A cluster of one namespace, as an async context.

    `rules`: of a Role, which every request has to keep to; None allows all. `token`: what everybody
    has to show; empty for nothing. `cut`: parts of user agents of those who are cut off: they get
    no answer at all, and no events. `custom`: whether KEDA's kinds are there.
    """

    store: Store = field(default_factory=Store)
    runtime: Runtime = field(default_factory=InstantRuntime)
    rules: list[Object] | None = None
    token: str = ""
    faults: list[Fault] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    custom: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    bookmark_s: float = 0.2
    longest_watch_s: float = 300.0
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Client, verb, kind and name of each write, in order."""
    controllers: Controllers = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _healed: asyncio.Event = field(default_factory=asyncio.Event)
    _http: HttpServer = field(init=False)
    _controlling: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.controllers = Controllers(self.store, self.runtime)
        self._http = HttpServer(self._handle, self.host, self.port)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._http.port}"

    async def __aenter__(self) -> Self:
        load(_SCHEMAS)
        self.store.on_change = self._note
        await self._http.start()
        self._controlling = asyncio.create_task(self._control())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._controlling is not None:
            self._controlling.cancel()
            await asyncio.wait({self._controlling})
        await self._http.stop()

    def poke(self) -> None:
        """Let the controllers look again: the runtime has news."""
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _control(self) -> None:
        while True:
            changed = self._changed
            self.controllers.settle()
            await changed.wait()

    async def _handle(self, request: Request) -> Response:
        client = request.headers.get("user-agent", "")
        await self._wait_uncut(client)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized", "Unauthorized")
        try:
            group, resource, name = self._target(request.path)
            kind = KINDS[group, resource]
            verb = _verb(request, name)
            self._authorise(group, resource, verb)
            fault = self._fault(verb, kind, client)
            if fault is not None and not fault.after:
                await asyncio.sleep(fault.delay_s)
                _fail(fault)
            if verb == "patch" and (kind, name) not in self.store.objects:
                self._authorise(group, resource, "create")  # an apply may make it
            if verb not in {"get", "list", "watch"}:
                self.requests.append((client, verb, kind, name))
            response = self._answer(request, verb, kind, name, client)
            if fault is not None and fault.after:
                _fail(fault)
        except RefusedError as error:
            return _status(error.code, error.reason, str(error))
        except FieldConflictError as error:
            return _status(409, "Conflict", f"{error}: {error.causes}")
        except InvalidObjectError as error:
            return _status(422, "Invalid", str(error))
        except _FaultError as error:
            return error.response
        await self._wait_uncut(client)
        return response

    def cut_off(self, client: str) -> None:
        """Cut those off whose user agent has this in it."""
        self.cut.add(client)

    def heal(self) -> None:
        """Let everybody through again."""
        self.cut.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _wait_uncut(self, client: str) -> None:
        while any(part in client for part in self.cut):
            await self._healed.wait()

    def _target(self, path: str) -> tuple[str, str, str]:
        """Group, resource and name."""
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            parts.insert(1, "")
        group, rest = parts[1], parts[3:]
        if len(rest) < 3 or rest[0] != "namespaces" or rest[1] != self.store.namespace:
            raise RefusedError(404, "NotFound", f"the server has no {path}")
        if (group, rest[2]) not in KINDS or (group == "keda.sh" and not self.custom):
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        return group, rest[2], rest[3] if len(rest) > 3 else ""

    def _authorise(self, group: str, resource: str, verb: str) -> None:
        self.seen.add((group, resource, verb))
        if self.rules is not None and not any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        ):
            raise RefusedError(
                403, "Forbidden", f"cannot {verb} resource {resource!r} in {group!r}"
            )

    def _fault(self, verb: str, kind: str, client: str) -> Fault | None:
        fault = next((one for one in self.faults if one.is_about(verb, kind, client)), None)
        if fault is not None:
            fault.times -= 1
        return fault

    def _answer(self, request: Request, verb: str, kind: str, name: str, client: str) -> Response:
        query = request.query
        manager = query.get("fieldManager", "unknown")
        if verb == "watch":
            return Response(lines=self._watch(kind, query, client))
        match verb:
            case "list":
                found = self._list(kind, query)
            case "get":
                found = self.store.get(kind, name)
            case "create":
                found = self.store.create(request.json(), manager=manager)
            case "update":
                found = self.store.update(request.json(), manager=manager)
            case "delete":
                found = self._delete(kind, name, request.json())
            case _:
                found = self._patch(kind, name, request, manager)
        return Response(status=201 if verb == "create" else 200, body=found)

    def _patch(self, kind: str, name: str, request: Request, manager: str) -> Object:
        match request.headers.get("content-type", ""):
            case "application/apply-patch+yaml":
                force = request.query.get("force") == "true"
                if not manager or manager == "unknown":
                    raise RefusedError(400, "BadRequest", "fieldManager is required for apply")
                return self.store.apply(request.json(), manager=manager, force=force)
            case "application/merge-patch+json":
                return self.store.patch(kind, name, request.json(), manager=manager)
            case other:
                raise RefusedError(415, "UnsupportedMediaType", f"cannot patch by {other}")

    def _delete(self, kind: str, name: str, options: Mapping[str, Any]) -> Object:
        wanted = options.get("preconditions") or {}
        return self.store.delete(
            kind,
            name,
            uid=wanted.get("uid", ""),
            version=wanted.get("resourceVersion", ""),
            grace=kind == "Pod",
        )

    def _list(self, kind: str, query: Mapping[str, str]) -> Object:
        """A page; items have neither kind nor version of theirs, as real lists have it."""
        found = self.store.of_kind(kind, _selector(query))
        version, start = self.store.version, 0
        if token := query.get("continue"):
            at, _, offset = token.partition(":")
            version, start = int(at), int(offset)
            if version < self.store.compacted:
                raise RefusedError(410, "Expired", "the continue token is too old")
        limit = int(query.get("limit") or len(found) or 1)
        page = found[start : start + limit]
        metadata: Object = {"resourceVersion": str(version)}
        if start + limit < len(found):
            metadata["continue"] = f"{version}:{start + limit}"
        plain = [
            {key: value for key, value in one.items() if key not in {"kind", "apiVersion"}}
            for one in page
        ]
        return {"kind": f"{kind}List", "metadata": metadata, "items": plain}

    async def _watch(
        self, kind: str, query: Mapping[str, str], client: str
    ) -> AsyncIterator[object]:
        version = int(query["resourceVersion"])
        selector = _selector(query)
        loop = asyncio.get_running_loop()
        ends = loop.time() + min(float(query.get("timeoutSeconds", 60)), self.longest_watch_s)
        while loop.time() < ends:
            changed = self._changed
            try:
                events = list(self.store.since(version, kind))
            except RefusedError as error:
                yield {"type": "ERROR", "object": _document(error.code, error.reason, str(error))}
                return
            await self._wait_uncut(client)
            for event in events:
                version = event.version
                shown = _display(event.type, event.found, event.before, selector)
                if shown:
                    yield {"type": shown, "object": event.found}
            try:
                async with asyncio.timeout(self.bookmark_s):
                    await changed.wait()
            except TimeoutError:
                version = max(version, self.store.version)
                metadata = {"resourceVersion": str(version)}
                yield {"type": "BOOKMARK", "object": {"kind": kind, "metadata": metadata}}


class _FaultError(Exception):
    def __init__(self, response: Response) -> None:
        super().__init__("scripted")
        self.response = response


def _fail(fault: Fault) -> None:
    if fault.hang_up:
        raise HangUpError
    if fault.page:
        raise _FaultError(Response(status=fault.status or 200, page=fault.page))
    if fault.status:
        headers = {"retry-after": fault.retry_after} if fault.retry_after else {}
        document = _document(fault.status, "Scripted", fault.message)
        raise _FaultError(Response(status=fault.status, body=document, headers=headers))


def _verb(request: Request, name: str) -> str:
    if request.method == "GET":
        if name:
            return "get"
        return "watch" if request.query.get("watch") == "true" else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _selector(query: Mapping[str, str]) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in query.get("labelSelector", "").split(",") if pair)
    return {key: value for key, _, value in pairs}


def _display(kind: str, found: Object, before: Object | None, selector: Mapping[str, str]) -> str:
    """As what a watch with a selector sees an event; empty if it does not."""
    is_in = kind != "DELETED" and matches(found, selector)
    was_in = before is not None and matches(before, selector)
    if is_in:
        return "MODIFIED" if was_in else "ADDED"
    return "DELETED" if was_in else ""


def _status(code: int, reason: str, message: str) -> Response:
    return Response(status=code, body=_document(code, reason, message))


def _document(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
