"""Write the committed files that are generated from code; tests fail when one is stale.

- `src/headrace/protocol/oip.pb` (the protocol and health, which Envoy reads too), `reflection.pb`
  (server reflection) and `rls.pb` (the rate limit service), from .proto files. Needs grpcio-tools
  (dependency group `build`).
- The Helm chart's alert rules, dashboards and the definition of the resource `Endpoint`.
"""

import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from grpc_tools import protoc

from headrace.deploy.helm_values import chart_files, chart_folder

PACKAGE: Final = Path(__file__).parents[1] / "src" / "headrace" / "protocol"
SOURCES: Final = {
    "oip.pb": ("oip.proto", "health.proto"),
    "reflection.pb": ("reflection.proto",),
    "rls.pb": ("rls.proto",),
}
"""Descriptor set ▸ its sources."""


def compile_to(target: Path, sources: Sequence[str] = SOURCES["oip.pb"]) -> int:
    """Write the descriptor set of `sources` to `target`; return the exit status of protoc."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    options = ("--include_imports", f"--descriptor_set_out={target}")
    paths = (f"--proto_path={PACKAGE}", f"--proto_path={well_known}")
    status: int = protoc.main(["protoc", *paths, *options, *sources])
    return status


def main() -> int:
    """Write all files; return the exit status."""
    for name, text in chart_files().items():
        path = chart_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return max(compile_to(PACKAGE / name, sources) for name, sources in SOURCES.items())


if __name__ == "__main__":
    sys.exit(main())
