"""Shared options and structure of commands that export a spec."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.base.options import ControlPlaneOptions, file_option, option, setting
from headrace.cli.base.output import say, write
from headrace.core import InvalidArgumentError

if TYPE_CHECKING:
    from headrace.deploy import ClusterTarget, Export, ExportFacts, GatewayApiOptions

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


def check_artifacts(url: str) -> None:
    """Refuse URLs that pods cannot fetch from, or that may contain a secret; empty means none."""
    from headrace.registry import check_artifacts_url

    if url:
        checked("--artifacts", check_artifacts_url, url)


def check_storage(template: str) -> None:
    """Refuse invalid URIs and unknown placeholders."""
    fields = re.findall(r"\{([^{}]*)\}", template)
    unknown = [f"{{{name}}}" for name in fields if name not in _STORAGE_FIELDS]
    if unknown or not _URI.match(template):
        description = f"{unknown[0]} is not known" if unknown else f"'{template}' is no URI"
        msg = f"{description}; one is s3://models/{{model}}/{{version}}/{{file}}"
        raise typer.BadParameter(msg, param_hint="--storage")


def check_host_port(option: str, address: str) -> None:
    """Refuse addresses that are not `HOST:PORT`."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[3]) <= _LAST_PORT:
        raise typer.BadParameter(f"'{address}' is not HOST:PORT", param_hint=option)


def check_socket(option: str, address: str) -> None:
    """Refuse addresses that are neither `IP:PORT` nor `unix:/PATH`."""
    from headrace.gateway.settings import parse_address

    checked(option, parse_address, address)


def check_versions(
    option: str, facts: "ExportFacts", requested: Collection[tuple[str, str]]
) -> None:
    """Refuse values for a version that is not exported, which would be ignored otherwise."""
    versions = {(e.name, v.number): None for e in facts.endpoints for v in e.versions}
    for name, number in requested:
        if (name, number) not in versions:
            there = ", ".join(f"{e}:{v}" for e, v in versions)
            msg = f"{name}:{number} is not an exported version; available: {there}"
            raise typer.BadParameter(msg, param_hint=option)


def checked(option: str, check: Callable[[str], object], text: str) -> None:
    """Run `check` on `text`; its errors name the option."""
    try:
        check(text)
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


