"""MLflow's REST API as a stand-in sends it: credentials, storage elsewhere, and unsafe answers.

The suite `mlflow` downloads from MLflow itself.
"""

import base64
import json
from collections.abc import Iterator

import pytest

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
)
from headrace.core.model_uri import parse_model_uri
from headrace.sources import Listing, open_source
from tests.source_servers import FileServer, Served

pytestmark = pytest.mark.e2e

VERSION = "/api/2.0/mlflow/model-versions/get-download-uri?name=fraud&version=3"
LIST = "/api/2.0/mlflow-artifacts/artifacts?path="


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as server:
        yield server


def put(server: FileServer, path: str, document: object) -> None:
    server.resources[path] = Served(body=json.dumps(document).encode())


def resolved(server: FileServer, **variables: str) -> Listing:
    environment = {"MLFLOW_TRACKING_URI": server.url, **variables}
    return open_source(parse_model_uri("models:/fraud/3"), environment).resolve()


def test_files_of_all_directories_are_listed(server: FileServer) -> None:
    put(server, VERSION, {"artifact_uri": "mlflow-artifacts:/1/models/m-1/artifacts"})
    root = f"{LIST}1%2Fmodels%2Fm-1%2Fartifacts"
    files = [{"path": "MLmodel", "is_dir": False, "file_size": 9}, {"path": "data", "is_dir": True}]
    put(server, root, {"files": files})
    put(server, f"{root}%2Fdata", {"files": [{"path": "model.pt2", "file_size": "7"}]})

    listing = resolved(server)

    assert listing.name == "fraud"
    assert [(file.path, file.size_bytes) for file in listing.files] == [
        ("MLmodel", 9),
        ("data/model.pt2", 7),
    ]
    assert listing.revision == "artifacts mlflow-artifacts:/1/models/m-1/artifacts"


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "secret"}, "Bearer secret"),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p"},
            f"Basic {base64.b64encode(b'me:p').decode()}",
        ),
    ],
)
def test_credentials_are_sent(server: FileServer, variables: dict[str, str], sent: str) -> None:
    put(server, VERSION, {"artifact_uri": "mlflow-artifacts:/1"})
    put(server, f"{LIST}1", {"files": [{"path": "MLmodel"}]})

    resolved(server, **variables)

    assert {headers.get("authorization") for _, headers in server.requests} == {sent}


def test_refused_credentials_are_explained(server: FileServer) -> None:
    server.resources[VERSION] = Served(status=401)
    with pytest.raises(PermissionDeniedError, match="set MLFLOW_TRACKING_TOKEN"):
        resolved(server)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "set MLFLOW_TRACKING_URI"),
        ("sqlite:///mlflow.db", "set MLFLOW_TRACKING_URI"),
        ("https://me:p@mlflow.example.org", "without credentials"),
        ("http://mlflow.example.org", r"not sent in plain text to mlflow\.example\.org"),
    ],
)
def test_server_that_cannot_be_used_is_refused(url: str, reason: str) -> None:
    environment = {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_TOKEN": "secret"}
    with pytest.raises(InvalidArgumentError, match=reason):
        open_source(parse_model_uri("models:/fraud/3"), environment)


@pytest.mark.parametrize("uri", ["/srv/mlruns/1", "file:///srv/mlruns/1", "mlflow-artifacts://x/1"])
def test_files_that_the_server_does_not_send_are_refused(server: FileServer, uri: str) -> None:
    put(server, VERSION, {"artifact_uri": uri})
    with pytest.raises(FailedPreconditionError, match="--artifacts-destination"):
        resolved(server)


@pytest.mark.parametrize("path", ["..", "a\\b", "a\nb"])
def test_unsafe_paths_are_refused(server: FileServer, path: str) -> None:
    put(server, VERSION, {"artifact_uri": "mlflow-artifacts:/1"})
    put(server, f"{LIST}1", {"files": [{"path": path, "is_dir": False}]})
    with pytest.raises(ArtifactCorruptError, match="unsafe"):
        resolved(server)
