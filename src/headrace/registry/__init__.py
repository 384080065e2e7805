"""Registry of immutable, content-addressed model versions. Imports `observe` and below."""

from headrace.registry.content import Content, Progress, copy_content, copy_files, read_content
from headrace.registry.index import (
    ModelVersion,
    StoredFile,
    VersionNotFoundError,
    VersionSignature,
)
from headrace.registry.mirror import bound_to
from headrace.registry.registry import GarbageReport, Registry
from headrace.registry.repository import FoundModel, is_repository, open_repository
from headrace.registry.shared import SharedStore, check_artifacts_url, open_shared

__all__ = [
    "Content",
    "FoundModel",
    "GarbageReport",
    "ModelVersion",
    "Progress",
    "Registry",
    "SharedStore",
    "StoredFile",
    "VersionNotFoundError",
    "VersionSignature",
    "bound_to",
    "check_artifacts_url",
    "copy_content",
    "copy_files",
    "is_repository",
    "open_repository",
    "open_shared",
    "read_content",
]
