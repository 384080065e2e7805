"""Would a cluster take these names and addresses? Told by their flag before anything is written."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import typer

from headrace.core import InvalidArgumentError

if TYPE_CHECKING:
    from headrace.deploy import Facts

_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SERVICE: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_HOSTNAME: Final = re.compile(rf"(?=.{{1,253}}$)(\*\.)?{_LABEL}(\.{_LABEL})*")
_HOST_PORT: Final = re.compile(
    r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?):(\d{1,5})"
)
_STORAGE_FIELDS: Final = frozenset({"endpoint", "model", "version", "file"})
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/]")
_LAST_PORT: Final = 65535


def check_place(instance: str, namespace: str) -> None:
    """Refuse what no object and no namespace can be called."""
    from headrace.control.kubernetes.names import check_instance, check_namespace

    checked("--instance", check_instance, instance)
    checked("--namespace", check_namespace, namespace)


def check_routes(gateway: str, section: str, hostnames: Sequence[str]) -> None:
    """Refuse a Gateway, a listener or a host that no route can name."""
    parts = gateway.split("/")
    if len(parts) > 2 or not all(map(_SUBDOMAIN.fullmatch, parts)):  # noqa: PLR2004  # NAMESPACE/NAME
        msg = f"'{gateway}' is not [NAMESPACE/]NAME in small letters, digits and dashes"
        raise typer.BadParameter(msg, param_hint="--gateway")
    if section and not _SUBDOMAIN.fullmatch(section):
        msg = f"'{section}' is no listener's name: small letters, digits and dashes"
        raise typer.BadParameter(msg, param_hint="--section")
    for host in hostnames:
        if not _HOSTNAME.fullmatch(host):
            msg = f"'{host}' is no host's name, such as models.example.com or *.example.com"
            raise typer.BadParameter(msg, param_hint="--hostname")


def check_service(which: str, name: str) -> None:
    """Refuse what no Service can be called."""
    if not _SERVICE.fullmatch(name):
        msg = f"'{name}' of {which} is no Service's name: small letters, digits and dashes"
        raise typer.BadParameter(msg, param_hint="--service")


def check_artifacts(url: str) -> None:
    """Refuse what pods could not fetch from, and what may hold a secret; empty is none."""
    from headrace.registry import check_artifacts_url

    if url:
        checked("--artifacts", check_artifacts_url, url)


def check_storage(template: str) -> None:
    """Refuse what is no URI, or fills in what is not known."""
    fields = re.findall(r"\{([^{}]*)\}", template)
    unknown = [f"{{{one}}}" for one in fields if one not in _STORAGE_FIELDS]
    if unknown or not _URI.match(template):
        what = f"{unknown[0]} is not known" if unknown else f"'{template}' is no URI"
        msg = f"{what}; one is s3://models/{{model}}/{{version}}/{{file}}"
        raise typer.BadParameter(msg, param_hint="--storage")


def check_host_port(option: str, address: str) -> None:
    """Refuse what is not `HOST:PORT`."""
    found = _HOST_PORT.fullmatch(address)
    if found is None or not 0 < int(found[3]) <= _LAST_PORT:
        raise typer.BadParameter(f"'{address}' is not HOST:PORT", param_hint=option)


def check_socket(option: str, address: str) -> None:
    """Refuse what is neither `IP:PORT` nor `unix:/PATH`."""
    from headrace.gateway.settings import parse_address

    checked(option, parse_address, address)


def check_versions(option: str, facts: "Facts", given: Collection[tuple[str, str]]) -> None:
    """Refuse what is said of a version that is not exported: a slip would be lost in silence."""
    known = {(e.name, v.number): None for e in facts.endpoints for v in e.versions}
    for name, number in given:
        if (name, number) not in known:
            there = ", ".join(f"{e}:{v}" for e, v in known)
            msg = f"{name}:{number} is no version here; there are {there}"
            raise typer.BadParameter(msg, param_hint=option)


def checked(option: str, check: Callable[[str], object], text: str) -> None:
    """Have `check` look at `text`; what it refuses names the option."""
    try:
        check(text)
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
