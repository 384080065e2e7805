"""Models of URIs: downloaded on this machine, and stored as versions of the registry.

A version records the URI (`source`) and the identity of the content there (`source_revision` of its
metadata). While that identity is unchanged the version is used again without a download.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.cli.base.hub_folders import is_pushed_hub_folder, push_model
from headrace.cli.base.model_store import ModelStore, pushed_of, with_models
from headrace.cli.base.offline import HomeModels, Pushed
from headrace.cli.base.output import TransferView, progress, say
from headrace.core import ArtifactCorruptError, CodeNotAllowedError, HeadraceError, NotFoundError
from headrace.core.model_uri import ModelUri, UriScheme, is_model_uri, parse_model_uri
from headrace.registry import read_content

if TYPE_CHECKING:
    from headrace.sources import Listing

REVISION: Final = "source_revision"
_CACHE: Final = "sources"
"""Directory of a home with incomplete downloads."""


def uris_in(document: Mapping[str, Any]) -> list[str]:
    """Return the models of a spec that are URIs."""
    uris: list[str] = []

    def note(_owner: Mapping[str, Any], model: str) -> None:
        if is_model_uri(model):
            uris.append(model)

    with_models(document, note)
    return uris


def with_pushed_models(
    document: Mapping[str, Any], open_store: Callable[[], ModelStore], *, home: Path
) -> dict[str, Any]:
    """Return a spec with versions of the registry in place of URIs and Hugging Face folders.

    Each version is of a model that is named like the endpoint, stream or job.

    Args:
        open_store: Opens the store of the versions; called only if there is such a model.
        home: Directory of incomplete downloads; it is hidden from exports.

    Raises:
        HeadraceError: A URI cannot be fetched, or a model cannot be stored.
    """
    store = cache(open_store)

    def pushed(owner: Mapping[str, Any], model: str) -> str | None:
        name = str(owner["name"])
        if is_model_uri(model):
            version = stored_from(
                model,
                name,
                store(),
                home=home,
                runtime=owner.get("runtime", ""),
                allow_code=bool(owner.get("allow_code", False)),
            )
            say(f"{parse_model_uri(model)} is {version['reference']}")
        elif model.startswith("/") and is_pushed_hub_folder(local := pushed_of(owner, model)):
            version = push_model(store(), name, local, home)
        else:
            return None
        reference: str = version["reference"]
        return reference

    return with_models(document, pushed)


def stored_from(
    text: str,
    name: str,
    store: ModelStore,
    *,
    home: Path,
    runtime: str = "",
    allow_code: bool = False,
    source: str = "",
) -> dict[str, Any]:
    """Return the version of `name` with the content of a URI; stored now if there is none.

    Args:
        home: Directory of incomplete downloads.
        runtime: Runtime of the model; empty detects it.
        allow_code: Whether the format may run its author's code.
        source: Origin to record; empty for the URI.

    Raises:
        HeadraceError: The URI cannot be fetched, or its model cannot be stored.
    """
    remote = RemoteModel(parse_model_uri(text), home)
    version = remote.stored_in(store, name, runtime)
    if version is None:
        with remote.fetched(runtime=runtime, allow_code=allow_code, source=source) as pushed:
            # An upload and an export show their own progress.
            has_progress = isinstance(store, HomeModels) and not is_pushed_hub_folder(pushed)
            with (
                progress(f"checking and storing {remote.uri.location}")
                if has_progress
                else nullcontext()
            ):
                return push_model(store, name, pushed, home)
    if version["runs_code"] and not allow_code:
        raise CodeNotAllowedError(str(remote.uri), version["runtime"])
    return version


class RemoteModel:
    """Model of a URI, whose current content is looked up once.

    Args:
        home: Directory of incomplete downloads.
    """

    def __init__(self, uri: ModelUri, home: Path) -> None:
        from headrace.sources import Downloader, open_source

        self.uri = uri
        self._downloader: Downloader | None = None
        if uri.scheme is not UriScheme.FILE:
            self._downloader = Downloader(
                source=open_source(uri),
                location=uri.location,
                cache=home / _CACHE,
                on_transfer=TransferView().update,
            )
        self._listing: Listing | None = None

    def stored_in(self, store: ModelStore, name: str, runtime: str) -> dict[str, Any] | None:
        """Return the newest version of `name` with this content; None without one.

        A pinned digest is compared with the digests of the versions, without contacting the source.
        """
        try:
            versions = store.list(name)["models"]
        except NotFoundError:
            versions = []
        fits = [v for v in reversed(versions) if runtime in {"", v["runtime"]}]
        if self.uri.sha256:
            return next((v for v in fits if v["digest"] == f"sha256:{self.uri.sha256}"), None)
        if not fits or not (revision := self._revision()):
            return None
        recorded = (self.uri.location, revision)
        return next(
            (v for v in fits if (v["source"], v["metadata"].get(REVISION)) == recorded), None
        )

    @contextmanager
    def fetched(
        self, *, runtime: str = "", allow_code: bool = False, source: str = ""
    ) -> Iterator[Pushed]:
        """Yield the downloaded model, to be pushed in the block.

        Args:
            source: Origin to record; empty for the URI.

        Raises:
            ArtifactCorruptError: The content differs from the digest that the URI pins.
            HeadraceError: As by `Downloader`.
        """
        revision = self._revision()
        metadata = {REVISION: revision} if revision else {}
        with self._path() as path:
            if self.uri.sha256:
                digest = read_content(path).digest
                if digest != f"sha256:{self.uri.sha256}":
                    message = f"{self.uri.location} has the digest {digest}, not {self.uri.sha256}"
                    raise ArtifactCorruptError(message)
            pushed = Pushed(
                path=path,
                runtime=runtime,
                source=source or self.uri.location,
                allow_code=allow_code,
                metadata=metadata,
            )
            try:
                yield pushed
            except HeadraceError as error:  # names the URI instead of a temporary path
                error.args = (str(error).replace(str(path), self.uri.location),)
                raise

    @contextmanager
    def _path(self) -> Iterator[Path]:
        if self._downloader is None:
            yield Path(f"/{self.uri.path}")
            return
        with self._downloader.downloaded(self._resolved()) as path:
            yield path

    def _revision(self) -> str:
        return "" if self._downloader is None else self._resolved().revision

    def _resolved(self) -> "Listing":
        assert self._downloader is not None, "a file of this machine has no listing"
        if self._listing is None:
            with progress(f"looking up {self.uri.location}"):
                self._listing = self._downloader.resolve()
        return self._listing
