"""How does Envoy get a new certificate? By a file of its own, acknowledged like any other."""

import asyncio
import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from headrace.gateway.admin import StatKind
from headrace.gateway.errors import GatewayUnavailableError, SnapshotRejectedError
from headrace.gateway.logfile import size_of
from headrace.gateway.publisher import Publisher, Step, write_document
from headrace.gateway.resources import Resource
from headrace.gateway.snapshot import Document, Kind, make_document, read_document
from headrace.gateway.tls import TYPE, is_secret_file, secret_file


@dataclass(slots=True, kw_only=True)
class SecretFiles:
    """Brings secrets into force, one at a time.

    They are readable by this user only, as everything in the gateway's directory.
    """

    directory: Path
    publisher: Publisher
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def write(self, secret: Resource) -> None:
        """Put a secret where Envoy finds it at its start. Blocking."""
        kind = _kind(str(secret["name"]))
        write_document(self.directory, kind, make_document(kind, [secret]))

    def has(self, name: str) -> bool:
        """Whether there is a secret of this name, as it was last in force."""
        return (self.directory / secret_file(name)).is_file()

    async def put(self, secret: Resource) -> None:
        """Return once Envoy uses `secret`; at once if nothing in force asks for it yet.

        Raises:
            SnapshotRejectedError: Envoy refused it, and keeps what it had.
            GatewayUnavailableError: Envoy is gone, or did not take it in time; it finds the new
                secret at its next start.
        """
        kind = _kind(str(secret["name"]))
        document = make_document(kind, [secret])
        async with self._lock:
            before = await asyncio.to_thread(self._read, kind)
            if before is not None and before.version == document.version:
                return
            is_used = await self._is_used(kind)
            refused = await self._refused(kind) if is_used else 0
            offset = size_of(self.publisher.log)
            await asyncio.to_thread(write_document, self.directory, kind, document)
            if not is_used:
                return
            try:
                await self.publisher.acknowledged(
                    Step(kind, document), refused=refused, offset=offset
                )
            except SnapshotRejectedError:
                if before is not None:
                    await asyncio.to_thread(write_document, self.directory, kind, before)
                raise

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all others: a key that nobody needs should not lie about. Blocking."""
        wanted = {secret_file(name) for name in names}
        for path in self.directory.iterdir():
            if is_secret_file(path.name) and path.name not in wanted:
                path.unlink(missing_ok=True)

    def _read(self, kind: Kind) -> Document | None:
        with contextlib.suppress(FileNotFoundError):
            return read_document((self.directory / kind.file).read_text())
        return None

    async def _is_used(self, kind: Kind) -> bool:
        """Whether Envoy has it: then it says which version."""
        name = f"{kind.stats}.version_text"
        try:
            return name in await self.publisher.admin.stats(re.escape(name), StatKind.TEXT)
        except GatewayUnavailableError:
            return False  # it reads the file when it starts

    async def _refused(self, kind: Kind) -> int:
        pattern = rf"{re.escape(kind.stats)}[.]update_(rejected|failure)"
        counted = await self.publisher.admin.stats(pattern, StatKind.COUNTER)
        return sum(int(count) for count in counted.values())


def _kind(name: str) -> Kind:
    return Kind(secret_file(name), TYPE, f"sds.{name}")
