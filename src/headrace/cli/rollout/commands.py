"""`headrace rollout`: status of rollouts, and manual promotion, pause and rollback."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    EndpointName,
    Json,
    OneEndpoint,
    option,
)
from headrace.cli.base.output import show, show_answer, show_document, show_live, write_json
from headrace.cli.rollout.simulate import simulate
from headrace.cli.rollout.start import start
from headrace.cli.rollout.view import render, summary_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from headrace.cli.base.management import Management

app = CommandGroup(
    help="Roll out a new version step by step: start, status, list, promote, pause, resume, "
    "abort, rollback, simulate.",
)
_Reason = Annotated[str, option("Reason, stored in the history.", "--reason")]
app.command()(start)


@app.command()
def status(
    endpoint: EndpointName,
    *,
    json: Json = False,
    watch: Annotated[
        bool, option("Refresh until the rollout ends, or until Ctrl-C.", "--watch", "-w")
    ] = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show an endpoint's newest rollout: figures of both versions, intervals and verdict.

    For example:

        headrace rollout status fraud --watch

        headrace rollout status fraud --json | jq .verdict.outcome
    """
    api = plane.connect()
    path = f"/api/v1/endpoints/{endpoint}/rollout"
    if watch and not json:
        show_live(_frames(api, path))
        return
    document = api.get(path)
    if json:
        write_json(document)
    else:
        show(render(document, now=_now()))


def _frames(api: "Management", path: str) -> "Iterator[RenderableType]":
    """Yield the current state of a rollout until it ends."""
    while True:
        document = api.get(path)
        yield render(document, now=_now())
        if document["over"]:
            return


@app.command("list")
def list_(
    endpoint: OneEndpoint = "",
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List rollouts, newest first."""
    document = plane.connect().get("/api/v1/rollouts", endpoint=endpoint)
    empty = "no rollouts yet; start one with `headrace rollout start ENDPOINT --version N`"
    show_document(document, document["rollouts"], summary_columns(_now()), json=json, empty=empty)


def _add_verb(verb: str, text: str) -> None:
    """Add the command that sends `verb` to an endpoint's rollout."""

    def send_verb(
        endpoint: EndpointName,
        *,
        reason: _Reason = "",
        json: Json = False,
        plane: ControlPlaneOptions,
    ) -> None:
        path = f"/api/v1/endpoints/{endpoint}/rollout/{verb}"
        document = plane.connect().post(path, {"reason": reason})
        phase = document["phase"].replace("_", " ")
        line = f"rollout {document['id']} of {endpoint} is {phase}: {document['reason']}"
        show_answer(document, line, json=json)

    app.command(verb, help=text)(send_verb)


for _verb, _text in {
    "promote": "Promote the new version as soon as it is ready, regardless of the metrics.",
    "pause": "Keep the current weights; a bad verdict still rolls back.",
    "resume": "Continue after a pause, or approve a step that waits for approval.",
    "abort": "Return all requests to the old version before the rollout is decided.",
    "rollback": "Return all requests to the old version, also after the promotion.\n\nFor "
    "example:\n\n    headrace rollout rollback fraud --reason 'chargebacks doubled'\n",
}.items():
    _add_verb(_verb, _text)


def _now() -> float:
    return datetime.now(UTC).timestamp()


app.command()(simulate)
