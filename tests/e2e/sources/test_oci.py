"""Artifacts and images of a real OCI registry, pushed by ORAS and by Google's image library."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.core import (
    ArtifactCorruptError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedModelError,
)
from headrace.core.model_uri import parse_model_uri
from headrace.sources import Downloader, open_source
from tests.oci_registries import NoRegistryError, OciRegistry, running_registry
from tests.source_servers import FileServer, Served

pytestmark = pytest.mark.e2e

real = pytest.mark.long  # Go builds the registry first
DATA = bytes(range(256)) * 5000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BCRYPT_OF_SECRET = "$2a$04$CnkdTxr/j/YswvU4dMYnJuVK9wa7NqxuI8OvXa/obrVBy83QitsHS"  # noqa: S105  # of a registry that lives for a test
Fetch = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    try:
        with running_registry(tmp_path_factory.mktemp("registry")) as running:
            yield running
    except NoRegistryError as error:
        pytest.skip(str(error))


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    def fetch(text: str, environment: dict[str, str] | None = None) -> dict[str, bytes]:
        uri = parse_model_uri(text)
        downloader = Downloader(
            source=open_source(uri, environment or {}),
            location=uri.location,
            cache=tmp_path / "cache",
            sleep=lambda _: None,
        )
        with downloader.downloaded(downloader.resolve()) as model:
            if model.is_file():
                return {model.name: model.read_bytes()}
            files = [path for path in model.rglob("*") if path.is_file()]
            return {path.relative_to(model).as_posix(): path.read_bytes() for path in files}

    return fetch


def tar_of(*entries: tuple[str, bytes | str], compressed: bool = False) -> bytes:
    """A layer; a text is the target of a symbolic link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return gzip.compress(file.getvalue()) if compressed else file.getvalue()


def layer(digest: str, size: int, media_type: str, title: str = "") -> dict[str, Any]:
    annotations = {"org.opencontainers.image.title": title} if title else {}
    return {"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations}


def manifest_of(*layers: dict[str, Any], config: str = "sha256:" + "0" * 64) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.test", "digest": config, "size": 2},
            "layers": list(layers),
        }
    ).encode()


@real
def test_files_and_directories_that_oras_pushed_arrive(
    registry: OciRegistry, fetch: Fetch, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    (folder / "vocab").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(DATA)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "vocab" / "words.txt").write_bytes(b"a\nb\n")
    registry.push_files("ml/oras:v1", folder, "model.onnx", "config.json", "vocab")

    files = fetch(f"oci://{registry.host}/ml/oras:v1")

    assert files == {"model.onnx": DATA, "config.json": b"{}", "vocab/words.txt": b"a\nb\n"}


@real
def test_image_gives_the_files_below_models(
    registry: OciRegistry, fetch: Fetch, tmp_path: Path
) -> None:
    system = tar_of(("bin/sh", "/bin/busybox"), ("etc/passwd", b"root"), ("models/old.onnx", b"1"))
    model = tar_of(("models/.wh.old.onnx", b""), ("models/model.onnx", DATA), ("models/a/b", b"2"))
    for name, data in (("1.tar", system), ("2.tar", model)):
        (tmp_path / name).write_bytes(data)
    registry.push_image("ml/image:v1", tmp_path / "1.tar", tmp_path / "2.tar")

    assert fetch(f"oci://{registry.host}/ml/image:v1") == {"model.onnx": DATA, "a/b": b"2"}


@real
def test_image_without_models_is_refused(
    registry: OciRegistry, fetch: Fetch, tmp_path: Path
) -> None:
    (tmp_path / "1.tar").write_bytes(tar_of(("etc/passwd", b"root")))
    registry.push_image("ml/system:v1", tmp_path / "1.tar")

    with pytest.raises(ArtifactCorruptError, match="an image has it in /models"):
        fetch(f"oci://{registry.host}/ml/system:v1")


