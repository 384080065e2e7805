"""A store in memory, and one in which something happens before a chosen request."""

from collections.abc import Callable, Iterable, Iterator

from headrace.registry.bucket import ObjectInfo, ObjectStore


class MemoryBucket:
    """Objects in a dictionary, dated by `now`."""

    where = "s3://models/unit"

    def __init__(self, now: Callable[[], float]) -> None:
        self.objects: dict[str, tuple[bytes, float, str]] = {}
        self._now = now
        self._written = 0

    def _put(self, key: str, data: bytes) -> None:
        self._written += 1
        self.objects[key] = (data, self._now(), f'"{self._written}"')

    def read(self, key: str) -> tuple[bytes, str] | None:
        found = self.objects.get(key)
        return None if found is None else (found[0], found[2])

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        found = self.objects.get(key)
        return None if found is None else found[0][start : start + length]

    def find(self, key: str) -> ObjectInfo | None:
        found = self.objects.get(key)
        if found is None:
            return None
        data, at, etag = found
        return ObjectInfo(key=key, size_bytes=len(data), modified_at=at, etag=etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key in sorted(self.objects):
            info = self.find(key)
            if key.startswith(prefix) and info is not None:
                yield info

    def create(self, key: str, data: bytes) -> bool:
        if key not in self.objects:
            self._put(key, data)
        return self.objects[key][0] == data

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        if key not in self.objects or self.objects[key][2] != etag:
            return False
        self._put(key, data)
        return True

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        data = b"".join(chunks)
        assert len(data) == size_bytes
        self._put(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def clean(self, before: float) -> None:
        """Nothing is left here."""


class InterruptedBucket:
    """`bucket`, in which `act` happens once, before request number `at` (the first is 1)."""

    def __init__(self, bucket: ObjectStore, at: int, act: Callable[[], object]) -> None:
        self.where = bucket.where
        self.requests = 0
        self._bucket = bucket
        self._at = at
        self._act = act

    def _count(self) -> None:
        self.requests += 1
        if self.requests == self._at:
            self._act()

    def read(self, key: str) -> tuple[bytes, str] | None:
        self._count()
        return self._bucket.read(key)

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        self._count()
        return self._bucket.read_range(key, start, length)

    def find(self, key: str) -> ObjectInfo | None:
        self._count()
        return self._bucket.find(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._count()
        return iter(list(self._bucket.list(prefix)))

    def create(self, key: str, data: bytes) -> bool:
        self._count()
        return self._bucket.create(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        self._count()
        return self._bucket.replace(key, data, etag)

    def upload(self, key: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        self._count()
        self._bucket.upload(key, chunks, size_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._count()
            self._bucket.delete([key])

    def clean(self, before: float) -> None:
        self._bucket.clean(before)
