"""Nobody is told what is optimized here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.network_models import conv_net, write

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from headrace.optimize.candidate import ModelClass, RecipeContext
from headrace.optimize.recipes import recipes_for

folder = Path(sys.argv[1])
workshop = RecipeContext(
    source=folder / "source.onnx", runtime="onnx", model_class=ModelClass.CONV_NET,
    folder=folder / "made", calibration=[{"image": np.ones((1, 3, 16, 16), np.float32)}],
    threads=1, seed=0, deadline=0.0,
)
recipes = {one.name: one for one in recipes_for(ModelClass.CONV_NET, "onnx", ())}
recipes["openvino-int8"].build(workshop)
print(sorted(name for name in sys.modules if "telemetry" in name and sys.modules[name]))
"""


@pytest.mark.slow
def test_nncf_reports_to_nobody_and_keeps_nothing_at_home(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra `optimize`")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "made").mkdir()
    write(tmp_path, conv_net())
    environment = {key: value for key, value in os.environ.items() if key != "CI"}

    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "openvino_telemetry" not in done.stdout
    assert done.stdout.count("\n") == 1  # not a word besides
    assert list(home.rglob("*")) == []
