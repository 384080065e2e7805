"""URI of a model outside of the registry: in a bucket, on a web server, a hub or an OCI registry.

    s3://BUCKET/KEY  gs://BUCKET/KEY  az://CONTAINER/KEY     an object, or all objects below KEY/
    https://HOST/PATH                                        a file
    file:///PATH                                             a file or directory of this machine
    hf://ORG/NAME[@REVISION][/PATH]                          a repository of a Hugging Face hub
    oci://REGISTRY/REPOSITORY[:TAG][@sha256:HEX]             an artifact or image
    models:/NAME/VERSION  models:/NAME@ALIAS                 a version in MLflow's registry
    runs:/RUN_ID/PATH                                        a model that a run of MLflow logged

`#sha256=HEX` at the end pins the content by the digest that the registry shows.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from headrace.core.errors import InvalidArgumentError

MAX_URI_CHARACTERS: Final = 4096
_URI: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://|(models|runs):/)")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_HOST: Final = re.compile(
    r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(:\d{1,5})?"
)
_HUB_PART: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}")
# https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
_REPOSITORY: Final = re.compile(
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MLFLOW_MODEL: Final = re.compile(
    r"[^/:@]{1,256}(/[0-9]{1,9}|@[A-Za-z0-9_-]{1,255})|m-[0-9a-f]{32}"
)
_MLFLOW_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}/[^?#]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PIN: Final = "sha256="
_SUFFIX: Final = re.compile(r"(\.tar)?\.[A-Za-z][A-Za-z0-9_]{0,15}$")
_GENERIC: Final = re.compile(r"models?|onnx|v?\d+(\.\d+)*")
"""Names of files and directories that do not tell models apart."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class UriScheme(StrEnum):
    """Kind of server that holds a model."""

    S3 = "s3"
    GS = "gs"
    AZ = "az"
    HTTPS = "https"
    FILE = "file"
    HF = "hf"
    OCI = "oci"
    MODELS = "models"
    RUNS = "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUri:
    """Location of a model; `str` of it holds no secrets and parses to the same location."""

    scheme: UriScheme
    host: str = ""
    """Bucket, `HOST[:PORT]`, or organisation of a hub."""
    path: str = ""
    """Without a leading `/`: key, URL path, absolute file path, hub or OCI repository, or what
    follows `models:/` or `runs:/`."""
    query: str = ""
    """Query of an https URI. It may grant access, so it is never stored."""
    revision: str = ""
    """Branch, tag or commit of a hub's repository; tag of an OCI artifact."""
    manifest: str = ""
    """Digest of an OCI manifest."""
    inside: str = ""
    """File or directory in a hub's repository; empty for all."""
    sha256: str = ""
    """Expected digest of the content; empty if not pinned."""

    @property
    def location(self) -> str:
        """Return the URI without its pin and its query."""
        match self.scheme:
            case UriScheme.FILE:
                return f"file:///{quote(self.path)}"
            case UriScheme.HF:
                revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
                inside = f"/{quote(self.inside)}" if self.inside else ""
                return f"hf://{self.host}/{self.path}{revision}{inside}"
            case UriScheme.OCI:
                tag = f":{self.revision}" if self.revision else ""
                manifest = f"@{self.manifest}" if self.manifest else ""
                return f"oci://{self.host}/{self.path}{tag}{manifest}"
            case UriScheme.MODELS | UriScheme.RUNS:
                return f"{self.scheme}:/{quote(self.path, safe='/@')}"
            case _:
                return f"{self.scheme}://{self.host}/{self.path}"

    @property
    def filename(self) -> str:
        """Return the last part of the location, as the name of a file or directory."""
        last = (self.inside or self.path).rstrip("/").rpartition("/")[2]
        name = unquote(last) if self.scheme is UriScheme.HTTPS else last
        name = re.sub(r"[/\x00-\x1f\x7f]", "-", name).lstrip(".")
        return name[-200:] or "model"

    @property
    def model_name(self) -> str:
        """Return a name for the model: that of its repository, its file, or its directory."""
        is_repository = self.scheme in {UriScheme.HF, UriScheme.OCI, UriScheme.MODELS}
        whole = unquote(f"{self.host}/{self.path}")
        if self.scheme is UriScheme.MODELS:
            whole = self.path.partition("@")[0]
        for i, part in enumerate(reversed([part for part in whole.split("/") if part])):
            stem = part if i or is_repository else _SUFFIX.sub("", part)
            name = _NOT_IN_NAMES.sub("-", stem).strip("-._")[:128].rstrip("-._")
            if name and _GENERIC.fullmatch(name) is None:
                return name
        return "model"

    def __str__(self) -> str:
        """Return the URI without its query."""
        return f"{self.location}#{_PIN}{self.sha256}" if self.sha256 else self.location


def is_model_uri(text: str) -> bool:
    """Whether a text is a URI, perhaps of an unknown scheme, and not a path or a reference."""
    return _URI.match(text) is not None


