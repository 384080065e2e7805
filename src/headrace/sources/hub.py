"""Source of models on a Hugging Face hub.

A revision is resolved to its commit first, and every file is then read of that commit.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

from headrace.core import (
    ArtifactCorruptError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from headrace.core.model_uri import ModelUri
from headrace.core.names import is_loopback_url
from headrace.sources.http import SourceClient, check_status, json_of, read_limited
from headrace.sources.listing import Listing, RemoteBody, RemoteFile

ENDPOINT: Final = "https://huggingface.co"
_NOT_SERVED: Final = frozenset({".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".mp4", ".pdf"})
"""Suffixes of model cards and their pictures."""
_OF_TRAINING: Final = frozenset(
    {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_PART_OF_WEIGHTS: Final = re.compile(r"((?<=\.onnx)[._]data(_\d+)?|\.index\.json)$")
_PART_OF_GGUF: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_MAX_LISTED: Final = 20
_ONNX: Final = (".onnx",)
_FRAMEWORKS: Final[Sequence[tuple[str, ...]]] = (
    _ONNX,
    (".safetensors",),
    (".bin", ".pt", ".pth", ".ckpt"),
    (".h5", ".tflite"),
    (".msgpack",),
    (".ot",),
    (".gguf",),
)
"""Suffixes of weights by framework. A repository often has the same weights for several; the first
of these that is complete is downloaded: ONNX runs without a framework, safetensors holds no code.
"""
_OTHER_RUNTIMES: Final = ("openvino/", "coreml/", "flax/", "tf/", "original/", "metal/")
"""Directories with further copies of the weights."""


class HubSource:
    """A repository of a hub, or a part of it.

    Args:
        environment: `HF_ENDPOINT`, `HF_TOKEN`; None for the process environment.
    """

    def __init__(self, uri: ModelUri, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._uri = uri
        self._endpoint = (variables.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        self._repository = f"{quote(uri.host)}/{quote(uri.path)}"
        self._client = SourceClient(allow_loopback_http=is_loopback_url(self._endpoint))
        if token := variables.get("HF_TOKEN", "").strip():
            if not token.isascii() or not token.isprintable():
                raise InvalidArgumentError("HF_TOKEN has characters that a header cannot hold")
            self._client.authorize(self._endpoint, f"Bearer {token}")

    def resolve(self) -> Listing:
        """Return the files of the revision's commit that a runtime may need.

        Raises:
            InvalidArgumentError: It has several GGUF models, of which only one is served.
            NotFoundError: The repository, revision or path does not exist.
            PermissionDeniedError: The token is missing, or may not read the repository.
        """
        revision = quote(self._uri.revision or "main", safe="")
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        document = self._document(url)
        commit, siblings = document.get("sha"), document.get("siblings")
        if (
            not isinstance(commit, str)
            or _COMMIT.fullmatch(commit) is None
            or not isinstance(siblings, list)
        ):
            raise ArtifactCorruptError(f"{self._endpoint} names no commit of {self._uri.location}")
        files = [file for entry in siblings if (file := self._file(entry, commit)) is not None]
        inside = self._uri.inside
        if inside:
            lone = [file for file in files if file.path == inside]
            below = [file for file in files if file.path.startswith(f"{inside}/")]
            if not lone and not below:
                message = f"{self._uri.location}: there is no '{inside}' at commit {commit}"
                raise NotFoundError(message)
            chosen = [
                _moved(file, "" if lone else file.path.removeprefix(f"{inside}/"))
                for file in lone or below
            ]
        else:
            kept = needed_files([file.path for file in files])
            models = sorted({_PART_OF_GGUF.sub("", p) for p in kept if p.lower().endswith(".gguf")})
            if len(models) > 1:
                raise InvalidArgumentError(
                    f"{self._uri.location} has {len(models)} GGUF models; name one, as in "
                    f"{self._uri.location}/{models[0]}: {', '.join(models[:_MAX_LISTED])}"
                )
            chosen = [file for file in files if file.path in kept]
        return Listing(
            name=self._uri.filename,
            files=tuple(sorted(chosen, key=lambda file: file.path)),
            revision=f"commit {commit}",
        )

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[RemoteBody]:
        """Open a file of the commit, from byte `start`."""
        with self._client.read(file, file.locator, start) as body:
            yield body

    def _document(self, url: str) -> dict[str, Any]:
        with self._client.get(url) as response:
            try:
                check_status(response, url)
            except (NotFoundError, PermissionDeniedError) as error:
                raise self._explained(error, response.headers.get("x-error-code", "")) from None
            document: dict[str, Any] = json_of(read_limited(response, url), url)
            return document

    def _explained(self, error: HeadraceError, code: str) -> HeadraceError:
        name = f"{self._uri.host}/{self._uri.path}"
        if code == "GatedRepo":
            message = (
                f"{name} is gated: accept its conditions at {self._endpoint}/{name}, and set "
                "HF_TOKEN to a token of your account"
            )
            return PermissionDeniedError(message)
        if code == "RevisionNotFound":
            revision = self._uri.revision or "main"
            return NotFoundError(f"{name} has no revision '{revision}' on {self._endpoint}")
        if code == "RepoNotFound" or isinstance(error, PermissionDeniedError):
            message = (
                f"{self._endpoint} has no repository '{name}', or it is private: set HF_TOKEN to a "
                "token that may read it"
            )
            return NotFoundError(message)
        return error

    def _file(self, entry: object, commit: str) -> RemoteFile | None:
        """Return a file of the repository; None if the hub describes none."""
        path = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(path, str):
            return None
        stored = entry.get("lfs")
        lfs = stored if isinstance(stored, dict) else {}
        size, sha256 = lfs.get("size", entry.get("size")), lfs.get("sha256", "")
        return RemoteFile(
            path=path,
            locator=f"{self._endpoint}/{self._repository}/resolve/{commit}/{quote(path)}",
            size_bytes=size if isinstance(size, int) and size >= 0 else None,
            sha256=sha256 if isinstance(sha256, str) else "",
        )


def needed_files(paths: Sequence[str]) -> frozenset[str]:
    """Return the files of a repository that serving may need.

    These are all files except documentation, and of the weights those of one framework: ONNX if
    there is an unquantized ONNX model, else safetensors, else PyTorch's files, and so on.
    """
    files = [
        path for path in paths if not _is_unused(path) and not path.startswith(_OTHER_RUNTIMES)
    ]
    weights = {
        suffixes: {path for path in files if _weights_name(path).endswith(suffixes)}
        for suffixes in _FRAMEWORKS
    }
    weights[_ONNX] = _main_onnx(weights[_ONNX])
    chosen = next(filter(None, weights.values()), set())
    is_weights = tuple(suffix for suffixes in _FRAMEWORKS for suffix in suffixes)
    others = {path for path in files if not _weights_name(path).endswith(is_weights)}
    return frozenset(others | chosen)


def _weights_name(path: str) -> str:
    """Return the file that a path belongs to: its index, or its data of an ONNX file."""
    return _PART_OF_WEIGHTS.sub("", path).lower()


def _main_onnx(paths: set[str]) -> set[str]:
    """Return the ONNX files without their variants, which exporters name `model_int8.onnx`."""
    stems = {_weights_name(path).removesuffix(".onnx") for path in paths}
    variants = {stem for stem in stems for other in stems if stem.startswith(f"{other}_")}
    return {path for path in paths if _weights_name(path).removesuffix(".onnx") not in variants}


def _is_unused(path: str) -> bool:
    name = path.rpartition("/")[2]
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return (
        path.startswith(".")
        or name.startswith((".", "openvino_"))
        or suffix in _NOT_SERVED
        or name in _OF_TRAINING
    )


def _moved(file: RemoteFile, path: str) -> RemoteFile:
    return RemoteFile(
        path=path, locator=file.locator, size_bytes=file.size_bytes, sha256=file.sha256
    )
