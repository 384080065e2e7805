"""Where protobuf descriptors lie; asking does not load protobuf."""

from importlib.resources import files
from pathlib import Path
from typing import Final

DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "oip.pb"))
"""A serialised `FileDescriptorSet` of `inference` and `grpc.health.v1`; Envoy reads it too."""
RLS_DESCRIPTOR_SET_PATH: Final = Path(str(files("headrace.protocol") / "rls.pb"))
"""The same of Envoy's rate limit service."""
