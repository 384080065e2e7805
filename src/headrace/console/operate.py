"""Actions on an endpoint: scale, pause, resume, undo, and serving a model version."""

from typing import Final
from urllib.parse import quote

from headrace.console.forms import FormInput, checked_number, confirmation, spec_diff
from headrace.console.view import (
    PageRequest,
    PageView,
    RefusedError,
    may_operate,
)
from headrace.control.api.endpoints import EndpointView, GenerationView
from headrace.control.api.models import KnownVersion
from headrace.control.auth.roles import Role

_MAX_REPLICAS: Final = 1024
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_PAUSES: Final = {
    "pause": (
        "Pause",
        "The gateway refuses all requests with 503 until the endpoint is resumed. Replicas run on.",
    ),
    "resume": ("Resume", "The gateway accepts the requests of the endpoint again."),
}


async def scale(request: PageRequest) -> PageView:
    """Return the form for the number of replicas."""
    name = request.names["name"]
    request.require_operator(name)
    view = await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    spec = view.spec or {}
    autoscale = spec.get("autoscale")
    replicas = [copy for revision in view.status.revisions for copy in revision.replicas]
    ready = sum(replica.state == "ready" for replica in replicas)

    def number(key: str, label: str, current: int, least: int = 1) -> FormInput:
        return FormInput(
            name=key,
            label=label,
            kind="number",
            value=request.form.get(key, str(current)),
            least=least,
            most=_MAX_REPLICAS,
            is_required=True,
        )

    if autoscale is None:
        split = spec.get("versions") or [spec]
        current = max(version.get("replicas", 1) for version in split)
        inputs = [number("replicas", "Replicas of each version", current)]
        consequence = (
            "Changes the number of processes that serve each version. Surplus replicas finish "
            "their requests before they stop."
        )
    else:
        inputs = [
            number("min_replicas", "Minimum", autoscale.get("min_replicas", 1), 0),
            number("max_replicas", "Maximum", autoscale.get("max_replicas", 4)),
        ]
        consequence = "Changes the bounds within which the autoscaler sets the number of replicas."
    return confirmation(
        request,
        title=f"Scale {name}?",
        consequence=consequence,
        label="Scale",
        crumbs=_crumbs(name),
        section="fleet",
        inputs=inputs,
        lead=(("ok" if ready else "warning", f"{ready} of {len(replicas)} replicas ready"), ""),
    )


async def send_scale(request: PageRequest) -> str:
    """Send the number of replicas; return the endpoint's page."""
    name = request.names["name"]
    keys = [key for key in ("replicas", "min_replicas", "max_replicas") if key in request.form]
    numbers = {key: checked_number(request.form[key]) for key in keys}
    if None in numbers.values():
        raise RefusedError.of(_BAD_REQUEST, "the number of replicas must be an integer")
    await request.change(f"/api/v1/endpoints/{name}/scale", numbers)
    return f"/endpoints/{name}"


async def pause(request: PageRequest) -> PageView:
    """Return the page that asks whether to pause or resume an endpoint."""
    name, verb = request.names["name"], _verb(request)
    request.require_operator(name)
    await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    label, consequence = _PAUSES[verb]
    return confirmation(
        request,
        title=f"{label} {name}?",
        consequence=consequence,
        label=label,
        crumbs=_crumbs(name),
        section="fleet",
        look="danger" if verb == "pause" else "primary",
    )


async def send_pause(request: PageRequest) -> str:
    """Pause or resume an endpoint; return its page."""
    name, verb = request.names["name"], _verb(request)
    await request.change(f"/api/v1/endpoints/{name}/{verb}", {})
    return f"/endpoints/{name}"


def _verb(request: PageRequest) -> str:
    verb = request.names["verb"]
    if verb not in _PAUSES:
        raise RefusedError.of(_NOT_FOUND, f"unknown endpoint action: {verb[:20]!r}")
    return verb


