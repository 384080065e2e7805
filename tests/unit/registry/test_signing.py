"""Nothing that makes a version what it is can be swapped under its signature."""

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from headrace.core import (
    ArtifactCorruptError,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    NotSignedError,
    TensorSpec,
)
from headrace.registry import ModelVersion, Registry, VersionNotFoundError, VersionSignature
from headrace.registry.registry import MAX_SIGNATURES
from headrace.registry.signing import (
    PublicKey,
    check_signed,
    is_valid,
    key_of,
    make_key,
    read_private_key,
    read_public_keys,
    sign,
    signed_settings,
    statement,
    verify_signed_settings,
    write_keys,
)

MakeFile = Callable[..., Path]


@pytest.fixture(scope="module")
def key() -> Ed25519PrivateKey:
    return make_key()


def public(key: Ed25519PrivateKey) -> PublicKey:
    return PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def signed(version: ModelVersion, key: Ed25519PrivateKey) -> VersionSignature:
    return sign(version, key, signed_at=1_800_000_000.0, by="ann@laptop")


@pytest.fixture
def version(registry: Registry, make_file: MakeFile) -> ModelVersion:
    return registry.push("fraud", make_file(), labels={"prob": ["no", "yes"]})


def changed(version: ModelVersion, /, **fields: Any) -> ModelVersion:  # noqa: ANN401  # of any field
    return msgspec.structs.replace(version, **fields)


def test_a_statement_is_the_same_on_every_machine(version: ModelVersion) -> None:
    said = statement(version)
    again = changed(version, created_by="bob", source="elsewhere", metadata={"a": "b"})

    assert said.startswith(b"headrace model version 1\n")
    assert b'"digest":"' + version.digest.encode() in said
    assert statement(again) == said
    assert statement(msgspec.json.decode(msgspec.json.encode(version), type=ModelVersion)) == said


@pytest.mark.parametrize(
    "swap",
    [
        {"name": "other"},
        {"version": "2"},
        {"digest": "sha256:" + "0" * 64},
        {"runtime": "python"},
        {"filename": "model.py"},
        {"labels": {"prob": ("yes", "no")}},
        {"labels": {}},
    ],
    ids=repr,
)
def test_nothing_that_is_signed_can_be_swapped(
    version: ModelVersion, key: Ed25519PrivateKey, swap: dict[str, Any]
) -> None:
    signature = signed(version, key)

    assert is_valid(version, signature)
    assert not is_valid(changed(version, **swap), signature)
    with pytest.raises(NotSignedError, match="signatures do not match the stored version"):
        check_signed(changed(version, **swap), [signature], [public(key)])


def test_the_tensors_are_signed_too(version: ModelVersion, key: Ed25519PrivateKey) -> None:
    other = TensorSpec(name="x", datatype=Datatype.INT8, shape=(-1,))
    before = version.signature
    swaps = (
        replace(before, inputs=(other,)),
        replace(before, outputs=(other,)),
        replace(before, batched=False),
    )

    for swapped in swaps:
        assert not is_valid(changed(version, signature=swapped), signed(version, key))


def test_a_signature_of_something_else_by_the_same_key_counts_for_nothing(
    version: ModelVersion, key: Ed25519PrivateKey
) -> None:
    bare = key.sign(statement(version).partition(b"\n")[2])
    signature = msgspec.structs.replace(
        signed(version, key), signature=base64.b64encode(bare).decode()
    )

    assert not is_valid(version, signature)


def test_whom_nobody_trusts_signs_in_vain(version: ModelVersion, key: Ed25519PrivateKey) -> None:
    stranger = make_key()
    by_stranger = signed(version, stranger)
    both = [by_stranger, signed(version, key)]

    with pytest.raises(
        NotSignedError,
        match="fraud:1: it is not signed; this endpoint requires a trusted signature",
    ):
        check_signed(version, [], [public(key)])
    with pytest.raises(NotSignedError, match=rf"signed by {public(stranger).id}, which"):
        check_signed(version, [by_stranger], [public(key)])
    assert check_signed(version, both, [public(key)]) == both[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", "!"), ("key", "AAAA"), ("signature", "!"), ("signature", "AAAA"), ("key", "")],
)
def test_damaged_signatures_are_none(
    version: ModelVersion, key: Ed25519PrivateKey, field: str, value: str
) -> None:
    damaged = msgspec.structs.replace(signed(version, key), **{field: value})

    assert not is_valid(version, damaged)
    with pytest.raises(NotSignedError):
        check_signed(version, [damaged], [public(key)])


