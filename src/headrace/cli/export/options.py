"""Shared options and the shape of commands that export a spec."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.options import ControlPlane
from headrace.cli.output import say, write
from headrace.core import InvalidArgumentError

if TYPE_CHECKING:
    from headrace.deploy import Export, Facts, Place

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


File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="The spec file.", exists=True, dir_okay=False, show_default=False
    ),
]
FromSystem = Annotated[
    bool,
    typer.Option(
        "--from-system", help="Instead of a file: what runs, with the weights that it has now."
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|FOLDER/|-",
        help="Where to; a folder, or a name that ends in /, gets a file for each document.",
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="yaml or json.", show_default="by the output's ending, yaml")
]
AllowLoss = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-loss",
        metavar="FIELD",
        help="Leave this setting out, such as endpoints[].sticky; may be repeated.",
        show_default=False,
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="NAME",
        help="Only this endpoint; may be repeated.",
        show_default="all",
    ),
]
Instance = Annotated[
    str, typer.Option("--instance", help="With which names of objects begin, as Helm's release.")
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Of the objects.")]
Replicas = Annotated[
    list[str] | None,
    typer.Option(
        "--replica",
        metavar="ENDPOINT:VERSION=HOST:PORT",
        help="Where a replica of a version is; may be repeated.",
        show_default=False,
    ),
]
ServiceNames = Annotated[
    list[str] | None,
    typer.Option(
        "--service",
        metavar="ENDPOINT:VERSION=NAME[:PORT]",
        help="The Service of a version, where it is not one of the driver's.",
        show_default=False,
    ),
]
Gateway = Annotated[
    str,
    typer.Option(
        "--gateway", metavar="[NAMESPACE/]NAME", help="The Gateway that routes belong to."
    ),
]
Section = Annotated[
    str, typer.Option("--section", help="Which listener of it.", show_default="all")
]
Hostnames = Annotated[
    list[str] | None,
    typer.Option(
        "--hostname", help="For which host; may be repeated.", show_default="the listener's"
    ),
]
Image = Annotated[
    str | None,
    typer.Option("--image", help="Of a replica.", show_default="headrace/replica, this version"),
]
Artifacts = Annotated[
    str,
    typer.Option(
        "--artifacts", metavar="URL", help="The store that pods fetch models from.", show_default=""
    ),
]
Prometheus = Annotated[
    str, typer.Option("--prometheus", metavar="URL", help="Its address within the cluster.")
]


def place_for(instance: str, namespace: str, services: Sequence[str] | None = None) -> "Place":
    """Where in a cluster; `services` as `--service` has them."""
    from headrace.deploy import Place

    check_place(instance, namespace)
    found = {}
    for key, (text, *more) in addresses_for("--service", services).items():
        name, colon, port = text.partition(":")
        if more or (colon and not (port.isdecimal() and 0 < int(port) <= 65535)):  # noqa: PLR2004  # the last port
            msg = f"{key[0]}:{key[1]} takes one NAME[:PORT], not '{text}'"
            raise typer.BadParameter(msg, param_hint="--service")
        check_service(f"{key[0]}:{key[1]}", name)
        found[key] = (name, int(port) if port else None)
    return Place(instance=instance, namespace=namespace, services=found)


def addresses_for(
    option: str, given: Sequence[str] | None, check: Callable[[str, str], None] | None = None
) -> dict[tuple[str, str], list[str]]:
    """What `ENDPOINT:VERSION=ADDRESS` says, by endpoint and version.

    Args:
        check: Looks at an address, the option's name before it.

    Raises:
        BadParameter: One is written otherwise.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for text in given or ():
        which, equals, address = text.partition("=")
        name, colon, number = which.rpartition(":")
        if not (equals and colon and name and number and address):
            example = "scorer:8000" if option == "--service" else "10.0.0.7:8000"
            msg = f"'{text}' is not ENDPOINT:VERSION=ADDRESS, such as fraud:2={example}"
            raise typer.BadParameter(msg, param_hint=option)
        if check is not None:
            check(option, address)
        found.setdefault((name, number), []).append(address)
    return found


def write_export(export: "Export", output: str, form: str) -> None:
    """Write documents where they belong; what is only about the same goes to standard error.

    Raises:
        BadParameter: The format is unknown.
        InvalidArgumentError: It has no room for several documents.
    """
    from headrace.deploy import Format, files_of, text_of

    if not output:
        msg = "it is empty: - is standard output, and ./ the folder that you are in"
        raise typer.BadParameter(msg, param_hint="--output")
    ending = form or ("json" if output.endswith(".json") else "yaml")
    if ending not in tuple(Format):
        raise typer.BadParameter(f"'{form}' is neither yaml nor json", param_hint="--format")
    chosen = Format(ending)
    path = Path(output)
    if output == "-":
        write(text_of(export, chosen).rstrip("\n"))
    elif output.endswith("/") or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        files = files_of(export, chosen)
        for name, text in files.items():
            (path / name).write_text(text, encoding="utf-8")
            say(f"{path / name}")
        for left in left_over(path, export.target.value, files):
            say(f"note: {left} is of an export before, and of nothing in this one: delete it")
    else:
        path.write_text(text_of(export, chosen), encoding="utf-8")
        say(output)
    for note in export.notes:
        say(f"note: {note}")


def left_over(folder: Path, target: str, written: Collection[str]) -> list[Path]:
    """Files that an earlier export to `folder` wrote and this one did not, by their first line."""
    head = f"# Written by `headrace export {target}` of"
    found = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name in written or not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline(len(head)) == head:
                found.append(path)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of every export of a spec: where it comes from, and where documents go."""

    file: File = None
    from_system: FromSystem = False
    output: Output = "-"
    form: FormatOption = ""
    allow_loss: AllowLoss = None
    endpoint: Endpoints = None

    def facts(self, plane: ControlPlane, *, with_revisions: bool = False) -> "Facts":
        """Return what is exported.

        Args:
            with_revisions: Whether that includes what a control plane would run.
        """
        from headrace.cli.export.facts import facts_for

        return facts_for(
            self.file,
            from_system=self.from_system,
            server=plane.server,
            home=plane.home,
            allow_loss=self.allow_loss,
            only=self.endpoint,
            with_revisions=with_revisions,
        )

    def write(self, export: "Export") -> None:
        """Write the documents of an export."""
        write_export(export, self.output, self.form)