async def undo(request: PageRequest) -> PageView:
    """Return the page that shows what a former generation changes."""
    name, number = request.names["name"], request.names["generation"]
    request.require_operator(name)
    view = await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    path = f"/api/v1/endpoints/{name}/history/{number}"
    past = await request.visitor.get(path, GenerationView)
    versions = ", ".join(f"{pinned.model} ({pinned.weight} %)" for pinned in past.versions)
    is_under_way = view.rollout is not None and not view.rollout.over
    return confirmation(
        request,
        title=f"Undo {name} to generation {number}?",
        consequence=(
            f"The endpoint serves {versions} again, with the settings of then, at once and without "
            "a rollout. Lines with + are restored, lines with - are removed."
        )
        if past.versions
        else "The endpoint is removed, as it was then.",
        label="Undo",
        crumbs=_crumbs(name),
        section="fleet",
        look="danger",
        diff=spec_diff(view.spec, past.spec),
        warning="The rollout in progress ends." if is_under_way else "",
    )


async def send_undo(request: PageRequest) -> str:
    """Restore a former generation; return the endpoint's page."""
    name, number = request.names["name"], checked_number(request.names["generation"])
    await request.change(f"/api/v1/endpoints/{name}/undo", {"generation": number})
    return f"/endpoints/{name}"


async def serve(request: PageRequest) -> PageView:
    """Return the form that adds an endpoint for a model version."""
    name, version = request.names["name"], request.names["version"]
    if not request.caller.may_somewhere(Role.OPERATOR):
        request.require_operator(name)
    stored = await request.visitor.get(f"/api/v1/models/{name}/versions/{version}", KnownVersion)
    endpoint = request.form.get("endpoint", name)
    existing = await _existing(request, endpoint)
    replicas = FormInput(
        name="replicas",
        label="Replicas",
        kind="number",
        value=request.form.get("replicas", "1"),
        least=1,
        most=_MAX_REPLICAS,
        is_required=True,
    )
    inputs = [
        FormInput(
            name="endpoint",
            label="Name of the new endpoint",
            value=endpoint,
            help="The name in URLs: `/v2/models/NAME/infer`.",
            is_required=True,
        ),
        replicas,
    ]
    if stored.executes_code:
        inputs.append(_allow_code(request))
    return confirmation(
        request,
        title=f"Serve {stored.reference}?",
        consequence=f"Adds an endpoint that serves {stored.reference}. Other endpoints are "
        "unchanged.",
        label="Serve",
        crumbs=[("/models", "Models"), (f"/models/{name}", name)],
        section="models",
        inputs=inputs,
        next_step=(
            f"/endpoints/{endpoint}/rollout?model={stored.reference}",
            f"Endpoint {endpoint} exists already: roll the version out to it",
        )
        if existing is not None and may_operate(request.caller, endpoint)
        else None,
    )


async def send_serve(request: PageRequest) -> str:
    """Add the endpoint; return its page."""
    endpoint = request.form.get("endpoint", "").strip()
    replicas = checked_number(request.form.get("replicas", "1"))
    entry: dict[str, object] = {"model": f"{request.names['name']}:{request.names['version']}"}
    if replicas is None or not endpoint:
        raise RefusedError.of(_BAD_REQUEST, "name the endpoint, and its replicas as an integer")
    if replicas != 1:
        entry["replicas"] = replicas
    if request.form.get("allow_code"):
        entry["allow_code"] = True
    # Never replaces an endpoint that someone else has added meanwhile.
    await request.change(
        f"/api/v1/endpoints/{quote(endpoint, safe='')}",
        entry,
        method="PUT",
        headers={"if-none-match": "*"},
    )
    return f"/endpoints/{quote(endpoint, safe='')}"


def _allow_code(request: PageRequest) -> FormInput:
    return FormInput(
        name="allow_code",
        label="Allow the model to run its author's code",
        kind="checkbox",
        value=request.form.get("allow_code", ""),
        help="The model's format runs code when it is loaded, in a sandbox.",
    )


async def _existing(request: PageRequest, name: str) -> EndpointView | None:
    """Return the endpoint if it exists and the visitor may see it."""
    try:
        path = f"/api/v1/endpoints/{quote(name, safe='')}"
        return await request.visitor.find(path, EndpointView)
    except RefusedError:
        return None


def _crumbs(name: str) -> list[tuple[str, str]]:
    return [("/", "Fleet"), (f"/endpoints/{name}", name)]
