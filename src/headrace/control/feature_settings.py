"""What the replicas of an endpoint are told of its features, checked against its model."""

from pathlib import Path

from headrace.control.online_stores import FEAST
from headrace.core import (
    FeatureSettings,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    OnUnavailable,
)
from headrace.core.spec_features import FeaturesSpec
from headrace.features import (
    applied_definitions,
    column_specs,
    encode_service,
    key_specs,
    online_store_reference,
)
from headrace.pipeline import check_features, plan_assemblies


def feature_settings(
    spec: FeaturesSpec,
    home: Path,
    *,
    url: str | None,
    model: Path,
    runtime: str,
    signature: ModelSignature,
    network: bool,
) -> FeatureSettings:
    """What the replicas of an endpoint are told, with the definitions that are in force now.

    Args:
        url: Of the online store that `spec` names; None for the home's own.
        network: Whether they may open connections.

    Raises:
        InvalidArgumentError: The service's columns do not fit the model.
        NotFoundError: There is no such service.
        FailedPreconditionError: Nothing is defined yet, or a library is missing.
    """
    service = applied_definitions(home).service(spec.service)
    keys, columns = key_specs(service), column_specs(service)
    try:
        itself = runtime == "pipeline" and check_features(model, service.name, columns)
        if not itself:
            plan_assemblies(signature, keys=keys, columns=columns, inputs=spec.inputs)
    except HeadraceError as error:
        message = f"features of '{service.name}' do not fit the model: {error}"
        raise InvalidArgumentError(message) from error
    if itself and spec.inputs:
        message = "the pipeline says itself what it makes of features; leave 'inputs' out"
        raise InvalidArgumentError(message)
    url = url or online_store_reference(home)
    if url.startswith(FEAST) and not network:
        _check_feast(Path(url.removeprefix(FEAST)))
    return FeatureSettings(
        service=encode_service(service),
        online_store=url,
        inputs={name: list(columns) for name, columns in spec.inputs.items()},
        timeout_s=spec.timeout_s,
        cache_ttl_s=spec.cache_ttl_s,
        on_unavailable=OnUnavailable(spec.on_unavailable),
        show_status=spec.show_status,
    )


def _check_feast(repo: Path) -> None:
    """Refuse a repository whose online store replicas could not reach."""
    from headrace.features.feast.repository import read_repository  # noqa: PLC0415  # few have one

    kind = str(read_repository(repo).online.get("type", "sqlite"))
    if kind != "sqlite":
        message = (
            f"Feast's online store is in '{kind}', which is reached over the network, and replicas "
            "may not use that; add `network: true`"
        )
        raise InvalidArgumentError(message)
