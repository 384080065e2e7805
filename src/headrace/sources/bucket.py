"""Source of models in S3 (or compatible), Google Cloud Storage or Azure."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final

from headrace.core import FailedPreconditionError, NotFoundError
from headrace.core.model_uri import ModelUri
from headrace.registry.bucket import ObjectStore
from headrace.sources.http import unpack_of
from headrace.sources.listing import MAX_FILES, Listing, RemoteBody, RemoteFile

_PART_BYTES: Final = 8 << 20


class BucketSource:
    """An object, or all objects below a prefix."""

    def __init__(self, uri: ModelUri, bucket: ObjectStore) -> None:
        self._uri = uri
        self._bucket = bucket

    def resolve(self) -> Listing:
        """Return the object of that key; without one, the objects below the key.

        Raises:
            NotFoundError: There is neither.
        """
        key = self._uri.path
        lone = self._bucket.find(key)
        if lone is not None:
            file = RemoteFile(
                path="",
                locator=key,
                size_bytes=lone.size_bytes,
                etag=lone.etag,
                unpack=unpack_of(self._uri.filename),
            )
            return Listing(
                name=self._uri.filename, files=(file,), revision=f"etag {lone.etag}, {lone.key}"
            )
        files = []
        identity = hashlib.sha256()
        for info in self._bucket.list(f"{key}/"):
            if not info.key.startswith(f"{key}/"):
                continue  # the marker of the directory itself
            files.append(
                RemoteFile(
                    path=info.key.removeprefix(f"{key}/"),
                    locator=info.key,
                    size_bytes=info.size_bytes,
                    etag=info.etag,
                )
            )
            if len(files) > MAX_FILES:
                break  # `check_listing` refuses it
        # Consoles mark a directory by an empty object `DIRECTORY/`, listed here without the `/`.
        directories = {str(parent) for file in files for parent in PurePosixPath(file.path).parents}
        files = [file for file in files if file.size_bytes or file.path not in directories]
        if not files:
            raise NotFoundError(f"{self._uri.location}: there is no such object or prefix")
        files.sort(key=lambda file: file.path)
        for file in files:
            identity.update(f"{file.path}\0{file.etag}\0{file.size_bytes}\n".encode())
        return Listing(
            name=self._uri.filename,
            files=tuple(files),
            revision=f"objects {identity.hexdigest()}",
        )

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[RemoteBody]:
        """Open an object from byte `start`."""
        yield RemoteBody(offset=start, chunks=self._chunks(file, start), size_bytes=file.size_bytes)

    def _chunks(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        size = file.size_bytes or 0
        while start < size:
            part = self._bucket.read_range(file.locator, start, min(_PART_BYTES, size - start))
            if not part:
                break
            yield part
            start += len(part)
        info = self._bucket.find(file.locator)
        if info is None or info.etag != file.etag or start != size:
            message = f"{self._uri.location}: {file.locator} changed during the download"
            raise FailedPreconditionError(f"{message}; run the command again")
