"""What is profiled? A path, a version of the registry, or what an endpoint serves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.cli.connection import find_target
from headrace.cli.home_registry import stored_model
from headrace.core import HeadraceError, InvalidArgumentError, NotFoundError
from headrace.registry import read_content


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is profiled. `endpoint`: empty for a model."""

    name: str
    path: Path
    runtime: str
    digest: str
    allow_code: bool
    rows_independent: bool = False
    endpoint: str = ""


def find_subject(
    target: str,
    *,
    server: str | None,
    home: Path,
    runtime: str,
    allow_code: bool,
    rows_independent: bool = False,
) -> Subject:
    """What `target` names: a path, else an endpoint that runs, else a model of the registry.

    An endpoint's model is measured as its spec declares its rows.

    Raises:
        NotFoundError: There is none of these.
    """
    path = Path(target)
    if path.exists():
        digest = str(read_content(path).digest)
        return Subject(
            name=target,
            path=path.absolute(),
            runtime=runtime,
            digest=digest,
            allow_code=allow_code,
            rows_independent=rows_independent,
        )
    endpoint, reference = "", target
    if ":" not in target and (served := _served(target, server, home)):
        endpoint, reference = target, str(served["model"])
        declared = (served.get("batching") or {}).get("independence") == "declared"
        rows_independent = rows_independent or declared
    try:
        version, path = stored_model(reference, home)
    except (NotFoundError, InvalidArgumentError) as error:
        if endpoint:
            msg = f"endpoint '{target}' serves {reference}, which is not in {home}: {error}"
            raise NotFoundError(msg) from None
        msg = f"there is no file or directory and no endpoint '{target}', and {error}"
        raise NotFoundError(msg) from None
    return Subject(
        name=version.reference,
        path=path,
        runtime=version.runtime,
        digest=str(version.digest),
        allow_code=allow_code or bool(endpoint),
        rows_independent=rows_independent,
        endpoint=endpoint,
    )


def _served(name: str, server: str | None, home: Path) -> dict[str, Any]:
    """The revision with the most requests of an endpoint; empty if there is none such."""
    try:
        status = find_target(server, home).management().get("/api/v1/status")
    except HeadraceError:
        return {}
    for endpoint in status["endpoints"]:
        if endpoint["name"] == name:
            versions = [one for one in endpoint["revisions"] if ":" in str(one.get("model", ""))]
            return max(versions, key=lambda one: one.get("weight", 0), default={})
    return {}
