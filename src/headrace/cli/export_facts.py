"""What is exported: a spec file or what runs, with what the registry knows of its models."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headrace.core import InvalidArgumentError

if TYPE_CHECKING:
    from headrace.core.spec import SystemSpec
    from headrace.deploy import Artifact, Facts, Observed


def facts_for(
    file: Path | None,
    *,
    from_system: bool,
    server: str | None,
    home: Path,
    allow_loss: Sequence[str] | None,
    only: Sequence[str] | None,
    with_revisions: bool = False,
) -> "Facts":
    """The facts of a spec file, or of what runs.

    Args:
        with_revisions: Also what a control plane would run for the file, with models of this home.

    Raises:
        BadParameter: Neither or both were named.
        InvalidArgumentError: The spec lacks something.
    """
    from headrace.deploy import read_facts

    if (file is None) != from_system:
        msg = "name the spec: either --file FILE or --from-system"
        raise typer.BadParameter(msg, param_hint="--file")
    observed: dict[str, Observed] = {}
    revisions: dict[tuple[str, str], str] = {}
    if file is not None:
        from headrace.cli.spec import read_spec

        spec = read_spec(file)
        artifacts = _artifacts(spec, home)
        if with_revisions:
            from headrace.cli.export_pinned import revisions_in

            revisions = revisions_in(spec, home)
    else:
        from headrace.cli.export_system import running_system

        spec, observed, artifacts = running_system(server, home)
    return read_facts(
        spec,
        artifacts=artifacts,
        observed=observed,
        allowed=allow_loss or (),
        only=only or (),
        key_sets=_key_sets(spec),
        revisions=revisions,
    )


def _artifacts(spec: "SystemSpec", home: Path) -> "dict[str, Artifact]":
    """What the registry, or a file itself, tells of the models in a spec."""
    from headrace.core import HeadraceError
    from headrace.core.spec import is_model_path
    from headrace.registry import Registry

    found: dict[str, Artifact] = {}
    for model in _models(spec):
        try:
            found[model] = (
                _of_file(Path(model)) if is_model_path(model) else known(Registry(home).get(model))
            )
        except HeadraceError:
            continue  # what an export has to know, it asks for by name
    return found


def known(version: Any) -> "Artifact":  # noqa: ANN401  # a ModelVersion, not imported for its name
    """What the registry says of a version."""
    from headrace.deploy import Artifact

    return Artifact(
        filename=version.filename,
        version=version.version,
        digest=version.digest,
        runtime=version.runtime,
        runs_code=version.executes_code,
        sha256=_of_lone_file(version),
        labels=version.labels,
    )


def _of_lone_file(version: Any) -> str:  # noqa: ANN401  # a ModelVersion, not imported for its name
    """The file's digest, where the artifact is one; that of a directory covers a list of files."""
    is_alone = len(version.files) == 1 and not version.files[0].path
    return str(version.digest).removeprefix("sha256:") if is_alone else ""


def _of_file(path: Path) -> "Artifact":
    from headrace.deploy import Artifact
    from headrace.runtimes import detect_runtime, runs_code

    runtime = detect_runtime(path)
    return Artifact(filename=path.name, runtime=runtime.name, runs_code=runs_code(runtime, path))


def _models(spec: "SystemSpec") -> list[str]:
    found = [row.model for endpoint in spec.endpoints for row in endpoint.split()]
    return list(dict.fromkeys(model for model in found if model))


def _key_sets(spec: "SystemSpec") -> dict[str, str]:
    """The public keys of identity providers that stand in files.

    Raises:
        InvalidArgumentError: A file cannot be read.
    """
    found = {}
    for jwt in spec.auth.jwt:
        if not jwt.jwks_file:
            continue
        try:
            found[jwt.name] = Path(jwt.jwks_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"auth.jwt {jwt.name!r}: cannot read {jwt.jwks_file}: {error}"
            raise InvalidArgumentError(msg) from error
    return found
