"""`headrace backup` and `headrace restore`: a home in one file, and a home of such a file."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, StateUrl
from headrace.cli.output import TransferView, columns, write, write_json
from headrace.core import SystemClock
from headrace.core.text import bytes_text

if TYPE_CHECKING:
    from headrace.control.backup import Backup, BackupManifest


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The backup file; it is never replaced.")
    ],
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read FILE and check it; nothing is written.")
    ] = False,
    payloads: Annotated[
        bool, typer.Option("--payloads", help="Contain payload logs too, which may be large.")
    ] = False,
    state_url: StateUrl = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write all that a home needs to be restored to one file, while it runs or not.

    The file holds tokens and model files: its readers can act as the home's owner. Only the user
    that owns the home may back it up, on its machine.

    For example:

        headrace backup /backups/headrace-monday.tar

        headrace backup --verify /backups/headrace-monday.tar
    """
    from headrace.control.backup import check_backup, write_backup

    tell = TransferView().tell
    if verify:
        result = check_backup(file, tell=tell)
    else:
        result = write_backup(
            home,
            file,
            state_url=_state_url(home, state_url),
            payloads=payloads,
            now=SystemClock().now(),
            tell=tell,
        )
    if json:
        write_json(result)
        return
    write(f"{file}: {'whole' if verify else 'written'}, sha256 {result.sha256}")
    write("\n".join(_summary(result)))


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `headrace backup`.")],
    *,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make a new home of a backup, with a new identity and the tokens of the original.

    The home must not exist, or be empty. Every file is checked before one is put into place.
    Restore only backups whose origin is known: their content acts with the rights of this user.

    For example:

        headrace restore /backups/headrace-monday.tar --home restored

        headrace up --home restored
    """
    from headrace.control.backup import restore_backup

    manifest = restore_backup(file, home, tell=TransferView().tell)
    if json:
        write_json({"home": str(home.absolute()), "manifest": manifest})
        return
    flag = "" if home == DEFAULT_HOME else f" --home {home}"
    write(f"restored {len(manifest.files)} files to {home}; `headrace up{flag}` starts it")
    for line in _not_contained(manifest):
        write(line)


def _state_url(home: Path, state_url: str) -> str:
    """Where the desired state is: as told here, else as the control plane that runs was told."""
    from headrace.control.secret_references import resolve_url
    from headrace.control.settings import read_last_control_file

    if state_url:
        return resolve_url(state_url)
    control = read_last_control_file(home)
    return "" if control is None else control.state_url


def _summary(result: "Backup") -> list[str]:
    manifest = result.manifest
    created = datetime.fromtimestamp(manifest.created, UTC)
    is_here = manifest.state == "sqlite"
    return [
        *columns(
            [
                ("size", bytes_text(result.size)),
                ("files", str(len(manifest.files))),
                ("taken", f"{created:%Y-%m-%d %H:%M:%S} UTC of {manifest.home}"),
                ("state", f"generation {manifest.generation}" if is_here else "not contained"),
                ("models", ", ".join(manifest.models) or "none"),
            ]
        ),
        *_not_contained(manifest),
    ]


def _not_contained(manifest: "BackupManifest") -> list[str]:
    """What has to be brought from elsewhere, or is gone."""
    lines = []
    if manifest.state == "none":
        lines.append(
            "not contained: the desired state; the home has no state.db. Where it is in another "
            "database, say --state-url"
        )
    if manifest.state == "postgres":
        lines.append(
            "not contained: the desired state, its history, rollouts, users, keys and audit log, "
            "which are in Postgres: back that database up with pg_dump"
        )
    lines += [f"not contained: {path}/ of the home" for path in manifest.left_out]
    lines += [f"not contained: {path}, outside of the home" for path in manifest.outside]
    return lines
