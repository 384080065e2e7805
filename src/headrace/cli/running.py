"""What runs on a home, and how to reach it."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from headrace.cli.management import Management
from headrace.control import ControlFile, read_control_file
from headrace.control.log_files import LogFiles, merged_tail, render_line
from headrace.control.store import FileStore
from headrace.core import HeadraceError, NotFoundError, UnavailableError


def management(home: Path) -> Management:
    """The management API of the control plane on `home`.

    Raises:
        UnavailableError: There is none.
    """
    return Management(control_file(home).admin_url)


def control_file(home: Path) -> ControlFile:
    """Where the control plane on `home` is reached.

    Raises:
        UnavailableError: None was started there.
    """
    found = read_control_file(home)
    if found is None:
        msg = f"nothing runs on {home}; `headrace up` starts it"
        raise UnavailableError(msg, retry_after_s=None)
    return found


def gateway_url(home: Path) -> str:
    """The gateway of `home`; it goes on without its control plane, so a dead one's word counts.

    Raises:
        UnavailableError: None was started there.
    """
    try:
        data = (home / "run" / "control.json").read_bytes()
        return msgspec.json.decode(data, type=ControlFile).http_url
    except (OSError, msgspec.MsgspecError):
        msg = f"nothing runs on {home}; `headrace up` starts it, --url names another server"
        raise UnavailableError(msg, retry_after_s=None) from None


def endpoint_names(home: Path) -> list[str]:
    """The endpoints that the control plane on `home` knows; none if it does not run."""
    try:
        status = management(home).get("/api/v1/status")
    except HeadraceError:
        return []
    return [endpoint["name"] for endpoint in status["endpoints"]]


def log_lines(home: Path, *, tail: int, source: str, log_format: str) -> list[str]:
    """The newest lines of all logs of `home`, read from the files: nothing has to run.

    Raises:
        NotFoundError: There are none, or none of `source`.
    """
    logs = LogFiles(directory=home / "logs")
    if not logs.paths(source):
        names = ", ".join(logs.names())
        msg = (
            f"there is no log of '{source}'; there are: {names}" if names else f"no logs in {home}"
        )
        raise NotFoundError(msg)
    now = datetime.now(UTC)
    of_day_s = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    lines = merged_tail(logs, tail, now_of_day_s=of_day_s, source=source)
    return [render_line(line, log_format=log_format) for line in lines]


def references_in_use(home: Path) -> set[str]:
    """`NAME:VERSION` of every model version that the stored desired state serves.

    What is stored is served as soon as a control plane starts, so it counts without one too.
    """
    desired = FileStore(home / "state.json").load()
    return {revision.model for revision in desired.revisions().values()}
