"""Does an order touch what its giver may not change? Whoever operates some endpoints changes those.

Names are not told: whoever may not change an endpoint may not be meant to know of it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from headrace.control.aims import same_endpoint
from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.core import PermissionDeniedError
from headrace.core.spec_alerts import AlertsSpec
from headrace.core.spec_jobs import JobSpec

_OF_FILE: Final = re.compile(r"(_file|\.location|\.keytab|\.config)=", re.IGNORECASE)
"""Options in a broker's URL that name files: its client sends what is in them, or proof of it."""
_WAY_OUT: Final = "change your own by `PUT /api/v1/endpoints/NAME`, or ask an operator of all"


def check_document(
    before: Mapping[str, Any], after: Mapping[str, Any], only: frozenset[str] | None
) -> None:
    """Refuse a spec that says something else about others' endpoints, or about the whole system.

    Args:
        only: What the giver may change; None for all.

    Raises:
        PermissionDeniedError: It does.
    """
    if only is None:
        return
    if _rest(before) != _rest(after):
        message = f"this would change settings of the whole system; {_WAY_OUT}"
        raise PermissionDeniedError(message)
    if _others(before, only) != _others(after, only):
        raise PermissionDeniedError(f"this would change endpoints of others; {_WAY_OUT}")


def check_receivers(before: Mapping[str, Any], after: Mapping[str, Any], *, is_admin: bool) -> None:
    """Refuse other receivers of alerts, other jobs and streams' secrets from whoever is no admin.

    They name files and variables of the control plane's, and servers and folders that it sends
    those to: an operator could have the owner's token sent.

    Raises:
        PermissionDeniedError: Somebody else names them.
    """
    if not is_admin and _receivers(before) != _receivers(after):
        message = "`alerts` names secrets, and where they are sent: only an admin changes it"
        raise PermissionDeniedError(message)
    if not is_admin and _jobs(before) != _jobs(after):
        message = "`jobs` reads and writes files as the control plane: only an admin changes it"
        raise PermissionDeniedError(message)
    if not is_admin and _brokers(before) != _brokers(after):
        message = "a stream names secrets, and where they are sent: only an admin changes that"
        raise PermissionDeniedError(message)


def _jobs(document: Mapping[str, Any]) -> object:
    """What it says of jobs; as `_receivers` does."""
    given = document.get("jobs") or ()
    try:
        return [JobSpec.model_validate(one) for one in given]
    except (ValidationError, TypeError):
        return given


def _receivers(document: Mapping[str, Any]) -> object:
    """What it says of alerts; mistakes are told by whoever reads all of it."""
    given = document.get("alerts")
    try:
        return AlertsSpec.model_validate(given or {})
    except ValidationError:
        return given


def _brokers(document: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Where streams send secrets: URLs that name variables, and what files of theirs hold."""
    streams = document.get("streams")
    found = []
    for stream in streams if isinstance(streams, list | tuple) else ():
        if not isinstance(stream, Mapping):
            continue
        urls = (_text_in(stream, "source", "broker"), _text_in(stream, "push", "online_store"))
        secret = tuple(url if "${" in url or _OF_FILE.search(url) else None for url in urls)
        formats = (_options(stream, "format"), _options(stream, "sink", "format"))
        files = tuple(options if _names_file(options) else None for options in formats)
        if any(secret) or any(files) or stream.get("api_key_file") is not None:
            found.append((*secret, *files, stream.get("api_key_file")))
    return found


def _options(stream: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What a format is told besides; a file in it is sent to the registry that it names."""
    found = _found_in(stream, *keys, "options")
    return found if isinstance(found, Mapping) else {}


def _names_file(options: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("_file") for name in options)


def _text_in(stream: Mapping[str, Any], *keys: str) -> str:
    found = _found_in(stream, *keys)
    return found if isinstance(found, str) else ""


def _found_in(stream: Mapping[str, Any], *keys: str) -> object:
    found: object = stream
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def check_endpoints(
    before: DesiredState, after: Sequence[DesiredEndpoint], only: frozenset[str] | None
) -> None:
    """Refuse what would serve something else at others' endpoints, such as a newer version.

    Raises:
        PermissionDeniedError: It would.
    """
    if only is None:
        return
    wanted = {str(endpoint.name): endpoint for endpoint in after}
    names = {*wanted, *(str(endpoint.name) for endpoint in before.endpoints)} - only
    if any(not same_endpoint(before.endpoint(name), wanted.get(name)) for name in names):
        raise PermissionDeniedError(f"this would change endpoints of others; {_WAY_OUT}")


def _rest(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in {"endpoints", "version"}}


def _others(document: Mapping[str, Any], only: frozenset[str]) -> list[Any]:
    return [entry for entry in document.get("endpoints", []) if entry.get("name") not in only]
