"""Source of models in OCI registries: images, and artifacts of ORAS, KitOps and ModelPack.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md and
https://distribution.github.io/distribution/spec/auth/token/ describe the protocol.
"""

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx

from headrace.core import (
    ArtifactCorruptError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedModelError,
)
from headrace.core.model_uri import ModelUri
from headrace.core.names import is_loopback_url
from headrace.sources.http import SourceClient, check_status, json_of, read_limited
from headrace.sources.listing import Listing, RemoteBody, RemoteFile, Unpack

_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_TITLES: Final = ("org.opencontainers.image.title", "org.cncf.model.filepath")
"""Annotations with the file name of a layer: of ORAS, and of the ModelPack specification."""
_IS_DIRECTORY: Final = "io.deis.oras.content.unpack"
_IMAGE_LAYER: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar|docker\.image\.rootfs\.diff"
    r"\.tar)([.+](gzip|zstd))?"
)
_MODEL_LAYER: Final = re.compile(
    r"application/vnd\.(kitops\.modelkit\.model(part)?\.v1|cncf\.model\.weight(\.config)?\.v1)\..*"
)
_OTHER_LAYER: Final = re.compile(r"application/vnd\.(kitops\.modelkit|cncf\.model)\..*")
"""Data sets, code and documents beside a model."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_ALIASES: Final = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_DOCKER_HUB: Final = "https://index.docker.io/v1/"
"""Name of Docker Hub in a client's configuration."""


