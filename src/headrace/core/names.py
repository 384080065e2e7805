"""Rules for names, and a type for each kind of name."""

import re
from typing import Final, NewType

from headrace.core.errors import InvalidArgumentError

ModelName = NewType("ModelName", str)
EndpointName = NewType("EndpointName", str)
Digest = NewType("Digest", str)
"""`sha256:` and 64 hexadecimal digits."""

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
VERSION_PATTERN: Final = r"^[0-9]{1,18}$"
_NAME: Final = re.compile(NAME_PATTERN)
_VERSION: Final = re.compile(VERSION_PATTERN)


def check_name(name: str, *, kind: str = "model") -> str:
    """Return `name` if it is valid in a URL path, a file name and a metric label.

    Raises:
        InvalidArgumentError: It is not.
    """
    if _NAME.fullmatch(name) is None:
        msg = (
            f"{kind} name {name[:200]!r} is not allowed: use 1 to 128 letters, digits, '_', '-' "
            "or '.', starting with a letter or digit"
        )
        raise InvalidArgumentError(msg)
    return name


def check_version(version: str) -> str:
    """Return `version` if it is a whole number as Triton's clients expect; else raise an error."""
    if _VERSION.fullmatch(version) is None:
        msg = f"model version {version[:200]!r} is not allowed: use a whole number"
        raise InvalidArgumentError(msg)
    return version


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or a name below `localhost`."""
    import ipaddress  # noqa: PLC0415  # few callers need it, and every command imports this module

    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether the host of a URL is this machine."""
    from urllib.parse import urlsplit  # noqa: PLC0415  # as in `is_loopback`

    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
