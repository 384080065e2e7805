import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.core import NAME_PATTERN, InvalidArgumentError
from headrace.core.model_uri import ModelUri, UriScheme, is_model_uri, parse_model_uri

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected", "model_name", "filename"),
    [
        (
            "s3://models/fraud/v3/model.onnx",
            ModelUri(scheme=UriScheme.S3, host="models", path="fraud/v3/model.onnx"),
            "fraud",
            "model.onnx",
        ),
        (
            "gs://models/fraud-2.1/",
            ModelUri(scheme=UriScheme.GS, host="models", path="fraud-2.1"),
            "fraud-2.1",
            "fraud-2.1",
        ),
        (
            f"az://c/a/b.ubj#sha256={HEX}",
            ModelUri(scheme=UriScheme.AZ, host="c", path="a/b.ubj", sha256=HEX),
            "b",
            "b.ubj",
        ),
        (
            "https://example.org:8443/files/My%20model.onnx?token=1",
            ModelUri(
                scheme=UriScheme.HTTPS,
                host="example.org:8443",
                path="files/My%20model.onnx",
                query="token=1",
            ),
            "My-model",
            "My model.onnx",
        ),
        (
            "file:///srv/models/a%20b.onnx",
            ModelUri(scheme=UriScheme.FILE, path="srv/models/a b.onnx"),
            "a-b",
            "a b.onnx",
        ),
        (
            "models:/fraud/3",
            ModelUri(scheme=UriScheme.MODELS, path="fraud/3"),
            "fraud",
            "3",
        ),
        (
            "models:/main.risk.fraud@champion",
            ModelUri(scheme=UriScheme.MODELS, path="main.risk.fraud@champion"),
            "main.risk.fraud",
            "main.risk.fraud@champion",
        ),
        (
            f"runs:/{HEX[:32]}/model#sha256={HEX}",
            ModelUri(scheme=UriScheme.RUNS, path=f"{HEX[:32]}/model", sha256=HEX),
            HEX[:32],
            "model",
        ),
        (
            "hf://Qwen/Qwen2.5-0.5B",
            ModelUri(scheme=UriScheme.HF, host="Qwen", path="Qwen2.5-0.5B"),
            "Qwen2.5-0.5B",
            "Qwen2.5-0.5B",
        ),
        (
            "hf://Org/name@refs%2Fpr%2F1/onnx/model.onnx",
            ModelUri(
                scheme=UriScheme.HF,
                host="Org",
                path="name",
                revision="refs/pr/1",
                inside="onnx/model.onnx",
            ),
            "name",
            "model.onnx",
        ),
        (
            f"oci://localhost:5000/ml/digits:v1@sha256:{HEX}",
            ModelUri(
                scheme=UriScheme.OCI,
                host="localhost:5000",
                path="ml/digits",
                revision="v1",
                manifest=f"sha256:{HEX}",
            ),
            "digits",
            "digits",
        ),
    ],
)
def test_uri_has_its_parts_and_names(
    text: str, expected: ModelUri, model_name: str, filename: str
) -> None:
    parsed = parse_model_uri(text)

    assert parsed == expected
    assert (parsed.model_name, parsed.filename) == (model_name, filename)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a", "is not a URI of s3://, gs://"),
        ("http://host/a", "is not a URI of"),
        ("s3://key:secret@bucket/a", "must not hold credentials"),
        ("https://user:secret@host/a", "must not hold credentials"),
        ("s3://bucket", "needs the key of a model"),
        ("s3://bucket/a/../b", "needs the key of a model"),
        ("s3://bucket/a?versionId=1", "has no '?'"),
        ("s3://bucket/a#md5=1", "only sha256="),
        (f"s3://bucket/a#sha256={HEX[:-1]}", "only sha256="),
        ("s3://bucket/a b", "no spaces"),
        ("https:///a", "names no host"),
        ("file://host/a", "absolute, after three slashes"),
        ("file:///", "names no file"),
        ("hf://bert-base-uncased", "is not hf://ORG/NAME"),
        ("hf://org/../x", "is not hf://ORG/NAME"),
        ("hf://org/name@", "a branch, a tag or a commit"),
        ("hf://org/name@a%2F..%2Fb", "a branch, a tag or a commit"),
        ("hf://org/name/../../etc", "is not a path in the repository"),
        ("oci://ghcr.io/Org/name", "is not oci://REGISTRY/REPOSITORY"),
        ("oci://ghcr.io/org/name:", "is not a tag"),
        ("oci://ghcr.io/org/name@sha256:12", "64 hexadecimal digits"),
        ("models:/fraud", "is not models:/NAME/VERSION"),
        ("models:/fraud/Production", "is not models:/NAME/VERSION"),
        ("models://host/fraud/1", "is not models:/NAME/VERSION"),
        ("runs:/1234", "is not runs:/RUN_ID/PATH"),
        ("runs:/1234/../5678", "is not runs:/RUN_ID/PATH"),
        ("s3://" + "a" * 5000, "at most 4096"),
    ],
)
def test_wrong_uri_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)) as raised:
        parse_model_uri(text)

    assert "secret" not in str(raised.value)


