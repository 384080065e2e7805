"""Control plane and gateway of a home, and how to reach them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from headrace.cli.connection import Target
from headrace.control import ControlFile, read_control_file
from headrace.control.log_files import LogFiles, merged_tail, render_line
from headrace.control.secret_references import resolve_url
from headrace.control.settings import original_of, read_last_control_file
from headrace.control.state import home_url, references_in
from headrace.core import HeadraceError, NotFoundError, UnavailableError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def control_file(home: Path) -> ControlFile:
    """Where the control plane on `home` is reached.

    Raises:
        UnavailableError: None was started there.
    """
    found = read_control_file(home)
    if found is None:
        msg = f"nothing runs on {home}{copy_note(original_of(home))}; `headrace up` starts it"
        raise UnavailableError(msg, retry_after_s=None)
    return found


def copy_note(original: str) -> str:
    """What to add where nothing runs on a home that is a copy of the one at `original`."""
    return f" (a copy of {original}, which is left alone)" if original else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Where a gateway is reached, and the file of the certificate it shows there, if it is known.

    `server_name`: a name in that certificate, for which it is trusted although it is reached by
    another.
    """

    url: str
    ca_file: str | None = None
    server_name: str = ""


def gateway(target: Target) -> Gateway:
    """The gateway of a target.

    That of a home goes on without its control plane, so a dead one's word counts.

    Raises:
        UnavailableError: None was started there.
    """
    if target.is_remote:
        api = target.management()
        url = seen_from_here(api.get("/api/v1/status")["addresses"]["http"], api.host)
        return Gateway(url=url)
    home = target.home
    found = read_last_control_file(home)
    if found is None:
        note = copy_note(original_of(home))
        msg = f"nothing runs on {home}{note}; `headrace up` starts it, --url names another server"
        raise UnavailableError(msg, retry_after_s=None)
    if not found.gateway_ca:
        return Gateway(url=found.http_url)
    return Gateway(
        url=found.http_url,
        ca_file=found.gateway_ca,
        server_name=_name_in(Path(found.gateway_ca), urlsplit(found.http_url).hostname or ""),
    )


def _name_in(certificate: Path, host: str) -> str:
    """A name that a certificate holds, for `host` if it does not hold that; empty for none."""
    from headrace.gateway.pem import read_certificates  # noqa: PLC0415  # few gateways encrypt

    try:
        names = read_certificates(certificate.read_bytes())[0].names
    except (OSError, HeadraceError):
        return ""
    hosts = [name for name in names if ":" not in name and "@" not in name]
    if host in names or not hosts:
        return ""
    return hosts[0].replace("*", "gateway")


def seen_from_here(url: str, host: str) -> str:
    """`url` as a control plane on `host` tells it: its loopback is not this machine's."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or host in _LOOPBACK:
        return url
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{parts.port}").geturl()


def endpoint_names(target: Target) -> list[str]:
    """The endpoints that a control plane knows; none if it does not answer."""
    try:
        status = target.management().get("/api/v1/status")
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


def references_in_use(home: Path, state_url: str = "") -> set[str]:
    """`NAME:VERSION` of every model version that the stored state serves, or may go back to.

    What is stored is served as soon as a control plane starts, so it counts without one too.

    Args:
        state_url: Where the state is; empty for the home's own file.
    """
    url = resolve_url(state_url) or home_url(home)
    return references_in(url, legacy=home / "state.json")
