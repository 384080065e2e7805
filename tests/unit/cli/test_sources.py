"""URIs of a spec become versions of the registry."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from headrace.cli.base.offline import Pushed
from headrace.cli.base.sources import uris_in, with_pushed_models
from headrace.core import ArtifactCorruptError, CodeNotAllowedError
from headrace.registry import read_content

if TYPE_CHECKING:
    from headrace.cli.base.model_store import ModelStore


@dataclass
class MemoryStore:
    """Versions by name; `runs_code` is of every version."""

    runs_code: bool = False
    pushes: list[tuple[str, Pushed]] = field(default_factory=list)
    versions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def list(self, name: str | None) -> dict[str, Any]:
        return {"models": self.versions.get(name or "", [])}

    def push(self, name: str, pushed: Pushed) -> dict[str, Any]:
        self.pushes.append((name, pushed))
        listed = self.versions.setdefault(name, [])
        version = {
            "reference": f"{name}:{len(listed) + 1}",
            "digest": read_content(pushed.path).digest,
            "runtime": pushed.runtime or "onnx",
            "runs_code": self.runs_code,
            "source": pushed.source,
            "metadata": dict(pushed.metadata),
        }
        listed.append(version)
        return version


def replaced(document: dict[str, Any], store: MemoryStore, home: Path) -> dict[str, Any]:
    return with_pushed_models(document, lambda: cast("ModelStore", store), home=home)


def test_every_uri_becomes_a_version_of_a_model_named_like_its_owner(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    uri = f"file://{tmp_path}/m.onnx"
    document: dict[str, Any] = {
        "version": 1,
        "endpoints": [
            {"name": "a", "model": uri, "runtime": "onnx", "allow_code": True},
            {"name": "b", "versions": [{"model": uri, "weight": 90}, {"model": "x:1"}]},
            {"name": "c", "model": "/srv/c.onnx"},
            {"name": "d", "upstream": {"url": "http://d"}},
        ],
        "streams": [{"name": "s", "model": uri}],
        "jobs": [{"name": "j", "model": uri}],
    }
    store = MemoryStore()

    result = replaced(document, store, tmp_path)

    assert uris_in(document) == [uri] * 4
    assert uris_in(result) == []
    assert result["endpoints"][0]["model"] == "a:1"
    assert result["endpoints"][1]["versions"] == [
        {"model": "b:1", "weight": 90},
        {"model": "x:1"},
    ]
    assert result["endpoints"][2:] == document["endpoints"][2:]
    assert (result["streams"][0]["model"], result["jobs"][0]["model"]) == ("s:1", "j:1")
    name, pushed = store.pushes[0]
    assert (name, pushed.runtime, pushed.allow_code) == ("a", "onnx", True)
    assert [name for name, _ in store.pushes] == ["a", "b", "s", "j"]


def test_document_without_uris_does_not_change(tmp_path: Path) -> None:
    document = {"version": 1, "endpoints": [{"name": "a", "model": "a:1"}]}

    assert replaced(document, MemoryStore(), tmp_path) == document


def test_pinned_content_is_pushed_once_and_other_content_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    pin = read_content(tmp_path / "m.onnx").digest.removeprefix("sha256:")
    document = {"endpoints": [{"name": "a", "model": f"file://{tmp_path}/m.onnx#sha256={pin}"}]}
    store = MemoryStore()

    first = replaced(document, store, tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"other")

    assert replaced(document, store, tmp_path) == first
    assert len(store.pushes) == 1
    with pytest.raises(ArtifactCorruptError, match=f"not {pin}"):
        replaced(document, MemoryStore(), tmp_path)


def test_stored_code_needs_the_permission_too(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_bytes(b"code")
    pin = read_content(tmp_path / "m.py").digest.removeprefix("sha256:")
    entry = {"name": "a", "model": f"file://{tmp_path}/m.py#sha256={pin}"}
    store = MemoryStore(runs_code=True)
    replaced({"endpoints": [{**entry, "allow_code": True}]}, store, tmp_path)

    with pytest.raises(CodeNotAllowedError):
        replaced({"endpoints": [entry]}, store, tmp_path)
