"""Which store does a URL mean, and with whose credentials? The environment's, never the URL's.

A variable is looked up as `HEADRACE_ARTIFACTS_NAME` first, then as `NAME`: the former is for the
store alone, and processes of models do not inherit it. `file:/PATH` as its value stands for what is
in that file.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from headrace.core import Clock, FailedPreconditionError, InvalidArgumentError
from headrace.registry.bucket import Bucket
from headrace.registry.bucket_files import FileBucket
from headrace.registry.shared import SharedStore

PREFIX: Final = "HEADRACE_ARTIFACTS_"
RETRY_S: Final = 15.0
"""How long a store that does not answer is asked again; eight times as long for content."""

_FILE: Final = "file:/"
_MOST_BYTES: Final = 1 << 20
_HOW: Final = "use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH"
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_SSE_KMS_KEY_ID",
    ),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_TENANT_ID",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_ENDPOINT",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}
_OBSTORE: Final = {
    "AWS_ENDPOINT_URL": "aws_endpoint",
    "AWS_ENDPOINT_URL_S3": "aws_endpoint",
    "AWS_SSE_KMS_KEY_ID": "aws_sse_kms_key_id",
}
"""What obstore calls otherwise than the environment does; all else is the same in small letters."""


def open_shared(
    url: str,
    *,
    environment: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    retry_s: float = RETRY_S,
) -> SharedStore:
    """The shared store at `url`; nothing is asked yet.

    Args:
        environment: None for this process's.

    Raises:
        InvalidArgumentError: It is no such URL. The message does not repeat what may be a secret.
        FailedPreconditionError: The extra `artifacts` is not installed, or a file with a secret
            cannot be read.
    """
    return SharedStore(open_bucket(url, environment=environment, retry_s=retry_s), clock=clock)


def open_bucket(
    url: str, *, environment: Mapping[str, str] | None = None, retry_s: float = RETRY_S
) -> Bucket:
    """The same without the registry's ways of using it."""
    clean = check_artifacts_url(url)
    scheme = clean.partition(":")[0]
    if scheme == "file":
        return FileBucket(Path(unquote(urlsplit(clean).path)))
    given = os.environ if environment is None else environment
    try:
        from headrace.registry.bucket_objects import ObjectBucket  # noqa: PLC0415  # 15 MB, an extra
    except ImportError as error:
        message = f"{clean} needs obstore: pip install 'headrace[artifacts]'"
        raise FailedPreconditionError(message) from error
    return ObjectBucket(clean, _config(scheme, given), retry_s=retry_s)


def check_artifacts_url(url: str) -> str:
    """`url` without a slash at its end.

    Raises:
        InvalidArgumentError: It names no store, or holds what may be a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidArgumentError(f"the URL of the artifacts is none; {_HOW}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidArgumentError(
            "the URL of the artifacts holds credentials or options; they belong into the "
            f"environment: {_HOW}"
        )
    if not url.isprintable():
        raise InvalidArgumentError(f"the URL of the artifacts holds what cannot be printed; {_HOW}")
    path = parts.path.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and path:
        return f"file://{path}"
    if parts.scheme not in _NAMES:
        raise InvalidArgumentError(f"the URL of the artifacts names no store; {_HOW}")
    if _BUCKET_NAME.fullmatch(parts.netloc) is None:
        raise InvalidArgumentError(f"{parts.netloc[:200]!r} is no name of a bucket; {_HOW}")
    if any(part in {"", ".", ".."} for part in path.split("/")[1:]):
        raise InvalidArgumentError(f"{path[:200]!r} is no prefix in a bucket; {_HOW}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _config(scheme: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of the store, in obstore's names."""
    config: dict[str, str] = {}
    for name in _NAMES[scheme]:
        value = environment.get(f"{PREFIX}{name}") or environment.get(name, "")
        if value:
            config[_OBSTORE.get(name, name.lower())] = _resolved(name, value)
    if scheme == "s3" and not {"aws_region", "aws_default_region"} & config.keys():
        config["aws_region"] = "us-east-1"  # where others than Amazon are asked for none
    return config


def _resolved(name: str, value: str) -> str:
    """What a variable means.

    Raises:
        FailedPreconditionError: It names a file that cannot be read; the message names that.
    """
    if not value.startswith(_FILE) or name.endswith("_FILE"):
        return value
    path = Path(value.removeprefix("file:"))
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise FailedPreconditionError(f"{name}: cannot read {path}: {reason}") from error
