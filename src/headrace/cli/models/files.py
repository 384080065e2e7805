"""Model files: fetched, converted and signed.

Models are converted on this machine, whose libraries trained the model, even for a remote control
plane: only the result is sent.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from headrace.cli.base.connection import actor
from headrace.cli.base.model_store import model_store
from headrace.cli.base.offline import Pushed, home_registry, watched_store
from headrace.cli.base.options import (
    Artifacts,
    ControlPlaneOptions,
    Json,
    argument,
    file_option,
    option,
    setting,
)
from headrace.cli.base.output import progress, say, show_answer, write_json
from headrace.cli.base.read_inputs import read_inputs, with_batch_axis
from headrace.cli.base.tables import read_tensors
from headrace.control.local.sandbox import Sandbox
from headrace.control.sandboxed.convert import converted_model, source_signature
from headrace.core import (
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    check_inputs,
)
from headrace.core.text import bytes_text
from headrace.optimize.convert.process import ConvertRequest
from headrace.optimize.sources import source_runtime
from headrace.registry import ModelVersion, VersionSignature, read_content


def fetch(
    reference: Annotated[str, argument("Model version.", metavar="NAME:VERSION|sha256:DIGEST")],
    *,
    artifacts: Annotated[
        str,
        setting(
            "Artifact store: s3://BUCKET/PREFIX, gs://, az:// or file:///PATH; credentials come "
            "from the environment.",
            metavar="URL",
            shown="required without --from",
        ),
    ] = "",
    source: Annotated[
        Path | None,
        option(
            "Check the model in this file or directory instead; needs a digest.",
            "--from",
            metavar="PATH",
            shown="download it",
        ),
    ] = None,
    output: Annotated[Path, option("Target directory.", file_okay=False, shown=".")] = Path(),
    timeout_s: Annotated[float, option("Timeout in seconds.", min=1.0)] = 600.0,
    json: Json = False,
) -> None:
    """Fetch a model from a shared store and verify its content; needs no home or registry.

    The model is put in place atomically. Identical content is not fetched again. Exit status 1 if
    the model is missing or damaged in the store; 3 if the store does not answer in time.

    For example:

        headrace models fetch fraud:3 --artifacts s3://models/prod --output /models
    """
    from headrace.registry.fetch import check_model, check_reference, fetch_model
    from headrace.registry.shared import RETRY_S, check_artifacts_url

    if source is not None:
        checked = check_model(reference, source)
        show_answer(checked, f"{checked.path} has digest {checked.digest}", json=json)
        return
    if not artifacts:
        raise typer.BadParameter("pass the store's URL, or --from", param_hint="--artifacts")
    for parameter_hint, check, text in (
        ("NAME:VERSION", check_reference, reference),
        ("--artifacts", check_artifacts_url, artifacts),
    ):
        try:
            check(text)
        except InvalidArgumentError as error:
            raise typer.BadParameter(str(error), param_hint=parameter_hint) from None

    # The last request may be retried for eight times that long.
    shared = watched_store(artifacts, retry_s=min(RETRY_S, timeout_s / 8))
    deadline = time.monotonic() + timeout_s
    fetched = fetch_model(shared, reference, output, deadline=deadline)
    description = "is there" if fetched.is_new else "was there already"
    line = f"{fetched.path} {description} ({bytes_text(fetched.size_bytes)}, {fetched.digest})"
    show_answer(fetched, line, json=json)


class ConvertTo(StrEnum):
    """Target format of a conversion."""

    ONNX = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """Options of a conversion, and how its result is compared with the original."""

    convert: Annotated[
        ConvertTo | None,
        option(
            "Convert the model first and compare its answers with the original library; "
            "supports XGBoost, LightGBM, CatBoost, scikit-learn, PyTorch, TensorFlow and TFLite.",
            shown="no",
        ),
    ] = None
    convert_data: Annotated[
        Path | None,
        file_option(
            "Rows (.parquet, .csv, .npz, .npy, .json) for the comparison, in addition to "
            "generated rows."
        ),
    ] = None
    convert_tolerance: Annotated[
        float | None,
        option(
            "Maximum relative difference of an answer.",
            min=0.0,
            shown="1e-4 for a library that computes in FP32, 1e-6 for FP64",
        ),
    ] = None
    convert_max_changed: Annotated[
        float, option("Maximum share of rows whose class may change.", min=0.0, max=1.0)
    ] = 0.001
    convert_no_missing: Annotated[
        bool,
        option(
            "Rows never have missing values: skip the comparison of missing values.",
            "--convert-no-missing",
        ),
    ] = False


@contextmanager
def converted(pushed: Pushed, conversion: ConversionOptions, home: Path) -> Iterator[Pushed]:
    """Yield the ONNX model converted from `pushed`; its file is deleted afterwards.

    Args:
        home: Directory that is hidden from the converted model.

    Raises:
        HeadraceError: The model cannot be converted, or its outputs differ too much.
    """
    path = pushed.path.absolute()
    runtime = source_runtime(path, pushed.runtime)
    request = ConvertRequest(
        path=str(path),
        runtime=runtime,
        allow_code=pushed.allow_code,
        tolerance=conversion.convert_tolerance,
        max_changed_ratio=conversion.convert_max_changed,
        no_missing=conversion.convert_no_missing,
    )
    digest = read_content(path).digest
    sandbox = Sandbox.of_home(home)
    with ExitStack() as stack:
        with progress(f"converting {pushed.path} and comparing"):
            rows = None
            if conversion.convert_data is not None:
                signature = source_signature(sandbox, request)
                rows = _rows_of(conversion.convert_data, signature)
            filename = f"{path.stem or 'model'}.onnx"
            artifact, report = stack.enter_context(
                converted_model(sandbox, request, filename=filename, rows=rows)
            )
        yield Pushed(
            path=artifact,
            runtime="onnx",
            source=pushed.source or str(path),
            metadata={
                # Under other names: a converted model is not the content of its URI.
                **{f"converted_{key}": value for key, value in pushed.metadata.items()},
                **report.metadata(digest=digest, runtime=runtime, filename=path.name),
            },
        )


def difference_text(metadata: Mapping[str, str]) -> str:
    """Return a summary of the comparison and its largest difference."""
    by = f"converted by {metadata['converter']}, computes in {metadata['converter_computes']}"
    beside = metadata.get("differs_beside_thresholds")
    fine = (
        f"; {beside} rows change their answer because FP32 rounds a value to a threshold"
        if beside
        else ""
    )
    if metadata["tested_on_data"] == "no":
        return (
            f"{by}: not tested on your data (use --convert-data FILE); on "
            f"{metadata['compared_inputs']} answers are within the tolerance of "
            f"{metadata['tolerance']}{fine}"
        )
    return (
        f"{by}: on {metadata['tested_on_data']} answers differ by up to "
        f"{metadata['largest_relative_difference']} of their value "
        f"({metadata['largest_absolute_difference']} absolute), "
        f"{float(metadata['changed_class_ratio']):.2%} of the rows get another class{fine}"
    )


def _rows_of(file: Path, signature: ModelSignature) -> Tensors:
    """Return the rows of a file, as the model takes them.

    Raises:
        InvalidArgumentError: The rows do not fit the model.
    """
    read: Mapping[str, object]
    if file.suffix.lower() == ".json":
        read = with_batch_axis(read_inputs(file.read_bytes(), signature), signature)
    else:
        read, _ = read_tensors(file, signature)
    rows: Tensors = {}
    for spec in signature.inputs:
        if spec.datatype is Datatype.BYTES:
            msg = f"input '{spec.name}' takes text; only numeric rows can be compared"
            raise InvalidArgumentError(msg)
        if spec.name not in read:
            raise InvalidArgumentError(f"{file} has no values for the input '{spec.name}'")
        try:
            array = np.asarray(read[spec.name]).astype(spec.datatype.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            msg = f"{file}: input '{spec.name}' takes {spec.datatype}: {error}"
            raise InvalidArgumentError(msg) from None
        rows[spec.name] = np.ascontiguousarray(array)
    try:
        check_inputs(file.name, signature, rows)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{file} does not fit the model: {error}") from error
    return rows


def numbered(reference: str) -> tuple[str, str]:
    """Return name and number of `NAME:VERSION`; typer.BadParameter without a number."""
    name, _, number = reference.partition(":")
    if not number:
        msg = f"'{reference}' has no version number; write it as {name}:VERSION"
        raise typer.BadParameter(msg, param_hint="NAME:VERSION")
    return name, number


def keygen(
    out: Annotated[
        Path, option("Output directory of the two key files.", file_okay=False)
    ] = Path(),
) -> None:
    """Create a key pair to sign model versions (Ed25519).

    The private key, model-signing.pem, is readable by its owner only. Add the public key to
    `security.trusted_keys` of systems that trust your signatures.

    For example:

        headrace models keygen --out keys
    """
    from headrace.registry.signing import make_key, read_public_keys, write_keys

    private, public = write_keys(out, make_key())
    say(
        f"{private} is the private key, keep it secret; {public} is the public "
        "key, for `security.trusted_keys` in the spec"
    )
    say(f"key id: {read_public_keys(public)[0].id}")


def sign(
    reference: Annotated[str, argument("Model version.", metavar="NAME:VERSION")],
    *,
    key: Annotated[Path, option("Private key, PEM.", dir_okay=False)],
    content: Annotated[
        Path | None,
        option(
            "Your copy of the model; the command fails if the stored content differs.", exists=True
        ),
    ] = None,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Sign a version: its name, number, content, runtime, tensors and class names.

    The key stays on this machine. With a remote server, the version that the server reports is
    signed; compare it with your own copy by --content.

    For example:

        headrace models sign fraud:3 --key keys/model-signing.pem --content fraud.onnx
    """
    from headrace.registry.signing import key_of, read_private_key
    from headrace.registry.signing import sign as sign_version

    numbered(reference)
    private = read_private_key(key)
    target = plane.target()
    store = model_store(target, artifacts=artifacts)
    version = msgspec.convert(store.get(reference), ModelVersion)
    if not target.is_remote:
        home_registry(plane.home, artifacts=artifacts).verify(version)
    if content is not None and (digest := read_content(content).digest) != version.digest:
        msg = (
            f"{content} has digest {digest}, but {reference} is {version.digest}; nothing is signed"
        )
        raise InvalidArgumentError(msg)
    signature = sign_version(version, private, signed_at=time.time(), by=actor())  # noqa: TID251  # what is told, not decided by
    store.add_signature(version, signature)
    if json:
        write_json(signature)
    say(f"{reference} is signed by {key_of(signature).id}")


