"""Model versions: immutable, content-addressed, with who, when, whence and their signature."""

from headrace.registry.content import Content, Progress, copy_content, read_content
from headrace.registry.registry import GarbageReport, Registry, VersionNotFoundError
from headrace.registry.repository import FoundModel, is_repository, open_repository
from headrace.registry.version import ModelVersion, StoredFile, VersionSignature

__all__ = [
    "Content",
    "FoundModel",
    "GarbageReport",
    "ModelVersion",
    "Progress",
    "Registry",
    "StoredFile",
    "VersionNotFoundError",
    "VersionSignature",
    "copy_content",
    "is_repository",
    "open_repository",
    "read_content",
]
