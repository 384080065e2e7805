"""Model versions: immutable, content-addressed, with who, when, whence and their signature."""

from headrace.registry.content import Content, Progress, copy_content, read_content
from headrace.registry.mirror import bound_to
from headrace.registry.open_store import check_artifacts_url, open_shared
from headrace.registry.registry import GarbageReport, Registry
from headrace.registry.repository import FoundModel, is_repository, open_repository
from headrace.registry.shared import SharedStore
from headrace.registry.tree import copy_files
from headrace.registry.version import (
    ModelVersion,
    StoredFile,
    VersionNotFoundError,
    VersionSignature,
)

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
