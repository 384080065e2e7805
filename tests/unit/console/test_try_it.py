"""An endpoint is tried by a form, through the gateway, as any caller would."""

import ast
import json
import shlex
from pathlib import Path

import pytest

from headrace.console.try_it import curl_of, fields_of, python_of
from headrace.console.view import GatewayLocation
from headrace.control.base.context import Addresses
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import Datatype, ModelSignature, TensorSpec
from tests.unit.console.browser import hidden_of, visitor_of
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio

INFER = "/v2/models/fraud/infer"
PLAIN = GatewayLocation(url="http://127.0.0.1:8000", ca="")
SIGNATURE = ModelSignature(
    inputs=(
        TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),
        TensorSpec(name="text", datatype=Datatype.BYTES, shape=(-1,)),
    ),
    outputs=(),
    batched=True,
)


def test_the_form_begins_with_a_row_that_the_model_takes() -> None:
    x, text = fields_of(SIGNATURE, {})

    assert (x.name, x.datatype, x.expected, x.shape) == ("x", "FP32", "any, 2", "1, 2")
    assert len(json.loads(x.data)) == 2
    assert json.loads(text.data) == ["a"]
    assert x.problem == text.problem == ""


def test_the_form_begins_with_categories_that_the_model_knows_exactly() -> None:
    columns = tuple(
        TensorSpec(name=name, datatype=datatype, shape=(-1,))
        for name, datatype in (("city", Datatype.BYTES), ("rate", Datatype.FP64))
    )
    example: dict[str, float | str] = {"city": "Bern", "rate": 0.12345}
    signature = ModelSignature(inputs=columns, outputs=(), batched=True, example=example)

    city, rate = fields_of(signature, {})

    assert json.loads(city.data) == ["Bern"]
    assert json.loads(rate.data) == [0.12345]


def test_the_form_begins_with_a_picture_where_one_is_wanted() -> None:
    image = TensorSpec(name="image", datatype=Datatype.BYTES, shape=(-1,))
    fields = fields_of(ModelSignature(inputs=(image,), outputs=(), batched=True), {})

    program = python_of(PLAIN, "cats", fields, needs_key=False)

    assert fields[0].problem == ""
    (text,) = json.loads(fields[0].data)
    assert text.startswith("GIF89a")
    strings = [
        node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)
    ]
    assert text in strings


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"shape.x": "1;2"}, "integers separated by commas"),
        ({"data.x": "[1,"}, "a JSON list"),
        ({"data.x": "1"}, "a JSON list"),
    ],
)
def test_what_cannot_be_read_is_said_at_its_field(given: dict[str, str], problem: str) -> None:
    x, text = fields_of(SIGNATURE, given)

    assert problem in x.problem
    assert text.problem == ""


def test_a_large_input_does_not_make_a_large_form() -> None:
    image = TensorSpec(name="image", datatype=Datatype.FP32, shape=(3, 512, 512))
    (field,) = fields_of(ModelSignature(inputs=(image,), outputs=(), batched=False), {})

    assert len(field.data) < 10_000


def test_the_curl_command_is_one_that_a_shell_takes() -> None:
    body = '{"inputs": [{"name": "it\'s"}]}'
    words = shlex.split(curl_of(PLAIN, INFER, body, needs_key=False).replace("\\\n", " "))

    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v2/models/fraud/infer"]
    assert words[-2:] == ["-d", body]


def test_a_key_and_a_certificate_are_named_where_they_are_needed() -> None:
    gateway = GatewayLocation(url="https://models.example", ca="/home/ca.pem")
    curl = curl_of(gateway, INFER, "{}", needs_key=True)
    python = python_of(gateway, "fraud", fields_of(SIGNATURE, {}), needs_key=True)

    assert "--cacert /home/ca.pem" in curl
    assert '-H "x-api-key: $KEY"' in curl
    assert "ca_file='/home/ca.pem'" in python
    assert 'api_key=os.environ["KEY"]' in python


def test_the_python_program_is_one() -> None:
    signature = ModelSignature(
        inputs=tuple(
            TensorSpec(name=str(datatype), datatype=datatype, shape=(-1, 2))
            for datatype in Datatype
        ),
        outputs=(),
        batched=True,
    )
    fields = fields_of(signature, {})

    ast.parse(python_of(PLAIN, "fraud", fields, needs_key=True))


async def test_a_language_model_has_a_playground_instead_of_the_form(plane: ControlPlane) -> None:
    upstream = {"url": "http://10.0.0.1:8000", "protocol": "openai"}
    async with client_of(plane) as api:
        await api.put("/endpoints/chat", json={"upstream": upstream})
    async with visitor_of(plane) as visitor:
        page = await visitor.get("/endpoints/chat/try")

    assert page.status_code == 404
    assert "chat with it at /endpoints/chat/chat" in page.text


@pytest.mark.parametrize(
    "addresses",
    # A port of this machine that nobody listens on: the lowest one.
    [Addresses(http_url="http://127.0.0.1:1", grpc_target="", metrics_url="", admin_url="")],
)
async def test_a_gateway_that_is_not_there_is_an_answer_too(
    plane: ControlPlane, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    async with client_of(plane) as api:
        await api.put("/endpoints/fraud", json={"model": str(model), "access": ["key"]})
    async with visitor_of(plane) as visitor:
        page = await visitor.get("/endpoints/fraud/try")
        sent = await visitor.post("/endpoints/fraud/try", data=hidden_of(page.text))
        wrong = await visitor.post(
            "/endpoints/fraud/try", data={**hidden_of(page.text), "data.x": "nothing"}
        )

    assert "requires authentication (key)" in page.text
    assert sent.status_code == 200
    assert "no answer" in sent.text
    assert "must be a JSON list" in wrong.text
    assert "No request sent yet" in wrong.text
