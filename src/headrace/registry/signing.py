"""Ed25519 signatures of model versions.

The signed statement is canonical JSON of name, version, digest, runtime, format, tensors and class
names behind a domain prefix. So none of these can be exchanged, and signatures for other purposes
are invalid here.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    NotSignedError,
    SignedSettings,
    TensorSpec,
)
from headrace.registry.content import read_content
from headrace.registry.index import ModelVersion, VersionSignature

_DOMAIN: Final = b"headrace model version 1\n"
_KEY_BYTES: Final = 32
_MAX_KEY_FILE_BYTES: Final = 64 << 10
_PEM_BEGIN: Final = b"-----BEGIN PUBLIC KEY-----"
_PEM_END: Final = b"-----END PUBLIC KEY-----"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class PublicKey(msgspec.Struct, frozen=True):
    """A raw Ed25519 public key."""

    raw: bytes

    @property
    def id(self) -> str:
        """Key id: the beginning of its SHA-256."""
        return f"ed25519:{hashlib.sha256(self.raw).hexdigest()[:16]}"


def statement(version: ModelVersion) -> bytes:
    """Return the bytes that are signed for a version."""
    signed: dict[str, Any] = {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "runtime": version.runtime,
        "format": PurePosixPath(version.filename).suffix,
        "filename": version.filename,
        "tensors": _tensors(version.signature),
        "labels": {name: list(names) for name, names in version.labels.items()},
    }
    return _DOMAIN + msgspec.json.encode(signed, order="sorted")


def sign(
    version: ModelVersion, key: Ed25519PrivateKey, *, signed_at: float, by: str
) -> VersionSignature:
    """Sign `version` with `key`.

    Args:
        signed_at: Seconds since 1970; like `by`, the signer's name, it is not authenticated.
    """
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return VersionSignature(
        key=base64.b64encode(raw).decode(),
        signature=base64.b64encode(key.sign(statement(version))).decode(),
        signed_at=signed_at,
        by=by,
    )


def key_of(signature: VersionSignature) -> PublicKey:
    """Return the public key that a signature names.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    raw = _decoded(signature.key)
    if len(raw) != _KEY_BYTES:
        raise InvalidArgumentError("the signature's key is not an Ed25519 public key")
    return PublicKey(raw)


def is_valid(version: ModelVersion, signature: VersionSignature) -> bool:
    """Return whether a signature of `version` is valid for the key that it names."""
    try:
        public = Ed25519PublicKey.from_public_bytes(key_of(signature).raw)
        public.verify(_decoded(signature.signature), statement(version))
    except (InvalidSignature, InvalidArgumentError, ValueError):
        return False
    return True


def check_signed(
    version: ModelVersion, signatures: Sequence[VersionSignature], trusted: Iterable[PublicKey]
) -> VersionSignature:
    """Return a valid signature of `version` by a trusted key.

    Raises:
        NotSignedError: No trusted signature; the message describes the existing ones.
    """
    keys = {key.raw for key in trusted}
    untrusted: list[str] = []
    wrong: list[str] = []
    for signature in signatures:
        try:
            key = key_of(signature)
        except InvalidArgumentError:
            wrong.append("a damaged signature")
            continue
        if not is_valid(version, signature):
            wrong.append(f"a signature by {key.id}")
        elif key.raw in keys:
            return signature
        else:
            untrusted.append(key.id)
    if wrong:
        problem = f"its signatures do not match the stored version ({', '.join(wrong)})"
    elif untrusted:
        problem = f"it is signed by {', '.join(untrusted)}, which `trusted_keys` does not list"
    else:
        problem = "it is not signed"
    raise NotSignedError(
        f"{version.reference}: {problem}; this endpoint requires a trusted signature: run "
        f"`headrace models sign {version.reference} --key FILE`"
    )


def signed_settings(version: ModelVersion, signature: VersionSignature) -> SignedSettings:
    """Return the settings with which a replica verifies the signature again."""
    text = statement(version).removeprefix(_DOMAIN).decode()
    return SignedSettings(statement=text, key=signature.key, signature=signature.signature)


