"""What is in the files that a spec names? Read with bounds; nothing in them is ever run."""

import base64
import hashlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from headrace.advise.facts import CertificateFact, FileFact, KeyMaterial
from headrace.advise.inventory import recognise
from headrace.advise.look import NamedFile
from headrace.core.files import read_regular

MOST_BYTES: Final = 1 << 20
_MOST_CERTIFICATES: Final = 1000


class _JsonKey(msgspec.Struct):
    kty: str = ""
    crv: str = ""
    n: str = ""


class _KeySet(msgspec.Struct):
    keys: list[_JsonKey]


def file_fact(path: Path) -> FileFact:
    """A file's or directory's mode, and who gets there; nothing of its content."""
    fact = FileFact(path=str(path))
    try:
        status = path.stat()
    except OSError:
        return replace(fact, exists=False, mode=0)
    return replace(
        fact,
        mode=stat.S_IMODE(status.st_mode),
        is_reachable=_is_reachable(path),
        has_private_group=status.st_uid == status.st_gid and status.st_uid != 0,
    )


def named_file_fact(named: NamedFile) -> FileFact:
    """What a file is that the spec names, and what is in it."""
    path = Path(named.path)
    fact = file_fact(path)
    if not fact.exists:
        return fact
    if named.kind == "model":
        found = recognise(path)
        return replace(fact, format=found.format.value, runs_code=found.runs_code)
    try:
        data = read_regular(path, limit_bytes=MOST_BYTES)
    except OSError as error:
        return replace(fact, problem=f"cannot be read: {error.strerror or error}")
    try:
        return _READERS[named.kind](fact, data)
    except UnsupportedAlgorithm:
        return replace(fact, problem="uses an algorithm that is not known here")
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return replace(fact, problem=f"is no {_CALLED[named.kind]}")


def _is_reachable(path: Path) -> bool:
    try:
        parents = path.resolve().parents
        return all(parent.stat().st_mode & 0o011 for parent in parents)
    except OSError:
        return True  # what cannot be proved private is not


def _certificates(fact: FileFact, data: bytes) -> FileFact:
    found = x509.load_pem_x509_certificates(data)[:_MOST_CERTIFICATES]
    return replace(fact, certificates=tuple(map(certificate_fact, found)))


def certificate_fact(one: x509.Certificate) -> CertificateFact:
    """What checks look at in a certificate."""
    try:
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        values = tuple(str(name.value) for name in names)
    except (x509.ExtensionNotFound, ValueError):
        values = ()
    try:
        algorithm = one.signature_hash_algorithm
        hashed = "" if algorithm is None else algorithm.name
    except UnsupportedAlgorithm:
        hashed = ""
    return CertificateFact(
        subject=one.subject.rfc4514_string() or "(no subject)",
        issuer=one.issuer.rfc4514_string() or "(no issuer)",
        not_before=one.not_valid_before_utc,
        not_after=one.not_valid_after_utc,
        key=key_material(one.public_key()),
        signature_hash=hashed,
        names=values,
    )


def key_material(key: PublicKeyTypes) -> KeyMaterial:
    """The kind and size of a public key."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(encoded).hexdigest()
    match key:
        case rsa.RSAPublicKey():
            kind, bits = "RSA", key.key_size
        case ec.EllipticCurvePublicKey():
            kind, bits = "EC", key.key_size
        case ed25519.Ed25519PublicKey():
            kind, bits = "Ed25519", 0
        case ed448.Ed448PublicKey():
            kind, bits = "Ed448", 0
        case dsa.DSAPublicKey():
            kind, bits = "DSA", key.key_size
        case _:
            kind, bits = type(key).__name__.removesuffix("PublicKey"), 0
    return KeyMaterial(kind=kind, bits=bits, fingerprint=fingerprint)


def _private_key(fact: FileFact, data: bytes) -> FileFact:
    if b"ENCRYPTED" in data:
        return replace(fact, problem="is encrypted, and there is nobody to ask for its password")
    key = load_pem_private_key(data, password=None)
    return replace(fact, keys=(key_material(key.public_key()),))


def _public_key(fact: FileFact, data: bytes) -> FileFact:
    return replace(fact, keys=(key_material(load_pem_public_key(data)),))


def _key_set(fact: FileFact, data: bytes) -> FileFact:
    found = msgspec.json.decode(data, type=_KeySet).keys
    return replace(fact, keys=tuple(map(_json_key, found)))


def _json_key(key: _JsonKey) -> KeyMaterial:
    if key.kty == "RSA":
        number = base64.urlsafe_b64decode(key.n + "=" * (-len(key.n) % 4))
        return KeyMaterial(kind="RSA", bits=int.from_bytes(number, "big").bit_length())
    return KeyMaterial(kind="oct" if key.kty == "oct" else key.crv or key.kty)


_READERS: Final[Mapping[str, Callable[[FileFact, bytes], FileFact]]] = {
    "certificate": _certificates,
    "ca": _certificates,
    "key": _private_key,
    "trusted": _public_key,
    "jwks": _key_set,
}
_CALLED: Final = {
    "certificate": "certificate in PEM",
    "ca": "certificate in PEM",
    "key": "private key in PEM",
    "trusted": "public key in PEM",
    "jwks": "set of keys (RFC 7517)",
}