def parse_model_uri(text: str) -> ModelUri:
    """Return the location that `text` names.

    Raises:
        InvalidArgumentError: It is not a URI of a model. The message repeats no query.
    """
    if len(text) > MAX_URI_CHARACTERS:
        raise InvalidArgumentError(f"a URI has at most {MAX_URI_CHARACTERS} characters")
    shown = repr(text.partition("?")[0].partition("#")[0][:200])
    parsed = _split(text, shown)
    match parsed.scheme:
        case UriScheme.S3 | UriScheme.GS | UriScheme.AZ:
            return _bucket_uri(parsed, shown)
        case UriScheme.HTTPS:
            if _HOST.fullmatch(parsed.host) is None:
                raise InvalidArgumentError(f"{shown} names no host")
            return parsed
        case UriScheme.FILE:
            return _file_uri(parsed, shown)
        case UriScheme.HF:
            return _hub_uri(parsed, shown)
        case UriScheme.OCI:
            return _oci_uri(parsed, shown)
        case UriScheme.MODELS | UriScheme.RUNS:
            return _mlflow_uri(parsed, shown)


def _split(text: str, shown: str) -> ModelUri:
    """Return the parts of a URI, of which those that all schemes share are checked."""
    if not text.isprintable() or any(character.isspace() for character in text):
        raise InvalidArgumentError(f"{shown}: a URI has no spaces and no unprintable characters")
    try:
        parts = urlsplit(text)
        scheme = UriScheme(parts.scheme)
    except ValueError:
        schemes = ", ".join(f"{scheme}://" for scheme in UriScheme)
        raise InvalidArgumentError(f"{shown} is not a URI of {schemes}") from None
    if "@" in parts.netloc:
        where = "set them in the environment"
        raise InvalidArgumentError(f"a URI of {scheme}:// must not hold credentials; {where}")
    if parts.query and scheme is not UriScheme.HTTPS:
        raise InvalidArgumentError(f"{shown}: a URI of {scheme}:// has no '?'")
    pin = parts.fragment.removeprefix(_PIN)
    if parts.fragment and (pin == parts.fragment or _SHA256.fullmatch(pin) is None):
        message = f"{shown}: after '#' only sha256= and 64 hexadecimal digits are valid"
        raise InvalidArgumentError(message)
    return ModelUri(
        scheme=scheme,
        host=parts.netloc,
        path=parts.path.removeprefix("/"),
        query=parts.query,
        sha256=pin,
    )


def _bucket_uri(uri: ModelUri, shown: str) -> ModelUri:
    if _BUCKET.fullmatch(uri.host) is None:
        raise InvalidArgumentError(f"{shown}: {uri.host[:100]!r} is not the name of a bucket")
    path = uri.path.removesuffix("/")
    if any(part in {"", ".", ".."} for part in path.split("/")):
        raise InvalidArgumentError(f"{shown}: needs the key of a model in the bucket")
    return replace(uri, path=path)


def _file_uri(uri: ModelUri, shown: str) -> ModelUri:
    path = unquote(uri.path).rstrip("/")
    if uri.host not in {"", "localhost"}:
        message = f"{shown}: the path is absolute, after three slashes, as in file:///models/a.onnx"
        raise InvalidArgumentError(message)
    if not path or not path.isprintable():
        raise InvalidArgumentError(f"{shown} names no file")
    return replace(uri, host="", path=path.lstrip("/"))


def _hub_uri(uri: ModelUri, shown: str) -> ModelUri:
    repository, slash, inside = uri.path.partition("/")
    name, at_sign, revision = repository.partition("@")
    revision, inside = unquote(revision), unquote(inside).removesuffix("/")
    if not (_HUB_PART.fullmatch(uri.host) and _HUB_PART.fullmatch(name)):
        raise InvalidArgumentError(f"{shown} is not hf://ORG/NAME[@REVISION][/PATH]")
    if at_sign and (_REVISION.fullmatch(revision) is None or _climbs(revision)):
        raise InvalidArgumentError(f"{shown}: after '@' comes a branch, a tag or a commit")
    if slash and inside and (_climbs(inside) or not inside.isprintable()):
        raise InvalidArgumentError(f"{shown}: {inside[:100]!r} is not a path in the repository")
    return replace(uri, path=name, revision=revision, inside=inside)


def _oci_uri(uri: ModelUri, shown: str) -> ModelUri:
    named, at_sign, manifest = uri.path.partition("@")
    repository, colon, tag = named.partition(":")
    digest = manifest.removeprefix("sha256:")
    if _HOST.fullmatch(uri.host) is None or _REPOSITORY.fullmatch(repository) is None:
        message = f"{shown} is not oci://REGISTRY/REPOSITORY[:TAG][@sha256:HEX]"
        raise InvalidArgumentError(message)
    if colon and _TAG.fullmatch(tag) is None:
        raise InvalidArgumentError(f"{shown}: {tag[:100]!r} is not a tag")
    if at_sign and (digest == manifest or _SHA256.fullmatch(digest) is None):
        raise InvalidArgumentError(f"{shown}: after '@' comes sha256: and 64 hexadecimal digits")
    return replace(uri, path=repository, revision=tag, manifest=manifest)


def _mlflow_uri(uri: ModelUri, shown: str) -> ModelUri:
    path = unquote(uri.path)
    is_models = uri.scheme is UriScheme.MODELS
    pattern = _MLFLOW_MODEL if is_models else _MLFLOW_RUN
    is_valid = pattern.fullmatch(path) is not None and path.isprintable() and not _climbs(path)
    if uri.host or not is_valid:
        forms = "models:/NAME/VERSION or models:/NAME@ALIAS" if is_models else "runs:/RUN_ID/PATH"
        raise InvalidArgumentError(f"{shown} is not {forms}")
    return replace(uri, path=path)


def _climbs(path: str) -> bool:
    return any(part in {"", ".", ".."} for part in path.split("/"))
