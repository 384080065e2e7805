"""Authorities and certificates for tests, as files; made anew each time, so none ever expires."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from headrace.cli.access.certs import (
    Pair,
    client_certificate,
    new_authority,
    server_certificate,
)


def now() -> float:
    return time.time()  # noqa: TID251  # certificates are of today


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A certificate's and its key's."""

    certificate: Path
    key: Path

    @property
    def both(self) -> tuple[Path, Path]:
        return self.certificate, self.key

    def replace_by(self, other: "Files") -> None:
        """As a tool does that renews certificates: the key first, each by a rename."""
        for mine, theirs in ((self.key, other.key), (self.certificate, other.certificate)):
            temporary = mine.with_suffix(".new")
            temporary.write_bytes(theirs.read_bytes())
            temporary.chmod(0o600)
            temporary.replace(mine)


@dataclass
class Authority:
    """One that signs, with its certificate at `ca`."""

    directory: Path
    name: str = "ca"
    _pair: Pair = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._pair = new_authority(now=now(), days=30, name=f"authority {self.name}")
        self.ca.write_bytes(self._pair.certificate)

    @property
    def ca(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def server(self, file: str, *names: str, days: float = 10.0, at: float | None = None) -> Files:
        begins = now() if at is None else at
        chosen = names or ("localhost", "127.0.0.1")
        pair = server_certificate(self._pair, chosen, now=begins, days=days)
        return self._write(file, pair)

    def client(self, name: str, *, days: float = 10.0, at: float | None = None) -> Files:
        begins = now() if at is None else at
        return self._write(
            name.replace("/", "_"), client_certificate(self._pair, name, now=begins, days=days)
        )

    def _write(self, file: str, pair: Pair) -> Files:
        found = Files(
            certificate=self.directory / f"{file}.pem", key=self.directory / f"{file}-key.pem"
        )
        found.certificate.write_bytes(pair.certificate)
        found.key.write_bytes(pair.key)
        found.key.chmod(0o600)
        return found
