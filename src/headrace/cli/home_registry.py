"""Which registry do commands on this machine use? A home's, maybe a copy of a shared store."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core import Inspect
    from headrace.registry import ModelVersion, Registry, SharedStore


def home_registry(
    home: Path, inspect: "Inspect | None" = None, *, artifacts: str | None = None
) -> "Registry":
    """The registry of a home, whose versions may be in a shared store.

    Args:
        artifacts: The store's URL; None for what the environment says. Empty, as none, takes the
            store that the home is a copy of, if it is.

    Raises:
        InvalidArgumentError: It is no such URL.
    """
    from headrace.registry import Registry, bound_to

    url = os.environ.get("HEADRACE_ARTIFACTS", "") if artifacts is None else artifacts
    url = url or bound_to(home)
    return Registry(home, inspect, shared=watched_store(url) if url else None)


def stored_model(reference: str, home: Path) -> "tuple[ModelVersion, Path]":
    """A version, checked against its digest, and where it lies.

    A shared store is asked only for what is not whole in the home: a job may have no network.

    Raises:
        VersionNotFoundError: There is none; also without a number if there is no such model.
        ArtifactCorruptError: It is damaged.
    """
    from headrace.core import ArtifactCorruptError
    from headrace.registry import Registry, VersionNotFoundError

    here, maybe_shared = Registry(home), home_registry(home)
    if ":" in reference:
        try:
            version = here.get(reference)
            here.verify(version)
        except (VersionNotFoundError, ArtifactCorruptError):
            pass  # the store may have it
        else:
            return version, here.path(version)
    version = maybe_shared.get(reference)
    maybe_shared.verify(version)
    return version, maybe_shared.path(version)


def watched_store(url: str, *, retry_s: float | None = None) -> "SharedStore":
    """The store at `url`, whose transfers are shown where somebody watches.

    Args:
        retry_s: How long a request is tried again; None for the usual time.
    """
    from headrace.cli.transfers import TransferView
    from headrace.registry import open_shared

    shared = open_shared(url) if retry_s is None else open_shared(url, retry_s=retry_s)
    shared.tell = TransferView().tell
    return shared
