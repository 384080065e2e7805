"""Compile the package's .proto files to the descriptor sets that ship in it.

`oip.pb`: the protocol and health, which Envoy reads too. `rls.pb`: the rate limit service. Needs
grpcio-tools (dependency group `build`). A unit test says when this has to run again.
"""

import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from grpc_tools import protoc

PACKAGE: Final = Path(__file__).parents[1] / "src" / "headrace" / "protocol"
SOURCES: Final = {"oip.pb": ("oip.proto", "health.proto"), "rls.pb": ("rls.proto",)}
"""By the name of the descriptor set."""


def compile_to(target: Path, sources: Sequence[str] = SOURCES["oip.pb"]) -> int:
    """Write the descriptor set of `sources` to `target`; the exit status of protoc."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status: int = protoc.main(
        [
            "protoc",
            f"--proto_path={PACKAGE}",
            f"--proto_path={well_known}",
            "--include_imports",
            f"--descriptor_set_out={target}",
            *sources,
        ]
    )
    return status


if __name__ == "__main__":
    sys.exit(max(compile_to(PACKAGE / name, sources) for name, sources in SOURCES.items()))
