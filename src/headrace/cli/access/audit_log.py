"""`headrace trail`: audit log of changes, and its verification."""

import json as codec
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.base.options import CommandGroup, ControlPlaneOptions, Json, option
from headrace.cli.base.output import (
    Column,
    clock_column,
    say,
    show_document,
    write,
    write_json,
)
from headrace.control.model.audit_log import Entry, Head, Verifier, missed

if TYPE_CHECKING:
    from headrace.cli.base.management import Document, Management
    from headrace.control.model.audit_log import Broken

app = CommandGroup(help="Audit log of management changes: list, verify.")
_PAGE = 1000
_FAILED = 1


@app.command("list")
def trail(
    *,
    limit: Annotated[int, option("Number of newest entries to list.", min=1, max=100_000)] = (50),
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List the newest audit log entries. The JSON output includes the values before and after.

    For example:

        headrace trail list --limit 10

        headrace trail list --json
    """
    api = plane.connect()
    # The newest `limit` entries in chronological order.
    head = api.get("/api/v1/trail/head")["head"]["count"]
    entries: list[Document] = []
    after = max(head - limit, 0)
    while len(entries) < limit:
        page = api.get("/api/v1/trail", after=after, limit=min(_PAGE, limit - len(entries)))
        if not page["entries"]:
            break
        entries += page["entries"]
        after = entries[-1]["id"]
    columns: dict[str, Column] = {
        "entry": lambda entry: str(entry["id"]),
        "when": clock_column("at"),
        "who": "actor",
        "what": "action",
        "of": "object",
    }
    sides = ("before", "after")
    document = [{**row, **{side: codec.loads(row[side]) for side in sides}} for row in entries]
    show_document(document, entries, columns, json=json)


@app.command()
def verify(
    *,
    checkpoint: Annotated[
        str,
        option(
            "Checkpoint printed by an earlier `verify`, stored outside of this system.",
            metavar="COUNT:HASH",
            shown="what the control plane noted",
        ),
    ] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Verify the hash chain of the audit log and report the first invalid entry.

    Detects entries that were changed, inserted or removed, and entries removed from the end since
    a checkpoint. Somebody who can write to the database, the home and the log can replace the whole
    audit log. To detect that, store the printed checkpoint elsewhere and pass it next time.

    For example:

        headrace trail verify

        headrace trail verify --checkpoint 212:5891b5b5…
    """
    noted = []
    if checkpoint:
        count, _, digest = checkpoint.partition(":")
        if not count.isdecimal() or not digest:
            msg = (
                f"'{checkpoint}' is not a checkpoint; expected COUNT:HASH as "
                "printed by `headrace trail verify`"
            )
            raise typer.BadParameter(msg, param_hint="--checkpoint")
        noted = [Head(count=int(count), hash=digest)]
    head, broken = verified(plane.connect(), noted)
    if json:
        violation = None if broken is None else {"entry": broken.id, "reason": broken.reason}
        write_json({"entries": head.count, "head": head.hash, "broken": violation})
    elif broken is None:
        write(f"{head.count}:{head.hash}")
        say(
            f"{head.count} entries, hash chain is valid; store this checkpoint "
            "outside of this system"
        )
    else:
        say(f"the audit log is invalid at entry {broken.id}: {broken.reason}")
    if broken is not None:
        raise typer.Exit(_FAILED)


def verified(api: "Management", noted: "list[Head]") -> "tuple[Head, Broken | None]":
    """Return the valid part of the chain and the first invalid entry; verified locally.

    Args:
        noted: Required checkpoints, in addition to those of the control plane.
    """
    server = api.get("/api/v1/trail/head")["checkpoint"]
    checkpoints = [*noted, Head(count=server["count"], hash=server["hash"])]
    counts = {checkpoint.count for checkpoint in checkpoints}
    hashes: dict[int, str] = {}
    verifier = Verifier()
    page = [Entry(**entry) for entry in api.get("/api/v1/trail", after=0, limit=_PAGE)["entries"]]
    while page:
        broken = verifier.read(page)
        hashes |= {entry.id: entry.hash for entry in page if entry.id in counts}
        if broken is not None:
            return verifier.head, broken
        more = api.get("/api/v1/trail", after=page[-1].id, limit=_PAGE)["entries"]
        page = [Entry(**entry) for entry in more]
    breaks = [
        missed(checkpoint, hash_there=hashes.get(checkpoint.count)) for checkpoint in checkpoints
    ]
    return verifier.head, next((broken for broken in breaks if broken is not None), None)
