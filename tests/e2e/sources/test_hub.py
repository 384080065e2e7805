"""A stand-in for a hub, which the hub's own client accepts, and this source."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from headrace.core import (
    ArtifactCorruptError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from headrace.core.model_uri import parse_model_uri
from headrace.sources import Downloader, open_source
from tests.source_servers import COMMIT, TOKEN, FileServer, Hub, HubRepository, Served

pytestmark = pytest.mark.e2e

WEIGHTS = os.urandom(300_000)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "README.md": b"# A model",
    ".gitattributes": b"*.bin filter=lfs",
    "onnx/labels.txt": b"a\nb\n",
}
Fetch = Callable[..., dict[str, bytes]]


@pytest.fixture
def cdn() -> Iterator[FileServer]:
    with FileServer().running() as server:
        yield server


@pytest.fixture
def hub(cdn: FileServer) -> Iterator[Hub]:
    hub = Hub(cdn)
    hub.repositories["org/tiny"] = HubRepository(files=dict(FILES))
    with hub.running():
        yield hub


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    def fetch(text: str, token: str = "", **changes: str) -> dict[str, bytes]:
        uri = parse_model_uri(text)
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, **changes}
        downloader = Downloader(
            source=open_source(uri, variables),
            location=uri.location,
            cache=tmp_path / "cache",
            sleep=lambda _: None,
        )
        listing = downloader.resolve()
        with downloader.downloaded(listing) as model:
            assert listing.revision == f"commit {COMMIT}"
            return _files_of(model)

    return fetch


def _large(cdn: FileServer) -> Served:
    (served,) = cdn.resources.values()
    return served


def _files_of(model: Path) -> dict[str, bytes]:
    if model.is_file():
        return {model.name: model.read_bytes()}
    paths = [path for path in model.rglob("*") if path.is_file()]
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in paths}


def test_client_of_the_hub_accepts_the_stand_in(hub: Hub, tmp_path: Path) -> None:
    folder = huggingface_hub.snapshot_download(
        "org/tiny", endpoint=hub.url, local_dir=tmp_path / "copy", token=False
    )

    found = _files_of(Path(folder))
    assert {name: found[name] for name in FILES} == FILES


def test_same_files_arrive_as_by_the_client_of_the_hub(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    files = fetch("hf://org/tiny")

    chosen = ["config.json", "model.safetensors", "onnx/labels.txt", "tokenizer.json"]
    folder = huggingface_hub.snapshot_download(
        "org/tiny",
        endpoint=hub.url,
        local_dir=tmp_path / "copy",
        token=False,
        allow_patterns=chosen,
    )
    copied = _files_of(Path(folder))
    assert files == {name: copied[name] for name in chosen}


def test_files_are_read_of_the_commit_that_was_resolved(hub: Hub, fetch: Fetch) -> None:
    fetch("hf://org/tiny@v1")

    paths = [path for path, _ in hub.requests]
    assert paths[0] == "/api/models/org/tiny/revision/v1?blobs=true"
    assert all(path.startswith(f"/org/tiny/resolve/{COMMIT}/") for path in paths[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://org/tiny/model.safetensors", {"model.safetensors": WEIGHTS}),
        ("hf://org/tiny@main/pytorch_model.bin", {"pytorch_model.bin": WEIGHTS[::-1]}),
        ("hf://org/tiny/onnx", {"labels.txt": b"a\nb\n"}),
        (f"hf://org/tiny@{COMMIT}/README.md", {"README.md": b"# A model"}),
    ],
)
def test_path_selects_a_file_or_a_directory(
    fetch: Fetch, text: str, expected: dict[str, bytes]
) -> None:
    assert fetch(text) == expected


def test_one_of_several_gguf_files_is_named_before_a_download(hub: Hub, fetch: Fetch) -> None:
    parts = {f"m-q8-0000{n}-of-00002.gguf": WEIGHTS for n in (1, 2)}
    hub.repositories["org/two"] = HubRepository(files={"m-q4.gguf": WEIGHTS, **parts})
    hub.repositories["org/parts"] = HubRepository(files=parts)

    with pytest.raises(
        InvalidArgumentError, match=r"2 GGUF models; name one, .*two/m-q4\.gguf: m-q4\.gguf, m-q8"
    ):
        fetch("hf://org/two")
    assert fetch("hf://org/parts").keys() == parts.keys()
    assert fetch("hf://org/two/m-q4.gguf") == {"m-q4.gguf": WEIGHTS}


def test_token_goes_to_the_hub_and_not_to_the_host_of_large_files(
    hub: Hub, cdn: FileServer, fetch: Fetch
) -> None:
    hub.repositories["org/tiny"].token = TOKEN

    assert fetch("hf://org/tiny", TOKEN)["model.safetensors"] == WEIGHTS
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, headers in hub.requests)
    assert len(cdn.requests) == 1
    assert "authorization" not in cdn.requests[0][1]


@pytest.mark.parametrize(
    ("text", "token", "expected"),
    [
        ("hf://org/other", "", NotFoundError("no repository 'org/other', or it is private")),
        ("hf://org/private", "hf_wrong", NotFoundError("set HF_TOKEN to a token that may read")),
        ("hf://org/gated", "", PermissionDeniedError("org/gated is gated: accept its conditions")),
        ("hf://org/tiny@v7", "", NotFoundError("org/tiny has no revision 'v7'")),
        ("hf://org/tiny/missing.onnx", "", NotFoundError("there is no 'missing.onnx' at commit")),
        ("hf://org/tiny", "hf_\nx", InvalidArgumentError("HF_TOKEN has characters")),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: Hub, fetch: Fetch, text: str, token: str, expected: HeadraceError
) -> None:
    hub.repositories["org/private"] = HubRepository(files=dict(FILES), token=TOKEN)
    hub.repositories["org/gated"] = HubRepository(files=dict(FILES), is_gated=True)

    with pytest.raises(type(expected), match=re.escape(str(expected))) as raised:
        fetch(text, token)
    assert TOKEN not in str(raised.value)


def test_file_that_differs_from_its_hash_is_refused(cdn: FileServer, fetch: Fetch) -> None:
    fetch("hf://org/tiny")
    _large(cdn).body = WEIGHTS[:-1] + b"!"

    with pytest.raises(ArtifactCorruptError, match="differs from its hash"):
        fetch("hf://org/tiny")


def test_large_file_continues_after_cuts(cdn: FileServer, fetch: Fetch) -> None:
    fetch("hf://org/tiny")
    cdn.requests.clear()
    _large(cdn).cut_after = [100_000, 50_000]

    assert fetch("hf://org/tiny")["model.safetensors"] == WEIGHTS
    assert cdn.ranges() == ["", "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("path", ["a/../../passwd", "/etc/passwd", "a\\..\\b", "a//b", "a/b\n"])
def test_path_that_leaves_the_folder_is_refused(hub: Hub, fetch: Fetch, path: str) -> None:
    hub.repositories["org/tiny"].files[path] = b"x"

    with pytest.raises(ArtifactCorruptError, match="unsafe path"):
        fetch("hf://org/tiny")


def test_hub_elsewhere_needs_https(fetch: Fetch) -> None:
    with pytest.raises(InvalidArgumentError, match="only https"):
        fetch("hf://org/tiny", HF_ENDPOINT="http://hub.example")
