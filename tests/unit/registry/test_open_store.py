from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError
from obstore.store import AzureStore, GCSStore, S3Store

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.registry import check_artifacts_url, open_shared
from headrace.registry.shared import _config


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("s3://models", "s3://models"),
        ("s3://models/", "s3://models"),
        ("s3://models/team/prod/", "s3://models/team/prod"),
        ("gs://models/prod", "gs://models/prod"),
        ("az://container/prod", "az://container/prod"),
        ("file:///srv/models/", "file:///srv/models"),
    ],
)
def test_a_url_is_taken_without_its_last_slash(url: str, clean: str) -> None:
    assert check_artifacts_url(url) == clean


@pytest.mark.parametrize(
    "url",
    [
        "",
        "models",
        "/srv/models",
        "file://host/srv",
        "file:///",
        "http://models/prod",
        "s3:///prod",
        "s3://b",
        "s3://models/a//b",
        "s3://models/../b",
        "s3://models/a\nb",
        "s3://[models",
        "memory:///",
    ],
)
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="use s3://BUCKET/PREFIX"):
        check_artifacts_url(url)


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@models/x", "s3://models/x?secret=SECRET", "s3://models#SECRET"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="in the environment") as caught:
        open_shared(url)

    assert "SECRET" not in str(caught.value)


def test_variables_for_the_store_alone_come_before_everybodys() -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "everybody",
        "HEADRACE_ARTIFACTS_AWS_ACCESS_KEY_ID": "mine",
        "AWS_REGION": "eu-central-1",
        "GOOGLE_SERVICE_ACCOUNT": "other",
    }

    assert _config("s3", environment) == {
        "aws_access_key_id": "mine",
        "aws_region": "eu-central-1",
    }


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("open sesame\n")

    found = _config("s3", {"AWS_SECRET_ACCESS_KEY": f"file:{secret}"})

    assert "open sesame" in found.values()
    assert not [value for value in found.values() if value.startswith("file:")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": f"file:{tmp_path}/none"}

    with pytest.raises(FailedPreconditionError, match=rf"AWS_SECRET_ACCESS_KEY.*{tmp_path}/none"):
        open_shared("s3://models/x", environment=environment)


@pytest.mark.parametrize("url", ["s3://models/x", "gs://models/x", "az://models/x"])
def test_every_kind_opens_with_what_its_environment_may_say(url: str, tmp_path: Path) -> None:
    account = tmp_path / "account.json"
    account.write_text(
        '{"gcs_base_url": "http://localhost:1", "disable_oauth": true, '
        '"client_email": "", "private_key": "", "private_key_id": ""}'
    )
    environment = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "GOOGLE_SERVICE_ACCOUNT": str(account),
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
        "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1",
    }

    assert open_shared(url, environment=environment).where == url


@pytest.mark.parametrize(
    "name",
    [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_SSE_KMS_KEY_ID",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_TENANT_ID",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_FEDERATED_TOKEN_FILE",
    ],
)
def test_every_variable_is_one_that_the_library_knows(name: str) -> None:
    scheme = {"AW": "s3", "GO": "gs", "AZ": "az"}[name[:2]]
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    config = _config(scheme, {name: "x", "AZURE_STORAGE_ACCOUNT_NAME": "a"})

    with suppress(GenericError):  # "x" is no key; an unknown name is another error
        kind.from_url(f"{scheme}://models/x", config=config)
