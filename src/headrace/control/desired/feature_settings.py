"""Feature settings of replicas and of stream workers that push features."""

from pathlib import Path

from headrace.core import (
    FeatureLookup,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    OnUnavailable,
)
from headrace.core.feature_settings import FEAST
from headrace.core.spec.features import EndpointFeaturesSpec
from headrace.core.spec.streams import StreamPushSpec
from headrace.core.variables import url_filled_in
from headrace.features import applied_definitions, encode_service, open_online_store
from headrace.features.applied import online_store_reference
from headrace.features.wire import column_specs, encode_view, key_specs
from headrace.pipeline import check_features, plan_assemblies
from headrace.streaming.settings import (
    PushSettings,
)


def feature_settings(
    spec: EndpointFeaturesSpec,
    home: Path,
    *,
    url: str | None,
    model: Path,
    runtime: str,
    signature: ModelSignature,
    network: bool,
) -> FeatureLookup:
    """Return the feature settings of an endpoint's replicas, from the current definitions.

    Args:
        url: URL of the online store that `spec` names; None for the home's own.
        network: Whether replicas may open connections.

    Raises:
        InvalidArgumentError: The service's columns do not fit the model.
        NotFoundError: The feature service does not exist.
        FailedPreconditionError: No features are defined, or a library is missing.
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
        message = "the pipeline maps features itself; remove 'inputs'"
        raise InvalidArgumentError(message)
    url = url or online_store_reference(home)
    if url.startswith(FEAST) and not network:
        _check_feast(Path(url.removeprefix(FEAST)))
    return FeatureLookup(
        service=encode_service(service),
        online_store=url,
        inputs={name: list(columns) for name, columns in spec.inputs.items()},
        timeout_s=spec.timeout_s,
        cache_ttl_s=spec.cache_ttl_s,
        on_unavailable=OnUnavailable(spec.on_unavailable),
        show_status=spec.show_status,
    )


def _check_feast(repo: Path) -> None:
    """Reject a repository whose online store replicas cannot reach."""
    from headrace.features.feast.repository import read_repository  # noqa: PLC0415  # few have one

    kind = str(read_repository(repo).online.get("type", "sqlite"))
    if kind != "sqlite":
        message = (
            f"Feast's online store is in '{kind}', which is reached over the network, and replicas "
            "may not use that; add `network: true`"
        )
        raise InvalidArgumentError(message)


class PushMistakeError(InvalidArgumentError):
    """The push settings of a stream are invalid; `field` names the setting."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def push_settings(spec: StreamPushSpec, home: Path, *, url: str | None) -> PushSettings:
    """Return the push settings of a stream's workers, from the view's current definition.

    Args:
        url: URL of the online store that `spec` names; None for the home's own.

    Raises:
        PushMistakeError: The view or the store does not exist, or they do not match.
    """
    try:
        view = applied_definitions(home).view(spec.view)
    except HeadraceError as error:
        raise PushMistakeError("view", str(error)) from error
    names = [*view.join_keys, *(feature.name for feature in view.features)]
    for name in spec.fields:
        if name not in names:
            message = f"view '{view.name}' has no '{name}'; it has: {', '.join(names)}"
            raise PushMistakeError("fields", message)
    return PushSettings(
        view=spec.view,
        definition=encode_view(view),
        fields=dict(spec.fields),
        time=spec.time,
        online_store=_store(url or online_store_reference(home)),
        timeout_s=spec.timeout_s,
    )


def _store(url: str) -> str:
    """Return `url` if a store can be opened there; its references stay unresolved."""
    if url.startswith(FEAST):
        message = "the home's online store is Feast's, which writes it itself; name another"
        raise PushMistakeError("online_store", message)
    try:
        store = open_online_store(url_filled_in(url, description="the URL of the online store"))
    except HeadraceError as error:
        raise PushMistakeError("online_store", str(error)) from error
    store.close()
    return url
