"""What the workers of a stream that pushes are told: its feature view and online store, checked."""

from pathlib import Path

from headrace.control.online_stores import FEAST
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.core.spec_streams import StreamPushSpec
from headrace.core.variables import url_filled_in
from headrace.features import (
    FeatureView,
    applied_definitions,
    encode_view,
    online_store_reference,
    open_online_store,
)
from headrace.streaming.settings import PushSettings


class PushMistakeError(InvalidArgumentError):
    """A stream cannot push as it says; `field` is where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def push_settings(spec: StreamPushSpec, home: Path, *, url: str | None) -> PushSettings:
    """What the workers of a stream are told, with the view as it is in force now.

    Args:
        url: Of the online store that `spec` names; None for the home's own.

    Raises:
        PushMistakeError: There is no such view, or no such store, or they do not fit.
    """
    return PushSettings(
        view=spec.view,
        definition=encode_view(_view(spec, home)),
        fields=dict(spec.fields),
        time=spec.time,
        online_store=_store(url or online_store_reference(home)),
        timeout_s=spec.timeout_s,
    )


def _view(spec: StreamPushSpec, home: Path) -> FeatureView:
    try:
        view = applied_definitions(home).view(spec.view)
    except HeadraceError as error:
        raise PushMistakeError("view", str(error)) from error
    names = [*view.join_keys, *(feature.name for feature in view.features)]
    for name in spec.fields:
        if name not in names:
            message = f"view '{view.name}' has no '{name}'; it has: {', '.join(names)}"
            raise PushMistakeError("fields", message)
    return view


def _store(url: str) -> str:
    """`url`, if a store can be opened there; references in it stay as they are."""
    if url.startswith(FEAST):
        message = "the home's online store is Feast's, which writes it itself; name another"
        raise PushMistakeError("online_store", message)
    try:
        store = open_online_store(url_filled_in(url, what="the URL of the online store"))
    except HeadraceError as error:
        raise PushMistakeError("online_store", str(error)) from error
    store.close()
    return url
