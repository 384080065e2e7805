"""Inspection process `python -m headrace.serving.inspection INSPECTION`, started in a sandbox.

It loads one model and writes a `TrialResult` to standard output. The model is not trusted: its
output is discarded, and the process is restricted before it starts.
"""

import os
import sys
from pathlib import Path

import msgspec

from headrace.runtimes import inspect_model
from headrace.serving.pool.load_check import Inspection, TrialResult, result_of

_NICE = 5
"""Low CPU priority: serving processes come first."""


def main(arguments: list[str]) -> int:
    """Inspect the model that the only argument names, an `Inspection` as JSON."""
    request = msgspec.json.decode(arguments[0], type=Inspection)
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.nice(_NICE)

    def work() -> TrialResult:
        path = Path(request.path)
        inspected = inspect_model(path, request.runtime, allow_code=request.allow_code)
        return TrialResult(inspected=inspected)

    os.write(answer, msgspec.json.encode(result_of(work)))
    os._exit(0)  # ends despite threads that the model left


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
