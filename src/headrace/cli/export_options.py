"""Options that exports for other systems share, and where documents go."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.export_names import check_place, check_service

if TYPE_CHECKING:
    from headrace.deploy import Export, Place
    from headrace.deploy.export import Services

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
    return Place(instance=instance, namespace=namespace, services=_services(services or ()))


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
    from headrace.cli.output import say, write
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


def _services(given: Sequence[str]) -> "Services":
    found = {}
    for key, (text, *more) in addresses_for("--service", given).items():
        name, colon, port = text.partition(":")
        if more or (colon and not (port.isdecimal() and 0 < int(port) <= 65535)):  # noqa: PLR2004  # the last port
            msg = f"{key[0]}:{key[1]} takes one NAME[:PORT], not '{text}'"
            raise typer.BadParameter(msg, param_hint="--service")
        check_service(f"{key[0]}:{key[1]}", name)
        found[key] = (name, int(port) if port else None)
    return found
