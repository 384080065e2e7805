"""Compile the protocol's .proto files to oip.pb, the descriptor set that ships in the package.

Needs grpcio-tools (dependency group `build`). A unit test says when this has to run again.
"""

import importlib.resources
import sys
from pathlib import Path

from grpc_tools import protoc

PACKAGE = Path(__file__).parents[1] / "src" / "headrace" / "protocol"


def compile_to(target: Path) -> int:
    """Write the descriptor set to `target`; the exit status of protoc."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status: int = protoc.main(
        [
            "protoc",
            f"--proto_path={PACKAGE}",
            f"--proto_path={well_known}",
            "--include_imports",
            f"--descriptor_set_out={target}",
            "oip.proto",
            "health.proto",
        ]
    )
    return status


if __name__ == "__main__":
    sys.exit(compile_to(PACKAGE / "oip.pb"))
