"""Form that previews, simulates and starts a rollout."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headrace.console.forms import FormInput, checked_number
from headrace.console.view import PageRequest, PageView, RefusedError
from headrace.control.api.endpoints import EndpointView
from headrace.control.api.models import ModelList
from headrace.control.api.rollouts import RolloutPreview

_BAD_REQUEST: Final = 400
_MOST_SUGGESTED: Final = 200
_STRATEGIES: Final = {
    "": "the endpoint's own plan, else canary",
    "canary": "canary: a growing share of the requests",
    "blue-green": "blue-green: all requests at once",
    "ab": "A/B: each caller on one version",
    "shadow": "shadow: copies of requests only",
}
_UNTIL: Final = {
    "verdict": "the metrics have a verdict",
    "approval": "a person approves",
    "none": "the pause is over",
}
_TEXTS: Final = {"steps": "5, 25, 50", "pause_s": "0", "share": "", "max_duration_s": ""}


async def start(request: PageRequest) -> PageView:
    """Return the form."""
    return await _page(request, None)


async def send(request: PageRequest) -> str | PageView:
    """Preview, simulate or start the rollout of the form."""
    name, form = request.names["name"], request.form
    plan, action = plan_of(form), form.get("action", "preview")
    if action == "start":
        body: dict[str, object] = {"model": form.get("model", "").strip(), "rollout": plan}
        if form.get("allow_code"):
            body["allow_code"] = True
        answer = await request.change(f"/api/v1/endpoints/{name}/rollout", body)
        return f"/rollouts/{answer.json()['id']}"
    path = f"/api/v1/endpoints/{name}/rollout/preview"
    answer = await request.change(path, {"rollout": plan, "simulate": action == "simulate"})
    return await _page(request, msgspec.json.decode(answer.content, type=RolloutPreview))


def plan_of(form: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the plan of the form; None for the endpoint's own.

    Raises:
        RefusedError: A number is invalid.
    """
    strategy = form.get("strategy", "")
    if not strategy:
        return None
    plan: dict[str, Any] = {"strategy": strategy}
    if form.get("max_duration_s", "").strip():
        plan["max_duration_s"] = _number(form, "max_duration_s", "Maximum duration")
    match strategy:
        case "canary":
            until = form.get("until", "verdict")
            pause_s = _number(form, "pause_s", "Pause") if form.get("pause_s", "").strip() else 0
            plan["steps"] = [
                {
                    "weight": weight,
                    **({"pause_s": pause_s} if pause_s else {}),
                    **({"until": until} if until != "none" else {}),
                }
                for weight in _weights(form.get("steps", ""))
            ]
        case "ab" if form.get("share", "").strip():
            plan["weight"] = _number(form, "share", "Share")
        case "shadow":
            if form.get("share", "").strip():
                plan["mirror_percent"] = _number(form, "share", "Share")
            plan["promotes"] = bool(form.get("promotes"))
        case "blue-green" if form.get("approval"):
            plan["approval"] = True
        case _:
            pass
    return plan


def _weights(text: str) -> list[int]:
    weights = [checked_number(part.strip().removesuffix("%")) for part in text.split(",")]
    if None in weights:
        message = f"Steps: {text[:100]!r} is not a list of percentages such as 5, 25, 50"
        raise RefusedError.of(_BAD_REQUEST, message)
    return [weight for weight in weights if weight is not None]


def _number(form: Mapping[str, str], name: str, label: str) -> int:
    number = checked_number(form.get(name, ""))
    if number is None:
        raise RefusedError.of(_BAD_REQUEST, f"{label}: {form[name][:100]!r} is not an integer")
    return number


async def _page(request: PageRequest, preview: RolloutPreview | None) -> PageView:
    name, form = request.names["name"], request.form
    request.require_operator(name)
    endpoint = await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    rollout = endpoint.rollout
    models = await request.visitor.find("/api/v1/models", ModelList)
    served = {revision.model for revision in endpoint.status.revisions}
    names = {reference.partition(":")[0] for reference in served}
    versions = sorted(
        (v for v in (models.models if models else ()) if v.reference not in served),
        # Versions of the served models first, the newest first.
        key=lambda version: (version.name not in names, -version.created_at.timestamp()),
    )[:_MOST_SUGGESTED]
    suggested = request.query.get("model", versions[0].reference if versions else "")
    return PageView(
        template="rollout_start.html",
        title=f"Start a rollout of {name}",
        section="rollouts",
        values={
            "endpoint": endpoint,
            "running": "" if rollout is None or rollout.over else rollout.id,
            "problem": request.problem,
            "preview": preview,
            "inputs": _inputs(form, suggested, {v.reference: v.runtime for v in versions}),
            "own_plan": (endpoint.spec or {}).get("rollout"),
        },
    )


def _inputs(
    form: Mapping[str, str], suggested: str, versions: Mapping[str, str]
) -> list[FormInput]:
    def text(name: str, label: str, help_: str = "", kind: str = "text") -> FormInput:
        value = form.get(name, _TEXTS[name])
        return FormInput(name=name, label=label, value=value, help=help_, kind=kind)

    def check(name: str, label: str) -> FormInput:
        return FormInput(name=name, label=label, kind="checkbox", value=form.get(name, ""))

    return [
        FormInput(
            name="model",
            label="New version",
            value=form.get("model", suggested),
            choices=versions,
            help="`NAME:VERSION` of the registry.",
            is_required=True,
        ),
        FormInput(
            name="strategy",
            label="Strategy",
            kind="select",
            value=form.get("strategy", ""),
            choices=_STRATEGIES,
        ),
        text("steps", "Canary: steps, in percent"),
        FormInput(
            name="until",
            label="Canary: each step lasts until",
            kind="select",
            value=form.get("until", "verdict"),
            choices=_UNTIL,
        ),
        text("pause_s", "Canary: at least, in seconds"),
        text("share", "A/B and shadow: share, in percent", "Empty: 50 for A/B, 100 for a shadow."),
        text("max_duration_s", "Maximum duration, in seconds", "Empty: two hours."),
        check("approval", "Blue-green: wait for approval before the switch"),
        check("promotes", "Shadow: promote after a good verdict"),
        check("allow_code", "Allow the model to run its author's code"),
    ]
