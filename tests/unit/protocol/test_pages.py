"""Pages and documents by which a server describes itself."""

import gzip
import hashlib
import json
import re

import pytest

from headrace.protocol.pages import (
    NOT_FOUND,
    PAGES,
    names_template,
    not_found_text,
    openapi_template,
    root_page,
    root_template,
)

SWAGGER_UI = {
    f"/docs/swagger-ui{end}": digest
    for end, digest in (
        ("-bundle.js", "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2"),
        (".css", "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d"),
    )
}
"""SHA-256 of the files in the npm package swagger-ui-dist 5.35.0."""


@pytest.mark.parametrize("names", [[], ["a"], ["a.b", "c-d"]])
def test_lists_of_endpoints_are_valid_json(names: list[str]) -> None:
    assert json.loads(names_template().render(names)) == {"models": names}
    root = json.loads(root_template(version="1.2").render(names))
    assert (root["status"], root["version"], root["endpoints"]) == ("alive", "1.2", names)
    assert "version" not in json.loads(root_template().render(names))
    openapi = json.loads(openapi_template().render(names))
    (parameter,) = openapi["paths"]["/v2/models/{name}/infer"]["parameters"]
    assert parameter["schema"]["enum"] == names


def test_the_page_links_each_endpoint() -> None:
    text = root_page().render(["a.b", "c"])

    assert re.findall(r'href="/docs#([^"]+)"', text) == ["a.b", "c"]
    assert "@NAMES@" not in text


def test_swagger_ui_is_the_published_package() -> None:
    content = {page.path: page.file.read_bytes() for page in PAGES}
    digests = {
        path: hashlib.sha256(gzip.decompress(content[path])).hexdigest() for path in SWAGGER_UI
    }

    assert digests == SWAGGER_UI


def test_pages_load_nothing_from_other_hosts_and_run_no_inline_scripts() -> None:
    for page in PAGES:
        policy = dict(page.headers)["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "http" not in policy
    own = [page.file.read_text() for page in PAGES if page.file.suffix in {".html", ".js", ".css"}]
    assert not any(re.search(r"https?://|<script>", text) for text in own)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/models", "/v2/models"),
        ("/v2/model/m/infer", "/v2/models/NAME"),
        ("/healthz", "/v2/health/live"),
        ("/v2/ready", "/v2/health/ready"),
        ("/predict", "POST /v2/models/NAME/infer"),
        ("/m/predict", "POST /v1/models/NAME:predict"),
        ("/v2/infer", "POST /v2/models/NAME/infer"),
        ("/m/invocations", "POST /endpoints/NAME/invocations"),
        ("/swagger-ui.html", "/docs"),
        ("/metrics", "8002"),
        ("/api/v1/status", "8080"),
        ("/v2/nothing", "/v2/models"),
        ("/v1/nothing", "/v1/models"),
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/chat/completion", "POST /v1/chat/completions"),
    ],
)
def test_an_unknown_path_names_the_paths_that_it_resembles(path: str, near: str) -> None:
    assert near in not_found_text(path)


def test_any_other_path_refers_to_the_start_page() -> None:
    assert not_found_text("/x") == NOT_FOUND
    assert not_found_text("/" + "a/" * 100_000) == NOT_FOUND