class OciSource:
    """An artifact or image.

    Args:
        environment: `DOCKER_CONFIG`, `REGISTRY_AUTH_FILE` and `HOME`; None for the process
            environment.
    """

    def __init__(self, uri: ModelUri, environment: Mapping[str, str] | None = None) -> None:
        self._uri = uri
        self._credentials = _credentials(
            uri.host, os.environ if environment is None else environment
        )
        host = _ALIASES.get(uri.host, uri.host)
        # As other clients do: registries on this machine seldom have a certificate.
        scheme = "http" if is_loopback_url(f"https://{host}") else "https"
        self._base = f"{scheme}://{host}/v2/{uri.path}"
        self._client = SourceClient(allow_loopback_http=scheme == "http")

    def resolve(self) -> Listing:
        """Return the layers that hold the model.

        Raises:
            NotFoundError: The repository, tag or manifest does not exist.
            PermissionDeniedError: Credentials are missing, or may not read it.
            UnsupportedModelError: No layer holds files of a model.
        """
        reference = self._uri.manifest or self._uri.revision or "latest"
        manifest, digest = self._manifest(reference)
        if "layers" not in manifest and isinstance(manifest.get("manifests"), list):
            manifest, _ = self._manifest(_chosen_platform(manifest["manifests"], self._uri))
        layers = manifest.get("layers")
        if not isinstance(layers, list):
            raise ArtifactCorruptError(f"{self._uri.location}: the manifest lists no layers")
        files = [
            file
            for i, layer in enumerate(layers)
            if isinstance(layer, dict) and (file := self._file(i, layer)) is not None
        ]
        if not files:
            raise UnsupportedModelError(
                f"{self._uri.location} has no layer with a model: push files with ORAS or KitOps, "
                "or an image with the model in /models"
            )
        return Listing(name=self._uri.filename, files=tuple(files), revision=f"manifest {digest}")

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[RemoteBody]:
        """Open a layer from byte `start`."""
        with self._client.read(file, file.locator, start) as body:
            yield body

    def _file(self, number: int, layer: Mapping[str, Any]) -> RemoteFile | None:
        """Return the file of a layer; None for a layer without files of the model."""
        digest, size = layer.get("digest"), layer.get("size")
        kind, noted = str(layer.get("mediaType", "")), layer.get("annotations")
        annotations = noted if isinstance(noted, dict) else {}
        title = next((str(annotations[key]) for key in _TITLES if annotations.get(key)), "")
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise ArtifactCorruptError(f"{self._uri.location}: layer {number} has no digest")
        if _OTHER_LAYER.fullmatch(kind) and not _MODEL_LAYER.fullmatch(kind):
            return None
        unpack = Unpack.NO
        if _MODEL_LAYER.fullmatch(kind):
            unpack = Unpack.TAR if ".tar" in kind else Unpack.NO
        elif str(annotations.get(_IS_DIRECTORY, "")).lower() == "true":
            unpack = Unpack.TAR
        elif not title:
            if _IMAGE_LAYER.fullmatch(kind) is None:
                return None
            unpack = Unpack.IMAGE
        if kind.endswith("zstd") and unpack is not Unpack.NO:
            message = f"{self._uri.location}: layers in zstd are not supported; push them as gzip"
            raise UnsupportedModelError(message)
        return RemoteFile(
            path=title if title and unpack is Unpack.NO else f"layer-{number}",
            locator=f"{self._base}/blobs/{digest}",
            size_bytes=size if isinstance(size, int) and size >= 0 else None,
            sha256=digest.removeprefix("sha256:"),
            unpack=unpack,
        )

    def _manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        """Return a manifest or index, verified against the requested digest, and its digest."""
        url = f"{self._base}/manifests/{reference}"
        headers = {"accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        with self._client.get(url, headers) as response:
            is_challenge = response.status_code == httpx.codes.UNAUTHORIZED
            challenge = response.headers.get("www-authenticate", "") if is_challenge else ""
        if challenge:
            self._authenticate(challenge)
        with self._client.get(url, headers) as response:
            try:
                check_status(response, url)
            except NotFoundError:
                what = f"{self._uri.location}: the registry has no '{reference}'"
                raise NotFoundError(what) from None
            except PermissionDeniedError:
                raise PermissionDeniedError(self._denied()) from None
            data = read_limited(response, url)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            message = f"{self._uri.location}: the registry sent {digest} for {reference}"
            raise ArtifactCorruptError(message)
        return json_of(data, url), digest

    def _authenticate(self, challenge: str) -> None:
        """Answer a registry's challenge, with a client's stored credentials if there are any.

        Raises:
            PermissionDeniedError: The registry issues no token.
        """
        scheme, _, rest = challenge.partition(" ")
        options = dict(_CHALLENGE.findall(rest))
        basic = f"Basic {self._credentials}" if self._credentials else ""
        if scheme.lower() == "basic" and basic:
            self._client.authorize(self._base, basic)
            return
        realm = options.get("realm", "")
        if scheme.lower() != "bearer" or not realm:
            raise PermissionDeniedError(self._denied())
        scope = options.get("scope") or f"repository:{self._uri.path}:pull"
        query = {"service": options.get("service", ""), "scope": scope}
        joint = "&" if "?" in realm else "?"
        url = f"{realm}{joint}{urlencode(query, quote_via=quote)}"
        issuer = SourceClient(allow_loopback_http=self._base.startswith("http://"))
        if basic:
            issuer.authorize(realm, basic)
        try:
            answer = issuer.document(url)
        except PermissionDeniedError:
            raise PermissionDeniedError(self._denied()) from None
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise PermissionDeniedError(f"{self._uri.host} issued no token")
        self._client.authorize(self._base, f"Bearer {token}")

    def _denied(self) -> str:
        remedy = f"`docker login {self._uri.host}` or `oras login` stores them"
        reason = "the stored credentials are refused" if self._credentials else "needs credentials"
        return f"{self._uri.location}: {reason}, or the repository does not exist; {remedy}"


def _chosen_platform(manifests: list[Any], uri: ModelUri) -> str:
    """Return the digest of the manifest for Linux, as models are for any processor.

    Raises:
        ArtifactCorruptError: The index lists no manifest.
    """
    entries = [entry for entry in manifests if isinstance(entry, dict)]
    fits = [entry for entry in entries if (entry.get("platform") or {}).get("os") != "unknown"]
    linux = [entry for entry in fits if (entry.get("platform") or {}).get("os") == "linux"]
    amd64 = [entry for entry in linux if entry["platform"].get("architecture") == "amd64"]
    for entry in (*amd64, *linux, *fits):
        digest = entry.get("digest")
        if isinstance(digest, str) and _DIGEST.fullmatch(digest):
            return digest
    raise ArtifactCorruptError(f"{uri.location}: the index lists no manifest")


def _credentials(host: str, environment: Mapping[str, str]) -> str:
    """Return `user:password` in base64 from the configuration of docker or podman; or empty.

    Raises:
        InvalidArgumentError: The configuration cannot be read.
    """
    home = environment.get("HOME", "")
    folder = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    named = environment.get("REGISTRY_AUTH_FILE", "")
    for file in (named, f"{folder}/config.json" if folder else ""):
        if not file or not Path(file).is_file():
            continue
        try:
            document = json.loads(Path(file).read_bytes())
            entries = document.get("auths") or {}
            keys = (host, f"https://{host}", *((_DOCKER_HUB,) if host in _ALIASES else ()))
            auth = next((entries[key].get("auth") for key in keys if key in entries), None)
            if auth:
                base64.b64decode(auth, validate=True)
                return str(auth)
        except (OSError, ValueError, AttributeError, binascii.Error) as error:
            kind = type(error).__name__
            raise InvalidArgumentError(f"cannot read the credentials in {file}: {kind}") from None
    return ""
