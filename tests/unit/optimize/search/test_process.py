"""What the program of a search hands to the search itself."""

import subprocess
import sys
from pathlib import Path

import msgspec

from headrace.optimize.search.process import REQUEST, SearchRequest, SearchTarget

_SAYS_WHAT_IT_IS_ASKED = """
import runpy
from headrace.optimize.search import process, work
work.search = lambda request, folder: print(request.target is process.SearchTarget.MEMORY)
runpy.run_module("headrace.optimize.search.process", run_name="__main__", alter_sys=True)
"""


def test_the_target_of_a_request_is_the_one_that_the_search_compares_with(tmp_path: Path) -> None:
    request = SearchRequest(source="model.onnx", target=SearchTarget.MEMORY)
    (tmp_path / REQUEST).write_bytes(msgspec.json.encode(request))

    done = subprocess.run(  # noqa: S603  # the code is above
        [sys.executable, "-W", "ignore", "-c", _SAYS_WHAT_IT_IS_ASKED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "True\n", done.stderr
    assert done.returncode == 0
