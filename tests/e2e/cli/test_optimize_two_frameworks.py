"""A search over a SavedModel uses TensorFlow and PyTorch, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.optimize.search.journal import Built, CandidateFailed, read_journal
from headrace.optimize.search.process import REQUEST, SearchRequest
from tests.wide_networks import LABELS, ROWS, SAVED

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.tensorflow]

NOTES_FRAMEWORKS = """
import os, sys
PAIR = {"tensorflow", "torch"}
noted = set()
def note(event, _):
    if event == "import" and not PAIR.isdisjoint(sys.modules):
        held = frozenset(PAIR & sys.modules.keys())
        if held not in noted:
            noted.add(held)
            with open(os.environ["FRAMEWORKS_NOTED"], "a") as file:
                print(os.getpid(), *sorted(held), file=file)
sys.addaudithook(note)
"""
"""As `sitecustomize.py`, in every process: which frameworks it holds, looked up at each import."""


def test_no_process_of_a_search_holds_both(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="no tf2onnx: make test SUITE=all installs it")
    site, folder, noted = tmp_path / "site", tmp_path / "search", tmp_path / "noted"
    site.mkdir()
    folder.mkdir()
    (site / "sitecustomize.py").write_text(NOTES_FRAMEWORKS)
    np.savez(tmp_path / "test.npz", x=ROWS[:300], label=LABELS[:300])
    np.savez(tmp_path / "teach.npz", x=ROWS[300:], label=LABELS[300:])
    request = SearchRequest(
        source=str(SAVED["savedmodel"](tmp_path)),
        data=str(tmp_path / "test.npz"),
        teach=str(tmp_path / "teach.npz"),
        budget_s=240,
        only=("savedmodel", "openvino-int8", "pruned-ffn-50"),
    )
    (folder / REQUEST).write_bytes(msgspec.json.encode(request))

    done = subprocess.run(
        [sys.executable, "-m", "headrace.optimize.search.process"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site), "FRAMEWORKS_NOTED": str(noted)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    events = read_journal(folder)
    built = {event.name: event for event in events if isinstance(event, Built)}
    held = {line.split(maxsplit=1)[1] for line in noted.read_text().splitlines()}
    assert not [event for event in events if isinstance(event, CandidateFailed)]
    assert {"savedmodel", "openvino-int8", "pruned-ffn-50"} <= built.keys()
    assert not built["pruned-ffn-50"].recipe["taught"].startswith("no")
    assert held == {"tensorflow", "torch"}
