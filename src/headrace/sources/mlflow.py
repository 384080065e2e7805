"""Source of models in MLflow's registry, over its REST API and its proxy of artifacts."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import quote, urlsplit

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from headrace.core.model_uri import ModelUri, UriScheme, parse_model_uri
from headrace.core.names import is_loopback_url
from headrace.registry.shared import open_bucket
from headrace.sources.bucket import BucketSource
from headrace.sources.http import SourceClient
from headrace.sources.listing import MAX_FILES, Listing, RemoteBody, RemoteFile, is_safe_path

_API: Final = "/api/2.0/mlflow"
_PROXY: Final = "/api/2.0/mlflow-artifacts/artifacts"
_PROXIED: Final = "mlflow-artifacts"
_BUCKETS: Final = ("s3", "gs")
_LOGGED: Final = "m-"
"""Prefix of the id of a logged model, in place of a registered model's name."""


class MlflowSource:
    """A registered model version, or a model that a run logged.

    `MLFLOW_REGISTRY_URI` or `MLFLOW_TRACKING_URI` names the server; `MLFLOW_TRACKING_TOKEN`, or
    `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, are sent to it.
    """

    def __init__(self, uri: ModelUri, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        tracking = variables.get("MLFLOW_TRACKING_URI", "")
        is_registered = uri.scheme is UriScheme.MODELS
        server = (variables.get("MLFLOW_REGISTRY_URI", "") if is_registered else "") or tracking
        parts = urlsplit(server)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise InvalidArgumentError(
                f"{uri.location}: set MLFLOW_TRACKING_URI to the URL of the MLflow server, "
                "without credentials, as in https://mlflow.example.org"
            )
        self._uri = uri
        self._environment = environment
        self._server = server.rstrip("/")
        self._client = SourceClient(
            allow_loopback_http=is_loopback_url(server),
            plain_http_to=self._server,
        )
        self._bucket: BucketSource | None = None
        if value := _authorization(variables):
            if parts.scheme == "http" and not is_loopback_url(server):
                raise InvalidArgumentError(
                    f"credentials of MLflow are not sent in plain text to {parts.hostname}; use"
                    " https in MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_TOKEN and"
                    " MLFLOW_TRACKING_USERNAME"
                )
            self._client.authorize(self._server, value)

    def resolve(self) -> Listing:
        """Return the files of the model.

        Raises:
            NotFoundError: The version, alias, run or path does not exist.
            PermissionDeniedError: The credentials are missing, or may not read the model.
            FailedPreconditionError: The files are where only the server can read them.
        """
        name = self._uri.model_name
        roots = self._roots()
        for root in roots:
            parts = urlsplit(root)
            if parts.scheme in _BUCKETS:
                self._bucket = BucketSource(
                    parse_model_uri(root),
                    open_bucket(f"{parts.scheme}://{parts.netloc}", environment=self._environment),
                )
                listing = self._bucket.resolve()
                return Listing(name=name, files=listing.files, revision=listing.revision)
            path = self._proxied_path(root)
            if files := list(self._files(path, "")):
                return Listing(name=name, files=tuple(files), revision=f"artifacts {root}")
        raise NotFoundError(f"{self._uri.location}: {self._server} has no files there")

    def read(self, file: RemoteFile, start: int) -> AbstractContextManager[RemoteBody]:
        """Open a file from byte `start`; from its start, as MLflow's proxy ignores ranges."""
        if self._bucket is not None:
            return self._bucket.read(file, start)
        return self._client.read(file, file.locator, start)

    def _roots(self) -> Sequence[str]:
        """Return the URIs at which the files may be, in order."""
        name, _, rest = self._uri.path.partition("/")
        if self._uri.scheme is UriScheme.RUNS:
            return self._roots_of_run(name, rest)
        if not rest and name.startswith(_LOGGED) and "@" not in name:
            return [self._logged_model(name)["artifact_uri"]]
        name, at_sign, alias = name.partition("@")
        version = rest
        if at_sign:
            aliased = self._get("registered-models/alias", name=name, alias=alias)
            version = str(aliased.get("model_version", {}).get("version", ""))
        document = self._get("model-versions/get-download-uri", name=name, version=version)
        return [str(document.get("artifact_uri", ""))]

    def _roots_of_run(self, run: str, path: str) -> Sequence[str]:
        document = self._get("runs/get", run_id=run).get("run", {})
        roots = [f"{document.get('info', {}).get('artifact_uri', '')}/{path}"]
        # Since MLflow 3 a run refers to its models, which are stored beside it.
        for output in document.get("outputs", {}).get("model_outputs", []):
            model = self._logged_model(str(output.get("model_id", "")))
            if model.get("name") == path:
                roots.insert(0, str(model.get("artifact_uri", "")))
        return roots

    def _logged_model(self, model_id: str) -> dict[str, Any]:
        document = self._get(f"logged-models/{quote(model_id, safe='')}")
        info: dict[str, Any] = document.get("model", {}).get("info", {})
        return info

    def _proxied_path(self, root: str) -> str:
        """Return the path of files that the server itself sends.

        Raises:
            FailedPreconditionError: It does not send them.
        """
        parts = urlsplit(root)
        is_here = parts.netloc in {"", urlsplit(self._server).netloc}
        path = parts.path.strip("/")
        if parts.scheme == _PROXIED and is_here and is_safe_path(path):
            return path
        where = f"{parts.scheme or 'file'}://{parts.netloc}"
        raise FailedPreconditionError(
            f"{self._uri.location} is stored at {where}, which {self._server} does not send: start"
            " `mlflow server` with --artifacts-destination, or push the folder itself"
        )

    def _files(self, root: str, below: str) -> Iterator[RemoteFile]:
        """Yield the files of a directory of the proxy, recursively."""
        directories = [below]
        count = 0
        while directories:
            directory = directories.pop()
            path = f"{root}/{directory}".rstrip("/")
            url = f"{self._server}{_PROXY}?path={quote(path, safe='')}"
            entries = self._client.document(url).get("files", [])
            for entry in entries if isinstance(entries, list) else []:
                name = str(entry.get("path", "")).rpartition("/")[2]
                inner = f"{directory}/{name}".lstrip("/")
                count += 1
                if count > MAX_FILES or not is_safe_path(inner):
                    raise ArtifactCorruptError(
                        f"{self._uri.location} lists too many or unsafe files"
                    )
                if entry.get("is_dir"):
                    directories.append(inner)
                    continue
                size = entry.get("file_size")
                yield RemoteFile(
                    path=inner,
                    locator=f"{self._server}{_PROXY}/{quote(f'{root}/{inner}')}",
                    size_bytes=int(size) if str(size).isdecimal() else None,
                )

    def _get(self, what: str, **query: str) -> dict[str, Any]:
        """Return a document of the API."""
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        url = f"{self._server}{_API}/{what}?{text}".rstrip("?")
        try:
            document: dict[str, Any] = self._client.document(url)
        except NotFoundError:
            shown = self._uri.location
            raise NotFoundError(f"{self._server} has no {shown}") from None
        except PermissionDeniedError as error:
            raise PermissionDeniedError(
                f"{error}: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and"
                " MLFLOW_TRACKING_PASSWORD, to credentials that may read the model"
            ) from None
        return document


def _authorization(variables: Mapping[str, str]) -> str:
    """Return the header's value; empty without credentials. Basic credentials take precedence."""
    user = variables.get("MLFLOW_TRACKING_USERNAME", "")
    password = variables.get("MLFLOW_TRACKING_PASSWORD", "")
    token = variables.get("MLFLOW_TRACKING_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise InvalidArgumentError("MLFLOW_TRACKING_TOKEN has characters that a header cannot hold")
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    return f"Bearer {token}" if token else ""
