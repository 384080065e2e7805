"""What is a revision the same by, on every machine? What its replicas do, not where things lie.

Two control planes give one id to the same content with the same settings, whatever their homes are
and wherever features were defined. A place counts only where nothing says what is there: an online
store outside the home, a Feast repository, a model that cannot be read as a whole. What a machine
brings (library versions, ports, sockets) is no part of it: a process is told that at its start.
"""

import hashlib
from pathlib import PurePath
from typing import Final

import msgspec

from headrace.control.artifact_paths import artifact_at
from headrace.control.online_stores import SQLITE
from headrace.core import FeatureSettings, ReplicaSettings

_DIGITS: Final = 16


def digest_of(parts: list[object]) -> str:
    """The id of what `parts` say; equal for equal ones."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:_DIGITS]


def everywhere(settings: ReplicaSettings, content: str = "") -> ReplicaSettings:
    """`settings` as all machines have them: for an id, not for a process.

    A model's path becomes `DIGEST/NAME`, and a file in the home what it is called there.

    Args:
        content: The digest of a model that is in no home's artifacts; empty if nobody knows it.
    """
    stored = artifact_at(settings.path)
    path = settings.path
    if content:
        path = f"{content}/{PurePath(path).name}"
    elif stored is not None:
        path = f"{stored.digest}/{stored.filename}"
    features = settings.features
    if not isinstance(features, msgspec.UnsetType):
        features = _features(features, None if stored is None else stored.home)
    return msgspec.structs.replace(settings, path=path, features=features)


def _features(told: FeatureSettings, home: str | None) -> FeatureSettings:
    from headrace.features import served_part  # noqa: PLC0415  # few have features

    store = told.online_store
    if home is not None and store.startswith(f"{SQLITE}{home}/"):
        store = SQLITE + store.removeprefix(f"{SQLITE}{home}/")
    return msgspec.structs.replace(told, service=served_part(told.service), online_store=store)
