"""Facts of the host that runs a system, and of the files named in its spec."""

import asyncio
import base64
import contextlib
import hashlib
import importlib.metadata
import ipaddress
import platform
import re
import ssl
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
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

from headrace.advise.audit.check import NamedFile
from headrace.advise.audit.facts import (
    CertificateFact,
    FileFact,
    HomeFacts,
    KeyMaterial,
    ProcessFact,
)
from headrace.advise.inventory.inventory import recognise
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import read_regular
from headrace.core.redact import literal_secret, redact_text
from headrace.gateway import Admin, GatewayUnavailableError

MAX_BYTES: Final = 1 << 20
_MAX_CERTIFICATES: Final = 1000


class _JsonKey(msgspec.Struct):
    kty: str = ""
    crv: str = ""
    n: str = ""


class _KeySet(msgspec.Struct):
    keys: list[_JsonKey]


def file_fact(path: Path) -> FileFact:
    """Return mode and reachability of a file or directory, without its content."""
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
    """Return facts of a file named in the spec, including its content."""
    path = Path(named.path)
    fact = file_fact(path)
    if not fact.exists:
        return fact
    if named.kind == "model":
        kind, runs_code = recognise(path)
        return replace(fact, format=kind.value, runs_code=runs_code)
    try:
        data = read_regular(path, limit_bytes=MAX_BYTES)
    except OSError as error:
        return replace(fact, problem=f"cannot be read: {error.strerror or error}")
    try:
        return _READERS[named.kind](fact, data)
    except UnsupportedAlgorithm:
        return replace(fact, problem="uses an unsupported algorithm")
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return replace(fact, problem=f"is not a valid {_CALLED[named.kind]}")


def _is_reachable(path: Path) -> bool:
    try:
        parents = path.resolve().parents
        return all(parent.stat().st_mode & 0o011 for parent in parents)
    except OSError:
        return True  # not provably private


def _certificates(fact: FileFact, data: bytes) -> FileFact:
    certificates = x509.load_pem_x509_certificates(data)[:_MAX_CERTIFICATES]
    return replace(fact, certificates=tuple(map(certificate_fact, certificates)))


def certificate_fact(certificate: x509.Certificate) -> CertificateFact:
    """Return the parts of a certificate that checks use."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        values = tuple(str(name.value) for name in names)
    except (x509.ExtensionNotFound, ValueError):
        values = ()
    try:
        algorithm = certificate.signature_hash_algorithm
        hashed = "" if algorithm is None else algorithm.name
    except UnsupportedAlgorithm:
        hashed = ""
    return CertificateFact(
        subject=certificate.subject.rfc4514_string() or "(no subject)",
        issuer=certificate.issuer.rfc4514_string() or "(no issuer)",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=key_material(certificate.public_key()),
        signature_hash=hashed,
        names=values,
    )


def key_material(key: PublicKeyTypes) -> KeyMaterial:
    """Return the kind and size of a public key."""
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
        return replace(fact, problem="is encrypted, and its password is not available")
    key = load_pem_private_key(data, password=None)
    return replace(fact, keys=(key_material(key.public_key()),))


def _public_key(fact: FileFact, data: bytes) -> FileFact:
    return replace(fact, keys=(key_material(load_pem_public_key(data)),))


def _key_set(fact: FileFact, data: bytes) -> FileFact:
    keys = msgspec.json.decode(data, type=_KeySet).keys
    return replace(fact, keys=tuple(map(_json_key, keys)))


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
    "certificate": "PEM certificate",
    "ca": "PEM certificate",
    "key": "PEM private key",
    "trusted": "PEM public key",
    "jwks": "JSON Web Key Set (RFC 7517)",
}
PROC: Final = Path("/proc")
_ADMIN_TIMEOUT_S: Final = 2.0
_LISTENING: Final = "0A"
_CORE_LIMIT: Final = re.compile(rb"^Max core file size\s+(\S+)", re.MULTILINE)
_UID: Final = re.compile(rb"^Uid:\s+\d+\s+(\d+)", re.MULTILINE)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class _Started(msgspec.Struct):
    """The needed part of a control plane's settings."""

    log_level: str = ""
    state_url: str = ""
    allow_code: bool = False


class _ServerInfo(msgspec.Struct):
    version: str = ""


def process_fact(name: str, pid: int, *, proc: Path = PROC) -> ProcessFact | None:
    """Return user ID and core dump limit of a process; None if it does not exist."""
    try:
        status = (proc / str(pid) / "status").read_bytes()
        limits = (proc / str(pid) / "limits").read_bytes()
    except OSError:
        return None
    uid, core = _UID.search(status), _CORE_LIMIT.search(limits)
    if uid is None:
        return None
    size = int(core[1]) if core is not None and core[1].isdigit() else None
    return ProcessFact(name=name, pid=pid, uid=int(uid[1]), core_bytes=size)


def listeners_of(pid: int, *, proc: Path = PROC) -> tuple[tuple[str, int], ...]:
    """Return the TCP addresses of a process's listening sockets; visible to its own user only."""
    inodes = set()
    try:
        for entry in (proc / str(pid) / "fd").iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue  # closed in the meantime
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    except OSError:
        return ()
    addresses = {
        address
        for name in ("tcp", "tcp6")
        for inode, address in _listening(proc / str(pid) / "net" / name)
        if inode in inodes
    }
    return tuple(sorted(addresses))