_SEGMENT = st.text(string.ascii_letters + string.digits + "_.-~ äü%+", min_size=1, max_size=12)
_WORD = st.text(string.ascii_lowercase + string.digits, min_size=2, max_size=12)


@st.composite
def uris(draw: st.DrawFn) -> str:
    pin = draw(st.sampled_from(["", f"#sha256={HEX}"]))
    path = "/".join(draw(st.lists(_SEGMENT, min_size=1, max_size=4)))
    assume(not any(part in {".", ".."} for part in path.split("/")))
    match draw(st.sampled_from(list(UriScheme))):
        case UriScheme.HF:
            revision = draw(st.sampled_from(["", "@main", "@refs%2Fpr%2F7"]))
            inside = draw(st.sampled_from(["", f"/{draw(_WORD)}.onnx"]))
            return f"hf://{draw(_WORD)}/{draw(_WORD)}{revision}{inside}{pin}"
        case UriScheme.OCI:
            tag = draw(st.sampled_from(["", ":v1", ":latest"]))
            manifest = draw(st.sampled_from(["", f"@sha256:{HEX}"]))
            return (
                f"oci://{draw(_WORD)}.example:5000/{draw(_WORD)}/{draw(_WORD)}{tag}{manifest}{pin}"
            )
        case UriScheme.FILE:
            return f"file:///{path}{pin}"
        case UriScheme.MODELS:
            return f"models:/{draw(_WORD)}{draw(st.sampled_from(['/7', '@champion']))}{pin}"
        case UriScheme.RUNS:
            return f"runs:/{draw(_WORD)}/{path}{pin}"
        case scheme:
            return f"{scheme}://{draw(_WORD)}/{path}{pin}"


@given(uris())
def test_text_of_a_uri_names_the_same_location(text: str) -> None:
    try:
        uri = parse_model_uri(text)
    except InvalidArgumentError:
        assume(False)  # noqa: FBT003  # Hypothesis's own signature
        raise

    assert is_model_uri(str(uri))
    assert parse_model_uri(str(uri)) == uri
    assert re.fullmatch(NAME_PATTERN, uri.model_name)
    assert "/" not in uri.filename
    assert not uri.filename.startswith(".")


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9]{2,5}://[\x20-\x7e]{0,60}"))
def test_any_text_is_a_uri_or_refused_as_an_argument(text: str) -> None:
    try:
        uri = parse_model_uri(text)
    except InvalidArgumentError:
        return
    assert is_model_uri(text)
    assert parse_model_uri(str(uri)).location == uri.location


@pytest.mark.parametrize("text", ["/srv/a.onnx", "models/a.onnx", "a.onnx", "fraud:3", "C:/a"])
def test_paths_and_references_are_no_uris(text: str) -> None:
    assert not is_model_uri(text)