Output = Annotated[
    str,
    option(
        "Output path; a directory, or a name that ends in /, gets one file per document.",
        "--output",
        "-o",
        metavar="FILE|FOLDER/|-",
    ),
]
AllowLoss = Annotated[
    list[str] | None,
    option(
        "Omit this setting, such as endpoints[].sticky; may be repeated.",
        "--allow-loss",
        metavar="FIELD",
        shown=False,
    ),
]
Replicas = Annotated[
    list[str] | None,
    option(
        "Replica address of a version; may be repeated.",
        "--replica",
        metavar="ENDPOINT:VERSION=HOST:PORT",
        shown=False,
    ),
]
Image = Annotated[
    str | None,
    option("Container image of replicas.", "--image", shown="the spec's, else by --image-registry"),
]
ImageRegistry = Annotated[
    str,
    setting(
        "Registry and path of Headrace's images, as PREFIX of `make push`.",
        metavar="REGISTRY/PATH",
        shown="none",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOptions:
    """Options for names and namespace of cluster objects."""

    instance: Annotated[str, option("Prefix of object names, such as the Helm release.")] = (
        "headrace"
    )
    namespace: Annotated[
        str, option("Kubernetes namespace of the objects.", "--namespace", "-n")
    ] = "default"

    def place(self, services: Sequence[str] | None = None) -> "ClusterTarget":
        """Return the target in a cluster; `services` as in `--service`."""
        from headrace.control.kubernetes.names import check_instance, check_namespace
        from headrace.deploy import ClusterTarget

        checked("--instance", check_instance, self.instance)
        checked("--namespace", check_namespace, self.namespace)
        names = {}
        for key, (text, *more) in addresses_for("--service", services).items():
            name, colon, port = text.partition(":")
            which = f"{key[0]}:{key[1]}"
            if more or (colon and not (port.isdecimal() and 0 < int(port) <= _LAST_PORT)):
                msg = f"{which} takes one NAME[:PORT], not '{text}'"
                raise typer.BadParameter(msg, param_hint="--service")
            if not _SERVICE.fullmatch(name):
                msg = (
                    f"'{name}' of {which} is not a Service name: use lower-case "
                    "letters, digits and dashes"
                )
                raise typer.BadParameter(msg, param_hint="--service")
            names[key] = (name, int(port) if port else None)
        return ClusterTarget(instance=self.instance, namespace=self.namespace, services=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """Options of routes of Kubernetes' Gateway API."""

    gateway: Annotated[
        str, option("Gateway that the routes attach to.", metavar="[NAMESPACE/]NAME")
    ] = "headrace"
    section: Annotated[str, option("Listener of the Gateway.", shown="all")] = ""
    hostname: Annotated[
        list[str] | None, option("Hostname of the routes; may be repeated.", shown="the listener's")
    ] = None

    def target(self) -> "GatewayApiOptions":
        """Return the route options; refuses a Gateway, a listener or a host that is not valid."""
        from headrace.deploy import GatewayApiOptions

        parts = self.gateway.split("/")
        if len(parts) > 2 or not all(map(_SUBDOMAIN.fullmatch, parts)):  # noqa: PLR2004  # NAMESPACE/NAME
            msg = (
                f"'{self.gateway}' is not [NAMESPACE/]NAME in lower-case letters, digits and dashes"
            )
            raise typer.BadParameter(msg, param_hint="--gateway")
        if self.section and not _SUBDOMAIN.fullmatch(self.section):
            msg = (
                f"'{self.section}' is not a listener name: use lower-case letters, "
                "digits and dashes"
            )
            raise typer.BadParameter(msg, param_hint="--section")
        hostnames = tuple(self.hostname or ())
        for host in hostnames:
            if not _HOSTNAME.fullmatch(host):
                msg = f"'{host}' is not a hostname such as models.example.com or *.example.com"
                raise typer.BadParameter(msg, param_hint="--hostname")
        return GatewayApiOptions(gateway=self.gateway, section=self.section, hostnames=hostnames)


def addresses_for(
    option: str, texts: Sequence[str] | None, check: Callable[[str, str], None] | None = None
) -> dict[tuple[str, str], list[str]]:
    """Return the addresses of `ENDPOINT:VERSION=ADDRESS`, by endpoint and version.

    Args:
        check: Looks at an address, the option's name before it.

    Raises:
        BadParameter: A text has another form.
    """
    addresses: dict[tuple[str, str], list[str]] = {}
    for text in texts or ():
        which, equals, address = text.partition("=")
        name, colon, number = which.rpartition(":")
        if not (equals and colon and name and number and address):
            example = "scorer:8000" if option == "--service" else "10.0.0.7:8000"
            msg = f"'{text}' is not ENDPOINT:VERSION=ADDRESS, such as fraud:2={example}"
            raise typer.BadParameter(msg, param_hint=option)
        if check is not None:
            check(option, address)
        addresses.setdefault((name, number), []).append(address)
    return addresses


def stale_files(folder: Path, target: str, written: Collection[str]) -> list[Path]:
    """Return files that an earlier export wrote to `folder` and this one did not."""
    head = f"# Written by `headrace export {target}` of"
    stale = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name in written or not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline(len(head)) == head:
                stale.append(path)
    return stale


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of every export of a spec: its source, and the target of documents."""

    file: Annotated[Path | None, file_option("The spec file.", "--file", "-f", shown=False)] = None
    from_system: Annotated[
        bool,
        option(
            "Export the running system with its current weights, instead of a file.",
            "--from-system",
        ),
    ] = False
    output: Output = "-"
    form: Annotated[
        str, option("yaml or json.", "--format", shown="by file extension, else yaml")
    ] = ""
    allow_loss: AllowLoss = None
    endpoint: Annotated[
        list[str] | None,
        option("Only this endpoint; may be repeated.", metavar="NAME", shown="all"),
    ] = None

    def facts(self, plane: ControlPlaneOptions, *, with_revisions: bool = False) -> "ExportFacts":
        """Return the facts to export.

        Args:
            with_revisions: Whether that includes what a control plane would run for a file, with
                models of this home.

        Raises:
            BadParameter: Neither or both of --file and --from-system were given.
            InvalidArgumentError: The spec lacks something.
        """
        from headrace.cli.base.model_store import model_store
        from headrace.cli.base.offline import HomeModels
        from headrace.cli.base.spec_file import read_spec
        from headrace.cli.export.facts import artifacts_of, key_sets_of, observed_of, revisions_in
        from headrace.core.spec.parse import parse_spec
        from headrace.deploy import read_facts

        if (self.file is None) != self.from_system:
            msg = "pass either --file FILE or --from-system"
            raise typer.BadParameter(msg, param_hint="--file")
        observed, revisions = {}, {}
        if self.file is not None:
            spec = read_spec(self.file)
            models = {row.model for entry in spec.endpoints for row in entry.split() if row.model}
            artifacts = artifacts_of(models, HomeModels(plane.home, artifacts=""))
            if with_revisions:
                revisions = revisions_in(spec, plane.home)
        else:
            target = plane.target()
            api = target.management()
            spec = parse_spec(api.get("/api/v1/spec")["spec"])  # refuses redacted secrets
            views = api.get("/api/v1/endpoints")["endpoints"]
            observed = {view["name"]: observed_of(view) for view in views}
            models = {
                share.model
                for observed_endpoint in observed.values()
                for share in observed_endpoint.shares
            }
            artifacts = artifacts_of(models, model_store(target))
        return read_facts(
            spec,
            artifacts=artifacts,
            observed=observed,
            allowed=self.allow_loss or (),
            only=self.endpoint or (),
            key_sets=key_sets_of(spec),
            revisions=revisions,
        )

    def write(self, export: "Export") -> None:
        """Write documents to their target, and notes to standard error.

        Raises:
            BadParameter: The format is unknown.
            InvalidArgumentError: The format allows one document only.
        """
        from headrace.deploy import DocumentFormat, files_of, text_of

        if not self.output:
            msg = "it is empty: use - for standard output, or ./ for the current directory"
            raise typer.BadParameter(msg, param_hint="--output")
        ending = self.form or ("json" if self.output.endswith(".json") else "yaml")
        if ending not in tuple(DocumentFormat):
            msg = f"'{self.form}' is neither yaml nor json"
            raise typer.BadParameter(msg, param_hint="--format")
        form = DocumentFormat(ending)
        path = Path(self.output)
        if self.output == "-":
            write(text_of(export, form).rstrip("\n"))
        elif self.output.endswith("/") or path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            files = files_of(export, form)
            for name, text in files.items():
                (path / name).write_text(text, encoding="utf-8")
                say(f"{path / name}")
            for left in stale_files(path, export.target.value, files):
                say(f"note: {left} is from an earlier export and not part of this one: delete it")
        else:
            path.write_text(text_of(export, form), encoding="utf-8")
            say(self.output)
        for note in export.notes:
            say(f"note: {note}")
