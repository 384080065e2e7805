"""How to plant a fault in the hardened example: changes of its document and its files."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tests.unit.advise.conftest import NOW

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InSpec:
    """A change of the spec's document, or of a file beside it."""

    check: str
    name: str
    change: Callable[[Document, Path], None]
    where: str


def put(path: str, value: object) -> Callable[[Document, Path], None]:
    """Set a value of the document: `gateway.host`; a number is a position."""

    def change(document: Document, _: Path) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = document
        for part in parents:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        place[last] = value

    return change


def drop(path: str) -> Callable[[Document, Path], None]:
    """Take a value out of the document."""

    def change(document: Document, _: Path) -> None:
        *parents, last = path.split(".")
        place: Any = document
        for part in parents:
            place = place[int(part)] if part.isdigit() else place[part]
        del place[last]

    return change


def chmod(file: str, mode: int) -> Callable[[Document, Path], None]:
    def change(_: Document, folder: Path) -> None:
        (folder / file).chmod(mode)

    return change


def both(*changes: Callable[[Document, Path], None]) -> Callable[[Document, Path], None]:
    def change(document: Document, folder: Path) -> None:
        for one in changes:
            one(document, folder)

    return change


def write(file: str, text: str) -> Callable[[Document, Path], None]:
    def change(_: Document, folder: Path) -> None:
        (folder / file).write_text(text)

    return change


def with_upstream(upstream: Document) -> Callable[[Document, Path], None]:
    """The example's endpoint, answered by somebody else's server."""

    def change(document: Document, _: Path) -> None:
        endpoint = document["endpoints"][0]
        del endpoint["model"], endpoint["autoscale"]
        endpoint["upstream"] = upstream

    return change


def with_model(name: str, text: str, **more: object) -> Callable[[Document, Path], None]:
    """A model beside the spec, instead of the registry's."""

    def change(document: Document, folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)
        document["endpoints"][0] |= {"model": f"./{name.partition('/')[0]}", **more}

    return change


def self_signed(_: Document, folder: Path) -> None:
    """The authority's own certificate at the gateway."""
    (folder / "pki/server.pem").write_bytes(made_certificate(folder, name="localhost", own=True))


def nameless(_: Document, folder: Path) -> None:
    (folder / "pki/server.pem").write_bytes(made_certificate(folder, name="", own=False))


def made_certificate(folder: Path, *, name: str, own: bool) -> bytes:
    """A certificate for the gateway's key."""

    key = load_pem_private_key((folder / "pki/server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    common = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name or "gateway")])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(common)
        .issuer_name(common if own else issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
    )
    if name:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def elliptic_signer(_: Document, folder: Path) -> None:

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    data = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "pki/signer.pub.pem").write_bytes(data)
