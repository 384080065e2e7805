"""Object store in S3 (or compatible), Google Cloud Storage or Azure, on obstore."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from headrace.core import FailedPreconditionError, UnavailableError
from headrace.registry.bucket import ObjectInfo, check_small

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

PART_BYTES: Final = 8 << 20
MAX_PARTS: Final = 9_000
"""Parts of one upload; stores allow 10,000."""
_MAX_CONCURRENT_PARTS: Final = 4
_KINDS: Final = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_CREDENTIALS: Final = re.compile(r"(?<=://)[^\s/@]*@|\?\S*")
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class ObjectBucket:
    """Objects under a URL's prefix.

    Args:
        url: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
        config: obstore options beyond the environment, such as credentials and the endpoint.
        retry_s: Retry time of a small request; parts of large objects are retried eight times as
            long.
    """

    def __init__(self, url: str, config: dict[str, str], *, retry_s: float) -> None:
        self.where = url
        kind: Any = _KINDS[url.partition(":")[0]]
        plain = any(value.startswith("http://") for value in config.values())
        # `read_timeout` limits the wait for the next bytes of a response, so a large object may
        # take long.
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=max(retry_s, 1.0)),
            "timeout": timedelta(seconds=max(60.0, 30 * retry_s)),
            "allow_http": plain,
        }

        def opened(within_s: float) -> Any:  # noqa: ANN401  # one of three kinds with the same interface
            retry: RetryConfig = {
                "max_retries": 1000,  # only the time limit counts
                "retry_timeout": timedelta(seconds=within_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=min(5.0, within_s / 2)),
                    "base": 2,
                },
            }
            return kind.from_url(url, config=config, client_options=client, retry_config=retry)

        with self._errors("open it"):
            self._quick = opened(retry_s)
            self._patient = opened(8 * retry_s)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object with its etag; None if it does not exist."""
        with self._errors(f"read {key}"):
            try:
                response = obstore.get(self._quick, key)
                check_small(self.where, key, response.meta["size"])
                return bytes(response.bytes()), response.meta["e_tag"] or ""
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        """Return `length` bytes from `start`, fewer at the end; None if it does not exist."""
        with self._errors(f"read {key}"):
            try:
                return bytes(obstore.get_range(self._patient, key, start=start, length=length))
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def find(self, key: str) -> ObjectInfo | None:
        """Return the listing entry of an object; None if it does not exist."""
        with self._errors(f"find {key}"):
            try:
                return _info(obstore.head(self._quick, key))
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects whose keys begin with `prefix`, which is empty or ends with `/`."""
        with self._errors(f"list {prefix}"):
            try:
                for page in obstore.list(self._quick, prefix or None, chunk_size=1000):
                    yield from map(_info, page)
            except FileNotFoundError as error:
                self._check_bucket(error)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that does not exist yet; return whether it holds `data` now."""
        return self._put(key, data, "create")

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Overwrite the content with this `etag`; return whether the object holds `data` now."""
        return self._put(key, data, {"e_tag": etag})

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        """Write or overwrite a large object; an error of `chunks` leaves it unchanged."""
        with self._errors(f"write {key}"):
            if size_bytes <= PART_BYTES:
                obstore.put(self._patient, key, b"".join(chunks), use_multipart=False)
                return
            part = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
            obstore.put(
                self._patient, key, chunks, chunk_size=part, max_concurrency=_MAX_CONCURRENT_PARTS
            )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        with self._errors("delete"):
            for key in keys:
                try:
                    obstore.delete(self._quick, key)
                except FileNotFoundError as error:
                    self._check_bucket(error)

    def clean(self, before: float) -> None:
        """Do nothing: a lifecycle rule of the bucket deletes unfinished uploads."""

    def _put(self, key: str, data: bytes, mode: Any) -> bool:  # noqa: ANN401  # obstore's `PutMode`
        with self._errors(f"write {key}"):
            try:
                obstore.put(self._quick, key, data, mode=mode, use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                # Also the retry of a write whose response was lost: the stored content counts.
                return self._holds(key, data)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return False
            except exceptions.GenericError:
                if self._holds(key, data):
                    return True
                raise
        return True

    def _holds(self, key: str, data: bytes) -> bool:
        stored = self.read(key)
        return stored is not None and stored[0] == data

    def _check_bucket(self, error: Exception) -> None:
        """Ignore a missing object, but not a missing bucket.

        Raises:
            FailedPreconditionError: The bucket is missing.
        """
        if any(mark in str(error) for mark in _NO_BUCKET):
            raise FailedPreconditionError(
                f"{self.where}: the bucket does not exist; create it first"
            ) from error

    @contextmanager
    def _errors(self, description: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise FailedPreconditionError(
                f"{self.where} denies permission to {description}: {_reason(error)}"
            ) from None
        except exceptions.GenericError as error:
            self._check_bucket(error)
            raise UnavailableError(
                f"cannot {description} of {self.where}: {_reason(error)}"
            ) from None
        except exceptions.BaseError as error:
            raise FailedPreconditionError(
                f"cannot {description} of {self.where}: {_reason(error)}"
            ) from None


def _reason(error: Exception) -> str:
    """Return the error's first line without credentials."""
    first = str(error).partition("\n")[0]
    return _CREDENTIALS.sub("", first)[:500]


def _info(meta: Any) -> ObjectInfo:  # noqa: ANN401  # obstore's `ObjectMeta`, a TypedDict
    return ObjectInfo(
        key=meta["path"],
        size_bytes=meta["size"],
        modified_at=meta["last_modified"].timestamp(),
        etag=meta["e_tag"] or "",
    )
