"""moto, which plays AWS, imports the exported API; its linter takes the stage's template."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.deploy import AwsOptions, DocumentFormat, aws_apigateway, files_of
from tests.kube import needs, program
from tests.unit.deploy.specs import facts_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.kube, needs("python", "cfn-lint")]

_IMPORT: Final = Path(__file__).parent / "moto_import.py"
_BACKEND: Final = "http://gateway.internal:8000"
_SAID: Final[dict[str, Any]] = {
    "access": ["jwt"],
    "timeout_s": 5,
    "limits": {"requests_per_s": 50, "burst": 100},
}
_AUTH: Final = {
    "jwt": [
        {
            "name": "corp",
            "issuer": "https://id.test",
            "audiences": ["models"],
            "jwks_url": "https://id.test/keys",
        }
    ]
}
_TIERS: Final = [{"name": "gold", "requests_per_s": 20, "requests_per_day": 1000}]


@pytest.mark.parametrize(("kind", "link"), [("http", ""), ("rest", "vpclink-1")])
def test_the_api_is_imported_with_every_route(kind: str, link: str, tmp_path: Path) -> None:
    options = AwsOptions(backend=_BACKEND, kind=kind, vpc_link=link)  # type: ignore[arg-type]  # one of two
    export = aws_apigateway(facts_of(_SAID, auth=_AUTH, tiers=_TIERS), options)
    for name, text in files_of(export, DocumentFormat.JSON).items():
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [program("python"), _IMPORT, kind, tmp_path / "openapi.json", tmp_path / "stage.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    linted = subprocess.run(
        [program("cfn-lint"), tmp_path / "stage.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert linted.returncode == 0, linted.stdout
    told = json.loads(done.stdout)
    assert told["name"] == "Headrace"
    wanted = {
        f"{method.upper()} {path}": f"{_BACKEND}{path}"
        for path, methods in export.documents[0].body["paths"].items()
        for method in methods
    }
    assert "POST /v2/models/fraud/versions/{version}/infer" in wanted
    assert {key: told["routes"].get(key) for key in wanted} == wanted