class _Statement(msgspec.Struct):
    digest: str
    runtime: str


def verify_signed_settings(path: Path, runtime: str, signed: SignedSettings) -> None:
    """Verify that the model at `path` is the signed one. Reads the whole model.

    Raises:
        NotSignedError: The signature does not match the statement or the runtime.
        ArtifactCorruptError: The model's digest differs from the statement.
    """
    data = _DOMAIN + signed.statement.encode()
    try:
        decoded = msgspec.json.decode(signed.statement, type=_Statement)
        public = Ed25519PublicKey.from_public_bytes(_decoded(signed.key))
        public.verify(_decoded(signed.signature), data)
    except (InvalidSignature, InvalidArgumentError, ValueError, msgspec.MsgspecError) as error:
        raise NotSignedError(
            f"{path.name}: its signature does not match the served model"
        ) from error
    if decoded.runtime != runtime:
        message = f"{path.name}: was signed for runtime '{decoded.runtime}', not '{runtime}'"
        raise NotSignedError(message)
    digest = read_content(path).digest
    if digest != decoded.digest:
        raise ArtifactCorruptError(
            f"{path.name} is not what was signed: {digest}, not {decoded.digest}"
        )


# Key files


def to_text(key: PublicKey) -> str:
    """Return a key in the encoding of signatures."""
    return base64.b64encode(key.raw).decode()


def make_key() -> Ed25519PrivateKey:
    """Create a private key."""
    return Ed25519PrivateKey.generate()


def write_keys(directory: Path, key: Ed25519PrivateKey) -> tuple[Path, Path]:
    """Write `model-signing.pem` (owner-only) and `model-signing.pub.pem`.

    Raises:
        FailedPreconditionError: A file exists already, or cannot be written.
    """
    private, public = directory / "model-signing.pem", directory / "model-signing.pub.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    existing = next((path for path in (private, public) if path.exists()), None)
    if existing is not None:
        raise FailedPreconditionError(
            f"{existing} exists already; move it away or choose another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data, mode in ((private, secret, 0o600), (public, shown, 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise FailedPreconditionError(f"cannot write {error.filename}: {error.strerror}") from error
    return private, public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the private key in a PEM file.

    Raises:
        FailedPreconditionError: Other users can read the file, or it cannot be read.
        InvalidArgumentError: It holds no unencrypted Ed25519 private key.
    """
    data = _read(path)
    mode = path.stat().st_mode
    if mode & _OTHERS:
        message = f"{path} can be read by others (mode {mode & 0o777:o}); run `chmod 600 {path}`"
        raise FailedPreconditionError(message)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgumentError(
            f"{path} holds no usable private key (unencrypted PEM)"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgumentError(f"{path} holds a private key that is not Ed25519")
    return key


def read_public_keys(path: Path) -> list[PublicKey]:
    """Read one or more public keys in a PEM file.

    Raises:
        FailedPreconditionError: It cannot be read.
        InvalidArgumentError: It holds no public key, or one of another kind.
    """
    blocks = _read(path).split(_PEM_BEGIN)[1:]
    keys = []
    for block in blocks:
        pem = _PEM_BEGIN + block.partition(_PEM_END)[0] + _PEM_END + b"\n"
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidArgumentError(f"{path} holds no usable public key (PEM)") from error
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidArgumentError(f"{path} holds a public key that is not Ed25519")
        keys.append(PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw)))
    if not keys:
        raise InvalidArgumentError(f"{path} holds no public key (PEM)")
    return keys


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError("the signature is not base64") from error


def _tensors(signature: ModelSignature) -> dict[str, Any]:
    def listed(specs: tuple[TensorSpec, ...]) -> list[list[object]]:
        return [[spec.name, spec.datatype.value, list(spec.shape)] for spec in specs]

    return {
        "inputs": listed(signature.inputs),
        "outputs": listed(signature.outputs),
        "batched": signature.batched,
    }
