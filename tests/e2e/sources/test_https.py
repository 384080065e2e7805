"""Files of an HTTPS server with the faults of real ones."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from headrace.core import (
    ArtifactCorruptError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from headrace.core.model_uri import parse_model_uri
from headrace.sources import Downloader, DownloadLimits, open_source
from tests.source_servers import FileServer, Served

pytestmark = pytest.mark.e2e

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 17)
Download = Callable[..., bytes]


@pytest.fixture
def download(server: FileServer, tmp_path: Path) -> Download:
    def download(path: str = "/m.onnx", *, keep: bool = False, **limits: float) -> bytes:
        uri = parse_model_uri(f"{server.url}{path}")
        downloader = Downloader(
            source=open_source(uri, {}),
            location=uri.location,
            cache=tmp_path / "cache",
            limits=DownloadLimits(**limits),  # type: ignore[arg-type]  # numbers of both kinds
            sleep=lambda _: None,
        )
        with downloader.downloaded(downloader.resolve()) as model:
            data = model.read_bytes()
            if keep:
                raise InvalidArgumentError("the model is not stored")
        return data

    return download


def test_file_is_downloaded_and_leaves_nothing_in_the_cache(
    server: FileServer, download: Download, tmp_path: Path
) -> None:
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"')

    assert download() == DATA
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


def test_cut_connections_continue_where_they_stopped(
    server: FileServer, download: Download
) -> None:
    cuts = [MIB, 100, 0, MIB // 2]
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"', cut_after=list(cuts))

    assert download() == DATA
    starts = [f"bytes={sum(cuts[:i])}-" for i in (1, 2, 3, 4)]
    assert server.ranges() == ["bytes=0-0", "", *starts]
    assert all(headers["if-range"] == '"1"' for _, headers in server.requests[2:])


def test_next_command_continues_a_download_that_failed(
    server: FileServer, download: Download
) -> None:
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"', cut_after=[MIB, 0, 0])
    with pytest.raises(UnavailableError, match="are kept, run the command again to continue"):
        download(attempts=2)
    server.resources["/m.onnx"].cut_after.clear()

    assert download() == DATA
    assert server.ranges()[-1] == f"bytes={MIB}-"


def test_part_of_other_content_is_not_continued(server: FileServer, download: Download) -> None:
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"', cut_after=[MIB, 0])
    with pytest.raises(UnavailableError):
        download(attempts=2)
    server.resources["/m.onnx"] = Served(body=DATA[::-1], etag='"2"')

    assert download() == DATA[::-1]


def test_content_that_changes_during_the_download_is_refused(
    server: FileServer, download: Download
) -> None:
    resource = Served(body=DATA, etag='"1"', cut_after=[MIB])
    server.resources["/m.onnx"] = resource

    class Changing(list[int]):
        def pop(self, _index: int = -1) -> int:  # type: ignore[override]  # as `Served` calls it
            resource.etag, resource.body, resource.cut_after = '"2"', DATA[::-1], []
            return MIB

    resource.cut_after = Changing([MIB])

    with pytest.raises(FailedPreconditionError, match="changed during the download"):
        download()


def test_server_without_ranges_sends_the_file_again(server: FileServer, download: Download) -> None:
    # The first cut is of the look-up, whose body is not read.
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"', ranges=False, cut_after=[10, MIB])

    assert download() == DATA


def test_file_without_an_entity_tag_starts_again_after_a_cut(
    server: FileServer, download: Download
) -> None:
    server.resources["/m.onnx"] = Served(body=DATA, cut_after=[MIB])

    assert download() == DATA
    assert server.ranges() == ["bytes=0-0", "", ""]


def test_downloaded_file_of_a_model_that_was_not_stored_is_not_fetched_again(
    server: FileServer, download: Download
) -> None:
    server.resources["/m.onnx"] = Served(body=DATA, etag='"1"')
    with pytest.raises(InvalidArgumentError, match="not stored"):
        download(keep=True)
    count = len(server.requests)

    assert download() == DATA
    assert len(server.requests) == count + 1, "only the look-up"


@pytest.mark.parametrize(
    ("served", "error", "message"),
    [
        (Served(status=404), NotFoundError, "answers 404"),
        (Served(status=403), PermissionDeniedError, "answers 403"),
        (Served(status=503), UnavailableError, "answers 503"),
        (Served(status=418), FailedPreconditionError, "answers 418"),
        (Served(body=b""), ArtifactCorruptError, "is empty"),
        (
            Served(body=DATA, headers={"content-encoding": "gzip"}),
            FailedPreconditionError,
            "sent compressed",
        ),
        (Served(body=DATA, declared=1 << 50, ranges=False), InvalidArgumentError, "larger than"),
        (
            Served(status=302, headers={"location": "/m.onnx"}),
            FailedPreconditionError,
            "more than 10 redirects",
        ),
        (
            Served(status=302, headers={"location": "http://example.invalid/m.onnx"}),
            InvalidArgumentError,
            "only https",
        ),
        (
            Served(status=302, headers={"location": "file:///etc/passwd"}),
            InvalidArgumentError,
            "only https",
        ),
        (
            Served(status=302, headers={"location": "https://169.254.169.254/latest/meta-data"}),
            InvalidArgumentError,
            "not fetched from 169.254.169.254",
        ),
        (
            Served(status=302, headers={"location": "https://[::ffff:169.254.169.254]/x"}),
            InvalidArgumentError,
            "not fetched from 169.254.169.254",
        ),
        (
            Served(status=302, headers={"location": "https://[fd00:ec2::254]/x"}),
            InvalidArgumentError,
            "not fetched from fd00:ec2::254",
        ),
    ],
)
def test_response_that_is_no_model_is_refused_with_its_reason(
    server: FileServer,
    download: Download,
    served: Served,
    error: type[HeadraceError],
    message: str,
) -> None:
    server.resources["/m.onnx"] = served

    with pytest.raises(error, match=message):
        download(attempts=2)


def test_secret_of_a_signed_link_is_in_no_message(server: FileServer, download: Download) -> None:
    server.resources["/m.onnx?X-Amz-Signature=geheim"] = Served(status=403)

    with pytest.raises(PermissionDeniedError) as raised:
        download("/m.onnx?X-Amz-Signature=geheim")
    assert "geheim" not in str(raised.value)
    assert server.requests[0][0].endswith("geheim")


def test_transient_errors_are_tried_again(server: FileServer, download: Download) -> None:
    states = [Served(status=503), Served(status=429, headers={"retry-after": "1"})]

    class Recovering(dict[str, Served]):
        def get(self, key: str, default: object = None) -> Served:
            del key, default
            return states.pop(0) if states else Served(body=DATA, etag='"1"')

    server.resources = Recovering()

    assert download() == DATA


def test_slow_server_counts_as_unavailable(server: FileServer, download: Download) -> None:
    server.resources["/m.onnx"] = Served(body=bytes(2000), etag='"1"', pause_s=0.05)

    with pytest.raises(UnavailableError, match="bytes per second"):
        download(attempts=1, window_s=0.2, min_bytes_per_s=1 << 20)


def test_server_that_sends_more_than_announced_is_refused(
    server: FileServer, download: Download
) -> None:
    chunk = b"%x\r\n%s\r\n" % (1000, bytes(1000))
    body = chunk * 5 + b"0\r\n\r\n"
    server.resources["/m.onnx"] = Served(
        body=body, ranges=False, headers={"transfer-encoding": "chunked"}
    )

    with pytest.raises(InvalidArgumentError, match="larger than the limit"):
        download(max_bytes=3000)
    assert download() == bytes(5000)


def test_untrusted_certificate_is_refused(
    server: FileServer, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["/m.onnx"] = Served(body=DATA)
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(UnavailableError, match="certificate"):
        download(attempts=1)


def _tar(*entries: tuple[str, bytes], mode: Literal["w", "w:gz"] = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "mode"), [("m.tar.gz", "w:gz"), ("m.tgz", "w:gz"), ("m.tar", "w")]
)
def test_archive_with_one_file_is_that_file(
    server: FileServer, download: Download, name: str, mode: Literal["w", "w:gz"]
) -> None:
    server.resources[f"/{name}"] = Served(body=_tar(("folder/m.onnx", DATA), mode=mode))

    assert download(f"/{name}") == DATA


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_tar(("../m.onnx", b"x")), "leads out"),
        (_tar(("/etc/m.onnx", b"x")), "absolute path"),
        (_tar(("m.onnx", DATA))[:-4000], "cannot be unpacked"),
        (b"no archive" * 200, "cannot be unpacked"),
        (_tar(("a", b"1"), ("a/b", b"2")), "cannot be unpacked"),
    ],
    ids=["above", "absolute", "cut", "no archive", "file as a directory"],
)
def test_archive_that_leaves_its_folder_or_is_damaged_is_refused(
    server: FileServer, download: Download, body: bytes, message: str
) -> None:
    server.resources["/m.tar.gz"] = Served(body=body)

    with pytest.raises(ArtifactCorruptError, match=message):
        download("/m.tar.gz")


def test_archive_that_unpacks_to_more_than_the_limit_is_refused(
    server: FileServer, download: Download
) -> None:
    server.resources["/m.tar.gz"] = Served(body=_tar(("m.onnx", bytes(50 * MIB))))

    with pytest.raises(ArtifactCorruptError, match="exceeds the limit"):
        download("/m.tar.gz", max_bytes=10 * MIB)
