"""How does the trail hear of what a command does to the files of a home, past the control plane?"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path


def note_here(
    home: Path, action: str, about: str, *, before: object = None, after: object = None
) -> None:
    """Enter in the trail of a home what was done to its files by hand.

    Where the home has no state yet, or keeps it in another database, there is no trail here to
    write to: the files' owner can change them anyway.

    Raises:
        FailedPreconditionError: The trail is there and cannot be written.
    """
    from headrace.control.state import home_url, open_store, sqlite_path

    path = sqlite_path(home_url(home))
    if path is None or not path.exists():
        return
    from headrace.cli.connection import actor
    from headrace.control.access.trail import Change
    from headrace.core import SystemClock
    from headrace.core.redact import redact

    change = Change(
        at=SystemClock().now(),
        actor=f"{actor()} (by hand)",
        action=action,
        object=about,
        before=redact(before),
        after=redact(after),
    )
    store = open_store(home_url(home))
    try:
        store.add_changes.blocking([change])
    finally:
        store.close()
