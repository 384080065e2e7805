"""Files of the pages on installation and operation, checked by the tools that read them."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    (unit,) = (
        block
        for block in blocks(ROOT / "docs/how-to/production.md")
        if block.title == "headrace.service"
    )
    # systemd-analyze checks that the program exists.
    text = unit.text.replace("/opt/headrace/bin", str(Path(sys.executable).parent))
    (tmp_path / unit.title).write_text(text)

    done = subprocess.run(  # noqa: S603  # ours
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit.title],  # noqa: S607  # the system's
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_install_page_lists_every_extra() -> None:
    page = (ROOT / "docs/how-to/install.md").read_text()
    table = page.split("## Extras", 1)[1].split("## ", 1)[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert set(re.findall(r"`([a-z-]+)`", table)) == set(project["optional-dependencies"])