@real
def test_model_of_a_kit_is_unpacked_and_its_data_sets_are_not_downloaded(
    registry: OciRegistry, fetch: Fetch
) -> None:
    kit = "application/vnd.kitops.modelkit"
    model = tar_of(("model/model.onnx", DATA), compressed=True)
    data = tar_of(("rows.csv", b"1,2"))
    layers = [
        layer(registry.push_blob("ml/kit", model), len(model), f"{kit}.model.v1.tar+gzip"),
        layer(registry.push_blob("ml/kit", data), len(data), f"{kit}.dataset.v1.tar"),
    ]
    config = registry.push_blob("ml/kit", b"{}")
    registry.push_manifest("ml/kit:v1", manifest_of(*layers, config=config), MANIFEST)

    assert fetch(f"oci://{registry.host}/ml/kit:v1") == {"model.onnx": DATA}


@real
def test_manifest_for_linux_is_chosen_of_an_index(
    registry: OciRegistry, fetch: Fetch, tmp_path: Path
) -> None:
    (tmp_path / "m.tar").write_bytes(tar_of(("models/model.onnx", DATA)))
    registry.push_image("ml/index:amd64", tmp_path / "m.tar")
    source = open_source(parse_model_uri(f"oci://{registry.host}/ml/index:amd64"), {})
    digest = source.resolve().revision.removeprefix("manifest ")
    index = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": MANIFEST, "digest": digest, "size": 1}
    platforms = [
        {"os": "unknown", "architecture": "unknown"},
        {"os": "linux", "architecture": "amd64"},
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": index,
        "manifests": [{**entry, "platform": platform} for platform in platforms],
    }
    registry.push_manifest("ml/index:v1", json.dumps(document).encode(), index)

    assert fetch(f"oci://{registry.host}/ml/index:v1") == {"model.onnx": DATA}


@real
def test_digest_selects_a_manifest_whatever_the_tag_is(
    registry: OciRegistry, fetch: Fetch, tmp_path: Path
) -> None:
    uri = f"oci://{registry.host}/ml/tags:v1"
    (tmp_path / "m.txt").write_bytes(b"first")
    registry.push_files("ml/tags:v1", tmp_path, "m.txt")
    first = open_source(parse_model_uri(uri), {}).resolve().revision.removeprefix("manifest ")
    (tmp_path / "m.txt").write_bytes(b"second")
    registry.push_files("ml/tags:v1", tmp_path, "m.txt")

    assert fetch(uri) == {"m.txt": b"second"}
    assert fetch(f"{uri}@{first}") == {"m.txt": b"first"}


