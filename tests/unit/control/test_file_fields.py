"""Files that the spec names: none of them is quoted, whatever it holds."""

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from pydantic import BaseModel

from headrace.control.base.settings import resolve_references
from headrace.control.gateway.certificates import PemFiles, read_pem
from headrace.control.reconcile.caller_policy import read_policy
from headrace.control.telemetry.drift_files import decode_reference
from headrace.core import Digest, HeadraceError
from headrace.core.spec.base import model_of
from headrace.core.spec.parse import SystemSpec
from headrace.core.spec.part import SpecPart
from headrace.registry.index import decode_version
from headrace.registry.shared_content import decode_manifest
from headrace.registry.signing import read_public_keys
from headrace.streaming.scorer import load_scorer
from headrace.streaming.settings import ScoringEndpoint, WorkerSettings
from tests.secret_files import leaked, secret_contents, write_secret

pytestmark = pytest.mark.slow

Read = Callable[[Path], object]


def _certificate(path: Path) -> object:
    return read_pem(PemFiles(name="x", what="the certificate", certificate_file=path), now=0.0)


def _key(path: Path) -> object:
    files = PemFiles(name="x", what="the certificate", certificate_file=path, key_file=path)
    return read_pem(files, now=0.0)


def _upstream_key(path: Path) -> object:
    return read_pem(PemFiles(name="x", what="the API key", key_file=path), now=0.0)


def _api_key(path: Path) -> object:
    endpoint = ScoringEndpoint(url="http://127.0.0.1:9", name="x", api_key_file=str(path))
    settings = WorkerSettings(
        name="s", broker="", topics=["t"], group="", member="", endpoint=endpoint
    )
    return load_scorer(settings)


READERS: Final[dict[str, Read]] = {
    "EmailSpec.password_file": lambda path: leaked_only_as_value(f"file:{path}"),
    "JwtSpec.jwks_file": lambda path: path,  # by the test below, which has a store
    "SecuritySpec.trusted_keys": read_public_keys,
    "SlackSpec.url_file": lambda path: leaked_only_as_value(f"file:{path}"),
    "StreamSpec.api_key_file": _api_key,
    "TlsSpec.certificate_file": _certificate,
    "TlsSpec.client_ca_file": _certificate,
    "TlsSpec.key_file": _key,
    "UpstreamSpec.api_key_file": _upstream_key,
    "UpstreamTlsSpec.ca_file": _certificate,
    "UpstreamTlsSpec.certificate_file": _certificate,
    "UpstreamTlsSpec.key_file": _key,
    "WebhookSpec.token_file": lambda path: leaked_only_as_value(f"file:{path}"),
    "WebhookSpec.url_file": lambda path: leaked_only_as_value(f"file:{path}"),
}
"""What reads the file of each field, as the control plane does."""

DOCUMENTS: Final[dict[str, Callable[[bytes], object]]] = {
    "drift reference": decode_reference,
    "version": lambda data: decode_version(data, location="x"),
    "manifest": lambda data: decode_manifest(data, Digest(f"sha256:{'0' * 64}"), location="x"),
}


def leaked_only_as_value(reference: str) -> None:
    resolve_references(reference)


def file_fields(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """The fields below `model` that name a file."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        if name.endswith("_file") or name == "trusted_keys":
            yield f"{model.__name__}.{name}"
        for inner in models_in(field.annotation):
            yield from file_fields(inner, seen)


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | SpecPart):
        return [model_of(annotation)]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def outputs_of(read: Callable[[Any], object], argument: object) -> str:
    """The error of `read` with its causes."""
    try:
        read(argument)
    except HeadraceError as error:
        return "".join(traceback.format_exception(error))
    return ""


def test_every_field_that_names_a_file_is_tried() -> None:
    assert set(file_fields(SystemSpec, set())) == READERS.keys()


@pytest.mark.parametrize("field", READERS)
def test_a_file_that_the_spec_names_is_quoted_nowhere(
    tmp_path: Path,
    field: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    leaks = {}
    for form, content in secret_contents():
        path = write_secret(tmp_path, "f", content)
        path.chmod(0o600)
        text = outputs_of(READERS[field], path)
        if leaked("".join((text, caplog.text, *capfd.readouterr()))):
            leaks[form] = text
        caplog.clear()
    assert leaks == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_of_the_registry_is_quoted_nowhere(document: str) -> None:
    leaks = {}
    for form, content in secret_contents():
        if leaked(text := outputs_of(DOCUMENTS[document], content)):
            leaks[form] = text
    assert leaks == {}


def test_a_key_set_is_quoted_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for number, (_, content) in enumerate(secret_contents()):
        path = write_secret(tmp_path, f"{number}.json", content)
        provider = {
            "name": "p",
            "issuer": "https://p.example",
            "audiences": ["a"],
            "jwks_file": str(path),
        }
        read_policy([], {"auth": {"jwt": [provider]}}, now=0.0)

    assert "cannot use a key set" in caplog.text
    assert not leaked(caplog.text)