def _listening(table: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield inode and address of each listening socket in `/proc/PID/net/tcp`."""
    try:
        lines = table.read_text("ascii").splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING:  # noqa: PLR2004  # state; inode is the tenth
            host, _, port = fields[1].partition(":")
            # The kernel writes addresses as words of four bytes in the machine's
            # own order.
            raw = bytes.fromhex(host)
            words = [raw[i : i + 4] for i in range(0, len(raw), 4)]
            ordered = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
            yield fields[9], (str(ipaddress.ip_address(ordered)), int(port, 16))


def home_facts(
    home: Path, *, pid: int, token: Path, sockets: Path | None, proc: Path = PROC
) -> HomeFacts:
    """Return facts of a home's files and settings.

    Args:
        pid: The control plane's process ID.
        token: Path of the first admin token, which may not exist.
        sockets: The directory of the gateway's sockets; None if unknown.
    """
    pairs = (word.partition("=") for word in _words(proc / str(pid) / "environ"))
    environ = {name: value for name, _, value in pairs}
    arguments = _words(proc / str(pid) / "cmdline")
    started = _started_with(arguments)
    flag_url = _flag(arguments, "--state-url")
    variable_url = environ.get("HEADRACE_STATE_URL", "")
    url = flag_url or started.state_url or variable_url
    database = home / "state.db"
    if url.startswith("sqlite:"):
        database = Path(url.partition(":///")[2])
    is_sqlite = not url or url.startswith("sqlite:")
    source = "the command line" if flag_url else "HEADRACE_STATE_URL"
    clear = any(literal_secret(url) is not None for url in (flag_url, variable_url))
    state = file_fact(database)
    level = _flag(arguments, "--log-level") or started.log_level
    token_fact = file_fact(token)
    return HomeFacts(
        home=file_fact(home),
        state=state if is_sqlite and state.exists else None,
        admin_token=token_fact if token_fact.exists else None,
        sockets=tuple(map(file_fact, sorted(sockets.glob("*.sock")))) if sockets else (),
        file_system=file_system_of(database if is_sqlite else home, proc=proc),
        state_url=redact_text(flag_url or variable_url),
        state_url_source=source,
        state_url_has_password=clear,
        log_level=level or environ.get("HEADRACE_LOG_LEVEL", "") or "info",
        allow_code=started.allow_code or "--allow-code" in arguments,
    )


def _started_with(arguments: list[str]) -> _Started:
    path = _flag(arguments, "--settings")
    try:
        return msgspec.json.decode(read_regular(Path(path), limit_bytes=MAX_BYTES), type=_Started)
    except (OSError, *UNDECODABLE):
        return _Started()


def _flag(arguments: list[str], flag: str) -> str:
    """Return the value of a flag on a command line; empty if absent."""
    for i, word in enumerate(arguments):
        if word == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def file_system_of(path: Path, *, proc: Path = PROC) -> str:
    """Return the type of the file system that contains `path`; empty if unknown."""
    try:
        lines = (proc / "self" / "mountinfo").read_text("utf-8", "replace").splitlines()
        resolved = path.resolve()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:  # noqa: PLR2004  # the fifth is the mount point
            continue
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split()[0]
    return kind


def envoy_files(pid: int, *, proc: Path = PROC) -> Path | None:
    """Return the directory of a gateway's private sockets, derived from its configuration path."""
    config = _flag(_words(proc / str(pid) / "cmdline"), "--config-path")
    if not config:
        return None
    below = Path(config).parent / "sockets"
    return below if below.is_dir() else below.parent


def envoy_version(admin_socket: Path) -> str:
    """Return the version that a running Envoy reports; empty if it does not respond."""
    try:
        body = asyncio.run(Admin(admin_socket, timeout_s=_ADMIN_TIMEOUT_S).get("/server_info"))
        parts = msgspec.json.decode(body, type=_ServerInfo).version.split("/")
    except (GatewayUnavailableError, *UNDECODABLE):
        return ""
    return parts[1] if len(parts) > 1 else ""


def runs_this_python(pid: int, *, proc: Path = PROC) -> bool:
    """Whether a process runs the same interpreter as this one."""
    try:
        return (proc / str(pid) / "exe").resolve() == Path(sys.executable).resolve()
    except OSError:
        return False


def software_here() -> dict[str, str]:
    """Return versions of the interpreter and its libraries."""
    versions = {
        "python": platform.python_version(),
        "openssl": ".".join(str(part) for part in ssl.OPENSSL_VERSION_INFO[:3]),
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["onnxruntime"] = importlib.metadata.version("onnxruntime")
    return versions


def packages_here() -> dict[str, str]:
    """Return versions of the packages installed for this interpreter."""
    packages: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        about = distribution.metadata  # parsed anew each time
        name, version = about["Name"], about["Version"]
        if name and version:
            packages.setdefault(name, version)
    return dict(sorted(packages.items()))
