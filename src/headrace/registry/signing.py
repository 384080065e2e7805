"""Ed25519 signatures of model versions, over everything that makes a version what it is.

Signed is a statement: name, version, digest, runtime, format, tensors and class names, as
canonical JSON behind a prefix of its own. None of these can be swapped, and no signature made for
something else counts here.
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
        """What it is called: the beginning of its SHA-256."""
        return f"ed25519:{hashlib.sha256(self.raw).hexdigest()[:16]}"


def statement(version: ModelVersion) -> bytes:
    """What is signed of a version, byte for byte."""
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
    """A signature of `version` by `key`.

    Args:
        at: Seconds since 1970; like `by`, who signs, it is told but not proved.
    """
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return VersionSignature(
        key=base64.b64encode(raw).decode(),
        signature=base64.b64encode(key.sign(statement(version))).decode(),
        signed_at=signed_at,
        by=by,
    )


def key_of(signature: VersionSignature) -> PublicKey:
    """The key that a signature says it was made with.

    Raises:
        InvalidArgumentError: It is none.
    """
    raw = _decoded(signature.key)
    if len(raw) != _KEY_BYTES:
        raise InvalidArgumentError("the signature's key is no Ed25519 public key")
    return PublicKey(raw)


def is_valid(version: ModelVersion, signature: VersionSignature) -> bool:
    """Whether a signature is one of `version` by the key that it names."""
    try:
        public = Ed25519PublicKey.from_public_bytes(key_of(signature).raw)
        public.verify(_decoded(signature.signature), statement(version))
    except (InvalidSignature, InvalidArgumentError, ValueError):
        return False
    return True


def check_signed(
    version: ModelVersion, signatures: Sequence[VersionSignature], trusted: Iterable[PublicKey]
) -> VersionSignature:
    """The signature of `version` by a trusted key.

    Raises:
        NotSignedError: None did; the message says what is there instead.
    """
    keys = {key.raw for key in trusted}
    strangers: list[str] = []
    wrong: list[str] = []
    for signature in signatures:
        try:
            key = key_of(signature)
        except InvalidArgumentError:
            wrong.append("a damaged one")
            continue
        if not is_valid(version, signature):
            wrong.append(f"one by {key.id}")
        elif key.raw in keys:
            return signature
        else:
            strangers.append(key.id)
    if wrong:
        problem = f"its signatures are not of what is stored ({', '.join(wrong)})"
    elif strangers:
        problem = f"it is signed by {', '.join(strangers)}, whom `trusted_keys` does not name"
    else:
        problem = "it is not signed"
    raise NotSignedError(
        f"{version.reference}: {problem}; a trusted signature is required here, made with "
        f"`headrace models sign {version.reference} --key FILE`"
    )


def signed_settings(version: ModelVersion, signature: VersionSignature) -> SignedSettings:
    """What a replica is told, so that it proves again what was proved of `version`."""
    text = statement(version).removeprefix(_DOMAIN).decode()
    return SignedSettings(statement=text, key=signature.key, signature=signature.signature)


class _Statement(msgspec.Struct):
    digest: str
    runtime: str


def verify_signed_settings(path: Path, runtime: str, signed: SignedSettings) -> None:
    """Prove that the model at `path` is what was signed. Reads all of it.

    Raises:
        NotSignedError: The signature is not one of this statement, or of this runtime.
        ArtifactCorruptError: The model is not what the statement says.
    """
    data = _DOMAIN + signed.statement.encode()
    try:
        decoded = msgspec.json.decode(signed.statement, type=_Statement)
        public = Ed25519PublicKey.from_public_bytes(_decoded(signed.key))
        public.verify(_decoded(signed.signature), data)
    except (InvalidSignature, InvalidArgumentError, ValueError, msgspec.MsgspecError) as error:
        raise NotSignedError(f"{path.name}: its signature is not one of what is served") from error
    if decoded.runtime != runtime:
        message = f"{path.name}: was signed for runtime '{decoded.runtime}', not '{runtime}'"
        raise NotSignedError(message)
    digest = read_content(path).digest
    if digest != decoded.digest:
        raise ArtifactCorruptError(
            f"{path.name} is not what was signed: {digest}, not {decoded.digest}"
        )


# Keys as files.


def to_text(key: PublicKey) -> str:
    """A key as it stands in a signature."""
    return base64.b64encode(key.raw).decode()


def make_key() -> Ed25519PrivateKey:
    """A new private key."""
    return Ed25519PrivateKey.generate()


def write_keys(directory: Path, key: Ed25519PrivateKey) -> tuple[Path, Path]:
    """Write `model-signing.pem`, for its owner alone, and `model-signing.pub.pem` beside it.

    Raises:
        FailedPreconditionError: One is there already, or cannot be written.
    """
    private, public = directory / "model-signing.pem", directory / "model-signing.pub.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    there = next((path for path in (private, public) if path.exists()), None)
    if there is not None:
        raise FailedPreconditionError(f"{there} is there already")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data, mode in ((private, secret, 0o600), (public, shown, 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise FailedPreconditionError(f"cannot write {error.filename}: {error.strerror}") from error
    return private, public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file.

    Raises:
        FailedPreconditionError: Others may read the file, or it cannot be read.
        InvalidArgumentError: It holds no Ed25519 private key without a passphrase.
    """
    data = _read(path)
    mode = path.stat().st_mode
    if mode & _OTHERS:
        message = f"{path} can be read by others (mode {mode & 0o777:o}); run `chmod 600 {path}`"
        raise FailedPreconditionError(message)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgumentError(f"{path} holds no private key that can be used") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgumentError(f"{path} holds no Ed25519 key")
    return key


def read_public_keys(path: Path) -> list[PublicKey]:
    """The public keys in a PEM file, one or more.

    Raises:
        FailedPreconditionError: It cannot be read.
        InvalidArgumentError: It holds none, or something else.
    """
    blocks = _read(path).split(_PEM_BEGIN)[1:]
    keys = []
    for block in blocks:
        pem = _PEM_BEGIN + block.partition(_PEM_END)[0] + _PEM_END + b"\n"
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidArgumentError(f"{path} holds no public key that can be used") from error
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
        raise InvalidArgumentError("the signature is no base64") from error


def _tensors(signature: ModelSignature) -> dict[str, Any]:
    def listed(specs: tuple[TensorSpec, ...]) -> list[list[object]]:
        return [[spec.name, spec.datatype.value, list(spec.shape)] for spec in specs]

    return {
        "inputs": listed(signature.inputs),
        "outputs": listed(signature.outputs),
        "batched": signature.batched,
    }
