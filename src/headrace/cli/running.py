"""What runs on a home, and how to reach it."""

from pathlib import Path

from headrace.cli.management import Management
from headrace.control import ControlFile, read_control_file
from headrace.core import UnavailableError

DEFAULT_GATEWAY_URL = "http://127.0.0.1:8000"


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
    """The gateway of `home`; where none is known, the usual one of this machine."""
    found = read_control_file(home)
    return DEFAULT_GATEWAY_URL if found is None else found.http_url


def references_in_use(home: Path) -> set[str]:
    """`NAME:VERSION` of every model version that the stored desired state serves.

    What is stored is served as soon as a control plane starts, so it counts without one too.
    """
    from headrace.control.store import FileStore  # noqa: PLC0415  # only this function needs it

    desired = FileStore(home / "state.json").load()
    return {revision.model for revision in desired.revisions().values()}
