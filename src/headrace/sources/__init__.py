"""Sources of models outside of the registry, named by a URI. Imports `registry` and below."""

from collections.abc import Mapping

from headrace.core.model_uri import ModelUri, UriScheme
from headrace.registry.shared import open_bucket
from headrace.sources.bucket import BucketSource
from headrace.sources.download import Downloader, DownloadLimits
from headrace.sources.http import HttpsSource
from headrace.sources.hub import HubSource
from headrace.sources.listing import Listing, RemoteBody, RemoteFile, Source, Unpack
from headrace.sources.mlflow import MlflowSource
from headrace.sources.oci import OciSource

__all__ = [
    "DownloadLimits",
    "Downloader",
    "Listing",
    "RemoteBody",
    "RemoteFile",
    "Source",
    "Unpack",
    "open_source",
]


def open_source(uri: ModelUri, environment: Mapping[str, str] | None = None) -> Source:
    """Return the source of a URI, without contacting it; `file://` has none.

    Args:
        environment: Variables with credentials and endpoints; None for the process environment.

    Raises:
        InvalidArgumentError: A setting of the environment cannot be used.
        FailedPreconditionError: A package that the scheme needs is not installed.
    """
    match uri.scheme:
        case UriScheme.S3 | UriScheme.GS | UriScheme.AZ:
            bucket = open_bucket(f"{uri.scheme}://{uri.host}", environment=environment)
            return BucketSource(uri, bucket)
        case UriScheme.HTTPS:
            return HttpsSource(uri)
        case UriScheme.HF:
            return HubSource(uri, environment)
        case UriScheme.OCI:
            return OciSource(uri, environment)
        case UriScheme.MODELS | UriScheme.RUNS:
            return MlflowSource(uri, environment)
        case UriScheme.FILE:
            raise AssertionError("the caller reads the path")