def verify(
    reference: Annotated[str, argument("Model version.", metavar="NAME[:VERSION]")],
    *,
    trusted: Annotated[list[Path], option("Public keys, PEM; may be repeated.", dir_okay=False)],
    artifacts: Artifacts = "",
    plane: ControlPlaneOptions,
) -> None:
    """Verify a version's signature with trusted keys; exit status 1 if it is not valid.

    Without a number, the newest version is verified. In a local home, the content is also compared
    with the digest; a remote server does this when it serves the version.

    For example:

        headrace models verify fraud:3 --trusted keys/model-signing.pub.pem
    """
    from headrace.registry.signing import check_signed, key_of, read_public_keys

    keys = [key for path in trusted for key in read_public_keys(path)]
    target = plane.target()
    document = model_store(target, artifacts=artifacts).get(reference)
    version = msgspec.convert(document, ModelVersion)
    if not target.is_remote:
        home_registry(plane.home, artifacts=artifacts).verify(version)
    signatures = msgspec.convert(document["signatures"], list[VersionSignature])
    signature = check_signed(version, signatures, keys)
    say(f"{version.reference} is what {key_of(signature).id} signed ({signed_text(signature)})")


def signed_text(signature: VersionSignature) -> str:
    """Return a signature on one line: key, time and signer."""
    from headrace.registry.signing import key_of

    try:
        key = key_of(signature).id
    except InvalidArgumentError:
        return "by a damaged key"
    signed_at = datetime.fromtimestamp(signature.signed_at, UTC)
    return f"by {key}, {signed_at:%Y-%m-%d %H:%M} UTC, {signature.by or '?'}"