def test_signatures_are_kept_beside_the_version_and_go_with_it(
    registry: Registry, version: ModelVersion, key: Ed25519PrivateKey
) -> None:
    first, second = signed(version, key), signed(version, make_key())
    registry.add_signature("fraud", "1", first)
    registry.add_signature("fraud", "1", second)
    newer = msgspec.structs.replace(first, by="ann again")
    kept = registry.add_signature("fraud", "1", newer)
    with pytest.raises(InvalidArgumentError, match="signature does not match fraud:1"):
        registry.add_signature("fraud", "1", signed(changed(version, name="other"), key))
    with pytest.raises(VersionNotFoundError):
        registry.add_signature("fraud", "2", first)

    assert kept == (second, newer)
    assert registry.signatures(version) == kept
    assert [v.reference for v in registry.list()] == ["fraud:1"]
    registry.remove("fraud", "1")
    assert list((registry.home / "registry/fraud").iterdir()) == [
        registry.home / "registry/fraud/1.removed"
    ]


def test_signatures_are_not_kept_without_end(registry: Registry, version: ModelVersion) -> None:
    for _ in range(MAX_SIGNATURES):
        registry.add_signature("fraud", "1", signed(version, make_key()))
    with pytest.raises(FailedPreconditionError, match="32 signatures"):
        registry.add_signature("fraud", "1", signed(version, make_key()))


def test_a_damaged_file_of_signatures_says_so(registry: Registry, version: ModelVersion) -> None:
    (registry.home / "registry/fraud/1.signatures").write_text("{")

    with pytest.raises(ArtifactCorruptError, match=r"1\.signatures is damaged"):
        registry.signatures(version)


def test_what_was_altered_with_its_own_index_entry_is_found_by_the_digest(
    registry: Registry, version: ModelVersion, make_file: MakeFile
) -> None:
    other = registry.push("other", make_file("another model"))
    forged = changed(version, files=other.files)
    path = registry.path(version)
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_text("another model")

    with pytest.raises(ArtifactCorruptError, match=f"expected digest {version.digest}"):
        registry.verify(forged)


def test_a_replica_proves_again_what_it_is_told(
    registry: Registry, version: ModelVersion, key: Ed25519PrivateKey
) -> None:
    path = registry.path(version)
    settings = signed_settings(version, signed(version, key))
    verify_signed_settings(path, "text", settings)
    forged = settings.statement.replace('"text"', '"python"')

    with pytest.raises(NotSignedError, match="for runtime 'text', not 'python'"):
        verify_signed_settings(path, "python", settings)
    with pytest.raises(NotSignedError, match="does not match the served model"):
        verify_signed_settings(path, "python", msgspec.structs.replace(settings, statement=forged))
    path.chmod(0o644)
    path.write_text("altered")
    with pytest.raises(ArtifactCorruptError, match="is not what was signed"):
        verify_signed_settings(path, "text", settings)


def test_keys_are_written_once_and_the_private_one_for_its_owner(tmp_path: Path) -> None:
    key = make_key()
    private, shown = write_keys(tmp_path / "keys", key)

    assert private.stat().st_mode & 0o777 == 0o600
    assert public(read_private_key(private)) == public(key)
    assert read_public_keys(shown) == [public(key)]
    for path in (private, shown):
        with pytest.raises(FailedPreconditionError, match="exists already"):
            write_keys(tmp_path / "keys", make_key())
        path.unlink()
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="cannot write"):
        write_keys(tmp_path / "file" / "keys", key)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, make_key())
    private.chmod(0o640)

    with pytest.raises(FailedPreconditionError, match="can be read by others"):
        read_private_key(private)


def test_other_keys_are_refused_with_their_reason(tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    files = {
        "rsa": rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "locked": make_key().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
        "nonsense": b"nonsense",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        with pytest.raises(
            InvalidArgumentError, match=rf"{name} holds (no|a private key that is not)"
        ):
            read_private_key(path)
        with pytest.raises(InvalidArgumentError, match=r"holds no (usable )?public key"):
            read_public_keys(path)
    shown = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "rsa.pub").write_bytes(shown)
    (tmp_path / "half").write_bytes(shown[:80])
    with pytest.raises(InvalidArgumentError, match="not Ed25519"):
        read_public_keys(tmp_path / "rsa.pub")
    with pytest.raises(InvalidArgumentError, match="no usable"):
        read_public_keys(tmp_path / "half")
    with pytest.raises(FailedPreconditionError, match="cannot read"):
        read_public_keys(tmp_path / "nothing")


def test_a_file_may_hold_several_keys(tmp_path: Path) -> None:
    keys = [make_key(), make_key()]
    shown = [write_keys(tmp_path / str(i), key)[1].read_bytes() for i, key in enumerate(keys)]
    both = tmp_path / "both.pem"
    both.write_bytes(b"# ann, bob\n" + os.linesep.encode().join(shown))

    assert read_public_keys(both) == [public(key) for key in keys]
    text = base64.b64encode(public(keys[0]).raw).decode()
    assert key_of(VersionSignature(key=text, signature="")) == public(keys[0])