@real
def test_missing_tags_and_layers_without_a_model_are_explained(
    registry: OciRegistry, fetch: Fetch
) -> None:
    config = registry.push_blob("ml/other", b"{}")
    chart = layer(config, 2, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    registry.push_manifest("ml/other:v1", manifest_of(chart, config=config), MANIFEST)

    with pytest.raises(NotFoundError, match="the registry has no 'v9'"):
        fetch(f"oci://{registry.host}/ml/other:v9")
    with pytest.raises(UnsupportedModelError, match="no layer with a model"):
        fetch(f"oci://{registry.host}/ml/other:v1")


@real
def test_login_of_docker_is_used_for_its_registry_only(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"reader:{BCRYPT_OF_SECRET}\n")
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n"
    login = base64.b64encode(b"reader:secret").decode()
    wrong = base64.b64encode(b"reader:wrong").decode()
    try:
        with running_registry(tmp_path, auth) as registry:
            uri = f"oci://{registry.host}/ml/private:v1"

            def environment(host: str, value: str) -> dict[str, str]:
                (tmp_path / "config.json").write_text(
                    json.dumps({"auths": {host: {"auth": value}}})
                )
                return {"DOCKER_CONFIG": str(tmp_path)}

            with pytest.raises(PermissionDeniedError, match="needs credentials"):
                fetch(uri)
            with pytest.raises(PermissionDeniedError, match="needs credentials"):
                fetch(uri, environment("other.example", login))
            with pytest.raises(PermissionDeniedError, match="stored credentials are refused"):
                fetch(uri, environment(registry.host, wrong))
            with pytest.raises(NotFoundError, match="has no 'v1'"):
                fetch(uri, environment(registry.host, login))
    except NoRegistryError as error:
        pytest.skip(str(error))


class StandIn(FileServer):
    """A registry that asks for an `Authorization`, if it is given one."""

    authorization = ""
    challenge = ""

    def served(self, path: str, headers: Mapping[str, str]) -> Served | None:
        if path.startswith("/token"):
            return Served(body=b'{"token": "abc"}')
        if self.authorization not in {"", headers.get("authorization")}:
            return Served(status=401, headers={"www-authenticate": self.challenge})
        return super().served(path, headers)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    with server.running():
        yield server


def _publish(server: FileServer, data: bytes, title: str = "m.onnx") -> tuple[str, str]:
    """Publish one file at `m:v1`; return its URI and the path of its blob."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest = manifest_of(layer(digest, len(data), "application/octet-stream", title))
    server.resources["/v2/m/manifests/v1"] = Served(body=manifest)
    server.resources[f"/v2/m/blobs/{digest}"] = Served(body=data)
    return f"oci://127.0.0.1:{server.port}/m:v1", f"/v2/m/blobs/{digest}"


def test_token_is_fetched_where_the_registry_says(stand_in: StandIn, fetch: Fetch) -> None:
    uri, _ = _publish(stand_in, DATA)
    stand_in.authorization = "Bearer abc"
    stand_in.challenge = (
        f'Bearer realm="{stand_in.url}/token",service="test",scope="repository:m:pull"'
    )

    assert fetch(uri) == {"m.onnx": DATA}
    requested = [path for path, _ in stand_in.requests if path.startswith("/token")]
    assert requested == ["/token?service=test&scope=repository%3Am%3Apull"]


def test_blobs_continue_after_cuts(stand_in: StandIn, fetch: Fetch) -> None:
    uri, blob = _publish(stand_in, DATA)
    stand_in.resources[blob].cut_after = [1000, 5]

    assert fetch(uri) == {"m.onnx": DATA}
    ranges = [headers.get("range", "") for path, headers in stand_in.requests if path == blob]
    assert ranges == ["", "bytes=1000-", "bytes=1005-"]


@pytest.mark.parametrize("title", ["../m.onnx", "/m.onnx", "a/../../m.onnx"])
def test_file_name_that_leaves_the_folder_is_refused(
    stand_in: StandIn, fetch: Fetch, title: str
) -> None:
    uri, _ = _publish(stand_in, DATA, title)

    with pytest.raises(ArtifactCorruptError, match="unsafe path"):
        fetch(uri)


def test_blob_and_manifest_that_differ_from_their_digests_are_refused(
    stand_in: StandIn, fetch: Fetch
) -> None:
    uri, blob = _publish(stand_in, DATA)
    stand_in.resources[blob].body = DATA[::-1]
    with pytest.raises(ArtifactCorruptError, match="differs from its hash"):
        fetch(uri)

    pin = "sha256:" + "0" * 64
    stand_in.resources[f"/v2/m/manifests/{pin}"] = stand_in.resources["/v2/m/manifests/v1"]
    with pytest.raises(ArtifactCorruptError, match=f"for {pin}"):
        fetch(f"{uri}@{pin}")


def test_login_does_not_follow_a_redirect_to_another_host(
    stand_in: StandIn, fetch: Fetch, tmp_path: Path
) -> None:
    uri, blob = _publish(stand_in, DATA)
    login = base64.b64encode(b"reader:secret").decode()
    config = {"auths": {f"127.0.0.1:{stand_in.port}": {"auth": login}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with FileServer().running() as storage:
        storage.resources["/blob"] = stand_in.resources[blob]
        moved = Served(status=307, headers={"location": f"{storage.url}/blob"})
        stand_in.resources[blob] = moved
        stand_in.authorization, stand_in.challenge = f"Basic {login}", 'Basic realm="test"'

        assert fetch(uri, {"DOCKER_CONFIG": str(tmp_path)}) == {"m.onnx": DATA}
        assert len(storage.requests) == 1
        assert "authorization" not in storage.requests[0][1]
