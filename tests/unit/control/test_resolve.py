"""Every model is pinned to one version, or all that is wrong is told."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.desired.resolve import Resolver, check_still_trusted
from headrace.control.model.desired import DesiredEndpoint, Revision, with_id
from headrace.core import (
    Datatype,
    ModelSignature,
    NotSignedError,
    NullPolicy,
    SignedSettings,
    TensorSpec,
)
from headrace.core.devices import Device
from headrace.core.inspection import Inspected
from headrace.core.settings import LlmSpec, Pooling
from headrace.core.spec.access import SecuritySpec
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.core.spec.rollout import OutputTokensSpec, ShadowSpec, TimePerOutputTokenSpec
from headrace.registry import Registry
from headrace.registry.signing import make_key, sign, write_keys
from headrace.runtimes import inspect_model
from tests.gguf_models import gguf
from tests.unit.control.conftest import inspect


def resolve(registry: Registry, *endpoints: dict[str, object]) -> tuple[DesiredEndpoint, ...]:
    spec = parse_spec({"endpoints": list(endpoints)})
    resolver = Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096)
    return resolver.resolve()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


def test_an_encoder_of_texts_is_known_by_its_signature_and_keeps_its_id(
    registry: Registry, model: Path
) -> None:
    encoder = ModelSignature(
        inputs=(TensorSpec(name="text", datatype=Datatype.BYTES, shape=(-1,)),),
        outputs=(TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, 4)),),
        batched=True,
    )
    version = registry.push("m", model)
    registry.push("n", model, inspect=lambda *_, **__: Inspected("onnx", encoder))
    [other] = resolve(registry, {"name": "m", "model": version.reference})
    [embeds] = resolve(registry, {"name": "n", "model": "n:1"})

    revision = embeds.arms[0].revision
    assert not other.arms[0].revision.encodes
    assert revision.encodes
    assert with_id(msgspec.structs.replace(revision, encodes=False)).id == revision.id


def test_a_file_is_pushed_under_the_endpoints_name_once(registry: Registry, model: Path) -> None:
    [first] = resolve(registry, {"name": "m", "model": str(model)})
    [again] = resolve(registry, {"name": "m", "model": str(model)})
    model.write_bytes(b"another model")
    [changed] = resolve(registry, {"name": "m", "model": str(model)})
    revision = first.arms[0].revision

    assert first == again
    assert (revision.model, revision.version) == ("m:1", "1")
    assert revision.settings.max_body_bytes == 4096
    assert Path(revision.settings.path).read_bytes() == b"model"
    assert changed.arms[0].revision.version == "2"


def test_a_directory_is_verified_by_the_registry_alone(registry: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.py").write_text("x")
    [found] = resolve(registry, {"name": "m", "model": str(directory)})

    assert found.arms[0].revision.settings.sha256 == ""


def test_a_reference_is_pinned_and_may_stand_under_another_name(
    registry: Registry, model: Path
) -> None:
    registry.push("fraud", model, labels={"y": ["no", "yes"]})
    [found] = resolve(
        registry,
        {
            "name": "m",
            "versions": [{"model": "fraud", "weight": 100, "replicas": 3}],
            "timeout_s": 5.0,
        },
    )
    revision = found.arms[0].revision

    assert (revision.model, revision.settings.model_name) == ("fraud:1", "m")
    assert revision.settings.labels == {"y": ["no", "yes"]}
    assert revision.settings.batching.default_timeout_s == 5.0
    assert found.arms[0].replicas == 3


def test_a_flipped_bit_is_found_and_named(registry: Registry, model: Path) -> None:
    stored = registry.path(registry.push("fraud", model))
    stored.chmod(0o644)
    stored.write_bytes(b"modeL")

    with pytest.raises(SpecError, match="expected sha256"):
        resolve(registry, {"name": "m", "model": "fraud:1"})


def test_one_version_cannot_be_two_arms_of_a_split(registry: Registry, model: Path) -> None:
    registry.push("fraud", model)
    versions = [{"model": "fraud", "weight": 50}, {"model": "fraud:1", "weight": 50}]

    with pytest.raises(SpecError, match="which the split already has"):
        resolve(registry, {"name": "m", "versions": versions})


def test_a_runtime_that_is_not_the_models_is_told(registry: Registry, model: Path) -> None:
    registry.push("fraud", model)

    with pytest.raises(SpecError, match="of runtime 'onnx', but the endpoint asks for 'python'"):
        resolve(registry, {"name": "m", "model": "fraud:1", "runtime": "python"})


def repository(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"model")
    return root


def test_a_repository_gives_its_models_with_their_own_version_numbers(
    registry: Registry, tmp_path: Path
) -> None:
    root = repository(tmp_path / "r", "a/3/model.onnx", "a/12/model.onnx", "b/1/model.onnx")
    (root / "b" / "config.pbtxt").write_text("max_batch_size: 0\n")
    found = resolve(registry, {"name": "all", "model": str(root), "replicas": 2})
    settings = {str(e.name): e.arms[0].revision.settings for e in found}

    assert {name: s.model_version for name, s in settings.items()} == {"a": "12", "b": "1"}
    assert settings["b"].batching.max_batch_size == 0
    assert settings["a"].batching.max_batch_size == 32
    assert found[0].arms[0].replicas == 2
    assert registry.list() == []


def test_a_repositorys_models_are_known_by_their_content_wherever_it_lies(
    registry: Registry, tmp_path: Path
) -> None:
    def found(root: Path) -> Revision:
        [endpoint] = resolve(registry, {"name": "all", "model": str(root)})
        return endpoint.arms[0].revision

    one, two = (repository(tmp_path / name, "a/1/model.onnx") for name in ("r", "s"))
    here, there = found(one), found(two)
    (one / "a/1/model.onnx").write_bytes(b"other")

    assert here.id == there.id
    assert here.settings.path == str(one / "a/1/model.onnx")
    assert here.content == f"sha256:{hashlib.sha256(b'model').hexdigest()}"
    assert found(one).id != here.id


def test_a_repositorys_model_with_links_to_the_outside_is_known_by_its_path(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    root = repository(tmp_path / "r", "a/1/model.onnx", "a/1/other")
    (root / "a/1/weights").symlink_to(tmp_path / "weights")
    [endpoint] = resolve(registry, {"name": "all", "model": str(root)})

    assert endpoint.arms[0].revision.content == ""


def test_homes_are_no_part_of_an_id(tmp_path: Path, model: Path) -> None:
    one, two = (
        resolve(Registry(tmp_path / home, inspect), {"name": "m", "model": str(model)})
        for home in ("here", "there")
    )

    assert one[0].arms[0].revision.id == two[0].arms[0].revision.id
    assert one[0].arms[0].revision.settings.path != two[0].arms[0].revision.settings.path


def test_the_specs_batch_size_goes_over_the_repositorys(registry: Registry, tmp_path: Path) -> None:
    root = repository(tmp_path / "r", "b/1/model.onnx")
    (root / "b" / "config.pbtxt").write_text("max_batch_size: 4\n")
    batching = {"max_batch_size": 16}
    [found] = resolve(registry, {"name": "all", "model": str(root), "batching": batching})

    assert found.arms[0].revision.settings.batching.max_batch_size == 16


def test_threads_inside_a_run_are_told_only_where_the_spec_says_them(
    registry: Registry, model: Path
) -> None:
    plain: dict[str, object] = {"name": "m", "model": str(model)}
    [open_] = resolve(registry, plain)
    [pinned] = resolve(registry, {**plain, "batching": {"intra_op_threads": 2}})

    assert open_.arms[0].revision.settings.intra_op_threads is None
    assert pinned.arms[0].revision.settings.intra_op_threads == 2
    assert open_.arms[0].revision.id != pinned.arms[0].revision.id


def test_a_broken_model_of_a_repository_starts_nothing_and_stops_no_other(
    registry: Registry, tmp_path: Path
) -> None:
    root = repository(tmp_path / "r", "a/1/model.onnx", "b/7/model.onnx")
    (root / "b/7/model.onnx").write_bytes(b"bad")
    good, broken = resolve(registry, {"name": "all", "model": str(root)})

    assert good.arms[0].revision.unloadable == ""
    assert "is no model" in broken.arms[0].revision.unloadable
    assert broken.arms[0].weight == 100


def test_the_newest_version_that_can_be_served_answers_for_all(
    registry: Registry, tmp_path: Path
) -> None:
    root = repository(tmp_path / "r", *(f"a/{version}/model.onnx" for version in (1, 2, 3)))
    (root / "a/3/model.onnx").write_bytes(b"bad")
    (root / "a/config.pbtxt").write_text("version_policy: { all {} }")
    [endpoint] = resolve(registry, {"name": "all", "model": str(root)})

    assert [(arm.key, arm.weight) for arm in endpoint.arms] == [("1", 0), ("2", 100), ("3", 0)]
    assert "is no model" in endpoint.arms[2].revision.unloadable


def test_a_name_from_a_repository_may_not_be_taken(
    registry: Registry, tmp_path: Path, model: Path
) -> None:
    root = repository(tmp_path / "r", "m/1/model.onnx")

    with pytest.raises(SpecError, match="two endpoints called 'm'"):
        resolve(registry, {"name": "m", "model": str(model)}, {"name": "all", "model": str(root)})


def test_a_model_that_runs_code_needs_an_endpoint_that_allows_it(
    registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "m.py"
    path.write_text("x")
    registry.push("stored", path, allow_code=True)
    with pytest.raises(SpecError) as caught:
        resolve(registry, {"name": "m", "model": str(path)}, {"name": "n", "model": "stored:1"})
    [allowed] = resolve(registry, {"name": "m", "model": str(path), "allow_code": True})

    assert [mistake.place for mistake in caught.value.mistakes] == [
        "endpoints[0].model",
        "endpoints[1].model",
    ]
    assert "stored:1: a model of runtime 'python' runs its author's code" in str(caught.value)
    assert "`allow_code: true`" in str(caught.value)
    assert allowed.arms[0].revision.runs_code


def test_a_whole_control_plane_may_allow_code(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("x")
    spec = parse_spec({"endpoints": [{"name": "m", "model": str(path)}]})
    resolver = Resolver(
        registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096, allow_code=True
    )

    assert resolver.resolve()[0].arms[0].revision.runs_code


def test_what_an_endpoint_allows_changes_no_revision_but_the_network_does(
    registry: Registry, model: Path
) -> None:
    [plain] = resolve(registry, {"name": "m", "model": str(model)})
    [with_code] = resolve(registry, {"name": "m", "model": str(model), "allow_code": True})
    [connected] = resolve(registry, {"name": "m", "model": str(model), "network": True})

    assert plain.arms[0].revision.id == with_code.arms[0].revision.id
    assert plain.arms[0].revision.id != connected.arms[0].revision.id
    assert connected.arms[0].revision.network


def test_a_default_that_the_spec_writes_out_makes_no_other_revision(
    registry: Registry, model: Path
) -> None:
    written_out = {"rows_independent": False, "row_check_ratio": 0.001, "intra_op_threads": None}
    plain, explicit = (
        resolve(registry, {"name": "m", "model": str(model), "batching": batching})
        for batching in ({}, written_out)
    )

    assert plain[0].arms[0].revision == explicit[0].arms[0].revision


def test_what_has_to_run_a_model_is_told_only_where_it_is_asked_for(
    registry: Registry, model: Path
) -> None:
    [free] = resolve(registry, {"name": "m", "model": str(model)})
    [auto] = resolve(registry, {"name": "m", "model": str(model), "device": "auto"})
    [gpu] = resolve(registry, {"name": "m", "model": str(model), "device": "gpu"})

    assert free.arms[0].revision.settings.device is msgspec.UNSET
    assert auto.arms[0].revision.id == free.arms[0].revision.id
    assert gpu.arms[0].revision.settings.device == Device.GPU
    assert gpu.arms[0].revision.id != free.arms[0].revision.id
    with pytest.raises(SpecError, match=r"endpoints\[0\]\.device"):
        resolve(registry, {"name": "m", "model": str(model), "device": "tpu"})


def test_replicas_are_told_what_nulls_are_only_where_they_are_errors(
    registry: Registry, model: Path
) -> None:
    [missing] = resolve(registry, {"name": "m", "model": str(model), "nulls": "nan"})
    [errors] = resolve(registry, {"name": "m", "model": str(model), "nulls": "error"})

    assert missing.arms[0].revision.settings.nulls is msgspec.UNSET
    assert errors.arms[0].revision.settings.nulls == NullPolicy.ERROR


def test_an_example_request_is_checked_against_the_model(registry: Registry, model: Path) -> None:
    entry: dict[str, object] = {"name": "m", "model": str(model)}
    [plain] = resolve(registry, entry)
    [endpoint] = resolve(registry, {**entry, "example": {"x": [[1, 2.5]]}})

    assert endpoint.example == {"x": [[1, 2.5]]}
    assert endpoint.arms[0].revision.id == plain.arms[0].revision.id
    for example, reason in (
        ({"x": [1, 2]}, r"unexpected shape for input 'x'"),
        ({"x": [["a", "b"]]}, r"could not convert"),
        ({"z": [1]}, r"m:1 has no input z"),
    ):
        with pytest.raises(SpecError, match=rf"endpoints\[0\]\.example: .*{reason}"):
            resolve(registry, {**entry, "example": example})


def signed_only(
    registry: Registry, keys: Path, *endpoints: Mapping[str, object]
) -> DesiredEndpoint:
    spec = parse_spec(
        {
            "endpoints": list(endpoints),
            "security": {"require_signature": True, "trusted_keys": [str(keys)]},
        }
    )
    return Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096).resolve()[0]


def test_where_signatures_are_required_only_signed_versions_are_served(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    key = make_key()
    _, trusted = write_keys(tmp_path / "keys", key)
    _, strangers = write_keys(tmp_path / "strangers", make_key())
    [unsigned] = resolve(registry, {"name": "m", "model": str(model)})
    by_path = {"name": "m", "model": str(model)}
    with pytest.raises(SpecError, match=r"m:1: it is not signed; .* models sign m:1"):
        signed_only(registry, trusted, by_path)
    stored = registry.get("m:1")
    registry.add_signature("m", "1", sign(stored, key, signed_at=0.0, by=""))
    with pytest.raises(SpecError, match="which `trusted_keys` does not list"):
        signed_only(registry, strangers, {"name": "m", "model": "m:1"})
    served = signed_only(registry, trusted, by_path)
    settings = served.arms[0].revision.settings

    assert isinstance(settings.signed, SignedSettings)
    assert stored.digest in settings.signed.statement
    assert served.arms[0].revision.id != unsigned.arms[0].revision.id
    assert b"signed" not in msgspec.json.encode(unsigned.arms[0].revision.settings)
    check_still_trusted(served, security(trusted))
    check_still_trusted(unsigned, SecuritySpec())
    with pytest.raises(NotSignedError, match="sign it, and name it in the spec"):
        check_still_trusted(unsigned, security(trusted))
    with pytest.raises(NotSignedError):
        check_still_trusted(served, security(strangers))


def security(keys: Path) -> SecuritySpec:
    return SecuritySpec(require_signature=True, trusted_keys=(str(keys),))


def test_an_altered_version_is_refused_although_it_was_signed(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    key = make_key()
    _, trusted = write_keys(tmp_path / "keys", key)
    stored = registry.push("m", model)
    registry.add_signature("m", "1", sign(stored, key, signed_at=0.0, by=""))
    index = registry.home / "registry/m/1.json"
    text = index.read_text()
    index.chmod(0o644)
    index.write_text(text.replace('"runtime": "onnx"', '"runtime": "other"'))
    with pytest.raises(SpecError, match="signatures do not match the stored version"):
        signed_only(registry, trusted, {"name": "m", "model": "m:1"})
    index.write_text(text)
    path = registry.path(stored)
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_bytes(b"other")

    with pytest.raises(SpecError, match=r"m:1 .* is damaged"):
        signed_only(registry, trusted, {"name": "m", "model": "m:1"})


def test_a_repository_is_refused_where_signatures_are_required(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "models/a/1").mkdir(parents=True)
    (tmp_path / "models/a/1/model.onnx").write_bytes(b"x")
    _, trusted = write_keys(tmp_path / "keys", make_key())

    with pytest.raises(SpecError, match="whose models cannot be signed"):
        signed_only(registry, trusted, {"name": "all", "model": str(tmp_path / "models")})


def test_a_file_of_keys_that_holds_none_is_a_mistake_of_the_spec(
    registry: Registry, model: Path
) -> None:
    with pytest.raises(SpecError, match=r"security\.trusted_keys\[0\]: .* holds no public key"):
        signed_only(registry, model, {"name": "m", "model": str(model)})


def test_a_model_that_runs_code_gets_a_process_beside_the_pool(
    registry: Registry, tmp_path: Path
) -> None:
    for name in ("code.py", "data.onnx"):
        (tmp_path / name).write_text(name)
    line = {"pool": "p", "allow_code": True}
    spec = parse_spec(
        {
            "pools": [{"name": "p"}],
            "endpoints": [
                {"name": name, "model": str(tmp_path / file), **line}
                for name, file in (("code", "code.py"), ("data", "data.onnx"))
            ],
        }
    )
    resolver = Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096)

    code, data = (endpoint.arms[0] for endpoint in resolver.resolve())
    assert (code.revision.pool, code.replicas) == ("", 1)
    assert (data.revision.pool, data.replicas) == ("p", 0)


def test_a_language_model_gets_a_process_with_its_settings(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    line = {"name": "chat", "model": str(tmp_path / "m.gguf")}
    arms = []
    for more in ({}, {"llm": {"slots": 4}}, {"llm": {"slots": 2, "pooling": "mean"}}):
        spec = parse_spec({"endpoints": [line | more]})
        resolver = Resolver(
            registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096
        )
        arms.append(resolver.resolve()[0].arms[0])

    plain, explicit, other = arms
    assert plain.replicas == 1
    assert plain.revision.serves_openai
    assert plain.revision.settings.llm is msgspec.UNSET
    assert explicit.revision.id == plain.revision.id != other.revision.id
    assert other.revision.settings.llm == LlmSpec(slots=2, pooling=Pooling.MEAN)


@pytest.mark.parametrize(
    "line",
    [
        {"model": "m.gguf"},
        {"upstream": {"url": "http://127.0.0.1:9", "protocol": "openai"}},
    ],
)
def test_a_rollout_of_a_language_model_is_judged_by_its_tokens(
    registry: Registry, tmp_path: Path, line: dict[str, Any]
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    if "model" in line:
        line = {"model": str(tmp_path / line["model"])}
    judged = []
    for metrics in ({}, {"output_tokens": None, "time_per_output_token": {"margin_ratio": 2.0}}):
        rollout = {"strategy": "canary", "metrics": metrics}
        spec = parse_spec({"endpoints": [{"name": "chat", "rollout": rollout, **line}]})
        resolver = Resolver(
            registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096
        )
        (endpoint,) = resolver.resolve()
        assert endpoint.rollout is not None
        judged.append(endpoint.rollout.metrics)

    assert judged[0].time_per_output_token == TimePerOutputTokenSpec(margin_ratio=1.1)
    assert judged[0].output_tokens == OutputTokensSpec(margin=0.1)
    assert judged[1].time_per_output_token == TimePerOutputTokenSpec(margin_ratio=2.0)
    assert judged[1].output_tokens is None


def test_a_shadow_of_a_language_model_counts_copies_instead_of_comparing_answers(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    line = {"name": "chat", "model": str(tmp_path / "m.gguf"), "rollout": {"strategy": "shadow"}}
    spec = parse_spec({"endpoints": [line]})
    resolver = Resolver(registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096)

    (endpoint,) = resolver.resolve()

    assert isinstance(endpoint.rollout, ShadowSpec)
    assert endpoint.rollout.counts_copies
    assert endpoint.rollout.metrics.disagreement is None
    assert endpoint.rollout.metrics.output_tokens == OutputTokensSpec()


def test_a_language_model_is_autoscaled(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    line = {"name": "chat", "model": str(tmp_path / "m.gguf"), "autoscale": {"min_replicas": 0}}
    spec = parse_spec({"endpoints": [line]})
    resolver = Resolver(registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096)

    (endpoint,) = resolver.resolve()

    assert endpoint.autoscale is not None
    assert endpoint.autoscale.min_replicas == 0


def test_a_fallback_is_a_language_model_and_so_is_the_endpoint_that_names_it(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    far = {"name": "far", "upstream": {"url": "http://8.8.8.8", "protocol": "openai"}}
    near = {"name": "near", "model": str(tmp_path / "m.gguf")}
    other = {"name": "other", "model": str(model)}

    def resolver(*lines: Mapping[str, object]) -> Resolver:
        spec = parse_spec({"endpoints": list(lines)})
        return Resolver(
            registry=registry,
            inspect=lambda path, runtime="", *, allow_code=False: (
                inspect_model if path.suffix == ".gguf" else inspect
            )(path, runtime, allow_code=allow_code),
            spec=spec,
            max_body_bytes=4096,
        )

    first, second = resolver({**far, "fallback": "near"}, near).resolve()
    assert (first.fallback, second.fallback) == ("near", None)
    for lines in (({**far, "fallback": "other"}, other), (far, {**other, "fallback": "far"})):
        with pytest.raises(SpecError, match=r"fallback: .* of endpoint 'other' is not a GGUF"):
            resolver(*lines).resolve()


def test_settings_of_language_models_are_refused_where_other_models_answer(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    chat = {"name": "chat", "model": str(tmp_path / "m.gguf"), "llm": {"slots": 2}}
    other = {"name": "other", "model": str(model), "llm": {"slots": 2}}
    far = {"name": "far", "upstream": {"url": "http://8.8.8.8", "protocol": "openai"}}

    def stream(name: str, endpoint: str, **settings: object) -> Mapping[str, object]:
        source = {"broker": "log:demo", "topics": ["rows"]}
        return {"name": name, "endpoint": endpoint, "source": source, "sink": {"topic": name}} | (
            settings
        )

    streams = [
        stream("a", "chat", openai={}),
        stream("b", "far", openai={"path": "/v1/embeddings"}),
        stream("c", "chat"),
        stream("d", "other"),
        stream("e", "other", openai={}),
    ]
    spec = parse_spec({"endpoints": [chat, other, far], "streams": streams})
    resolver = Resolver(
        registry=registry,
        inspect=lambda path, runtime="", *, allow_code=False: (
            inspect_model if path.suffix == ".gguf" else inspect
        )(path, runtime, allow_code=allow_code),
        spec=spec,
        max_body_bytes=4096,
    )

    with pytest.raises(SpecError) as refused:
        resolver.resolve_all()

    assert {mistake.place: mistake.message for mistake in refused.value.mistakes} == {
        "endpoints[1].llm": "is for GGUF models, and this endpoint has none; remove it",
        "streams[2].endpoint": "'chat' is a language model, which takes no tensors; set `openai`",
        "streams[4].openai": "endpoint 'other' has no model that answers /v1/chat/completions",
    }


def test_a_stream_with_a_language_model_names_an_endpoint_instead(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    source = {"broker": "log:demo", "topics": ["rows"]}
    stream = {
        "name": "s",
        "model": str(tmp_path / "m.gguf"),
        "source": source,
        "sink": {"topic": "t"},
    }
    spec = parse_spec({"streams": [stream]})
    resolver = Resolver(registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096)

    with pytest.raises(SpecError, match=r"streams\[0\]\.model: s:1 is a language model, which"):
        resolver.resolve_all()


def test_a_pool_of_a_language_model_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    line = {"name": "chat", "model": str(tmp_path / "m.gguf"), "pool": "small"}
    spec = parse_spec({"pools": [{"name": "small"}], "endpoints": [line]})
    resolver = Resolver(registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096)

    with pytest.raises(SpecError, match=r"endpoints\[0\]\.pool: is not for GGUF models, each of"):
        resolver.resolve()


def test_limits_of_tokens_are_refused_where_no_model_has_tokens(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    limits = {
        "tokens_per_day": 9,
        "per_caller": {"requests_per_s": 1, "token_weights": {"input": 2}},
    }
    tensors = {"url": "http://8.8.8.8"}
    other = {"model": str(model), "weight": 50}
    lines: tuple[dict[str, object], ...] = (
        {"name": "upstream", "upstream": tensors, "limits": limits},
        {"name": "model", "model": str(model), "limits": {"per_caller": {"tokens_per_minute": 1}}},
        {
            "name": "few",
            "versions": [other, {"upstream": tensors, "version": "2", "weight": 50}],
            "limits": limits,
        },
    )
    far = {"url": "http://8.8.8.8", "protocol": "openai"}
    (tmp_path / "m.gguf").write_bytes(gguf())
    spec = parse_spec(
        {"endpoints": [{"name": "gguf", "model": str(tmp_path / "m.gguf"), "limits": limits}]}
    )
    chat = Resolver(registry=registry, inspect=inspect_model, spec=spec, max_body_bytes=4096)

    with pytest.raises(SpecError) as refused:
        resolve(registry, *lines)

    assert [mistake.place for mistake in refused.value.mistakes] == [
        "endpoints[0].limits.tokens_per_day",
        "endpoints[0].limits.per_caller.token_weights",
        "endpoints[1].limits.per_caller.tokens_per_minute",
        "endpoints[2].limits.tokens_per_day",
        "endpoints[2].limits.per_caller.token_weights",
    ]
    assert "which count tokens, and this endpoint has none" in str(refused.value)
    assert len(chat.resolve()) == 1
    assert len(resolve(registry, {**lines[0], "upstream": far})) == 1


def test_what_is_pushed_from_a_path_has_its_owner(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("m")
    spec = parse_spec({"endpoints": [{"name": "m", "model": str(tmp_path / "m.onnx")}]})
    for owner in ("ann", "bob"):
        Resolver(
            registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096, owner=owner
        ).resolve()

    assert registry.owners("m") == {"ann"}
    assert registry.get("m").owner == "ann"


def test_a_payload_log_must_name_columns_that_a_version_has(
    registry: Registry, model: Path
) -> None:
    log = {"drop": ["input.x", "caller"], "hash": ["output.y"]}
    [endpoint] = resolve(registry, {"name": "m", "model": str(model), "payload_log": log})
    wrong = {"drop": ["input.x", "input.pixel"], "hash": ["output.x"]}
    with pytest.raises(SpecError) as refused:
        resolve(registry, {"name": "m", "model": str(model), "payload_log": wrong})

    assert endpoint.payload_log is not None
    assert {m.place: m.message for m in refused.value.mistakes} == {
        "endpoints[0].payload_log.drop[1]": (
            "the model has no column 'input.pixel'; it has input.x"
        ),
        "endpoints[0].payload_log.hash[0]": "the model has no column 'output.x'; it has output.y",
    }
