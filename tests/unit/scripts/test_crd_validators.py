"""Schemas are read whole from compiled validators, or not at all."""

from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from tests.crds.validators import Reader, Schema, UnreadableError, used

_HEAD: Final = '(data,{instancePath="",parentData,parentDataProperty,rootData=data}={})'
_FAILED: Final = "null===vErrors?vErrors=[err0]:vErrors.push(err0),errors++"


def _function(number: int, body: str) -> str:
    return (
        f"function validate{number}{_HEAD}{{let vErrors=null,errors=0;{body}"
        f"validate{number}.errors=vErrors,0===errors}}"
    )


def _error(keyword: str, params: str) -> str:
    place = f'schemaPath:"#/{keyword}",keyword:"{keyword}"'
    return f"{{let err0={{instancePath,{place},params:{{{params}}}}};{_FAILED}}}"


def _missing(name: str) -> str:
    return _error("required", f'missingProperty:"{name}"')


def _call(number: int, what: str, place: str) -> str:
    joined = f"vErrors.concat(validate{number}.errors)"
    return (
        f"validate{number}({what},{place})||(errors=(vErrors=null===vErrors?"
        f"validate{number}.errors:{joined}).length)"
    )


def _property(name: str, number: int) -> str:
    place = (
        f'{{instancePath:instancePath+"/{name}",parentData:data,'
        f'parentDataProperty:"{name}",rootData}}'
    )
    what = f"data.{name}"
    return f"void 0!=={what}&&({_call(number, what, place)})"


def _reference(number: int) -> str:
    return _call(number, "data", "{instancePath,parentData,parentDataProperty,rootData}")


_NO_TEXT: Final = _error("type", 'type:"string"')
_NO_INTEGER: Final = _error("type", 'type:"integer"')
_NO_OBJECT: Final = _error("type", 'type:"object"')
_TOO_LARGE: Final = _error("maximum", 'comparison:"<=",limit:65535')
_NO_MULTIPLE: Final = _error("multipleOf", "multipleOf:2")
_TEXT: Final = f'if("string"!=typeof data){_NO_TEXT}'
_PORT: Final = (
    f'if(!("number"==typeof data&&!(data%1)&&!isNaN(data)&&isFinite(data))&&null!==data)'
    f'{_NO_INTEGER}if("number"==typeof data&&isFinite(data)){{'
    f"if(data>65535||isNaN(data)){_TOO_LARGE}}}"
)


def _object(*properties: str, required: tuple[str, ...] = ()) -> str:
    missing = "".join(f"if(void 0===data.{name}){_missing(name)}" for name in required)
    return (
        f'if(data&&"object"==typeof data&&!Array.isArray(data)){{{missing}{",".join(properties)}}}'
        f"else{_NO_OBJECT}return "
    )


def _read(folder: Path, **files: str) -> tuple[Schema, dict[str, Schema]]:
    for name, text in files.items():
        (folder / f"{name}.js").write_text(f"export const validate=validate0;{text}")
    reader = Reader(file_of=lambda importer, name: importer.parent / name)
    schema = reader.schema(folder / f"{next(iter(files))}.js")
    return schema, reader.defs


def _complaints(schema: Schema, defs: dict[str, Schema], value: Any) -> list[str]:  # noqa: ANN401  # JSON
    whole = {**schema, "$defs": used(schema, defs)}
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(value)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"name": "a", "port": 80}, ""),
        ({"port": 80}, "'name' is a required property"),
        ({"name": 1}, "1 is not of type 'string'"),
        ({"name": "a", "port": 70_000}, "70000 is greater than the maximum of 65535"),
        ({"name": "a", "port": None}, "None is not of type 'integer'"),
        ({"name": "a", "nmae": "a"}, "'nmae' was unexpected"),
        ([], "[] is not of type 'object'"),
    ],
)
def test_a_type_is_read_with_its_limits_and_closed(tmp_path: Path, value: Any, said: str) -> None:  # noqa: ANN401  # JSON
    text = _function(1, f"{_TEXT}return ") + _function(2, f"{_PORT}return ")
    text += _function(0, _object(_property("name", 1), _property("port", 2), required=("name",)))

    schema, defs = _read(tmp_path, Backend=text)

    assert said in "; ".join(_complaints(schema, defs, value))
    assert bool(said) == bool(_complaints(schema, defs, value))


def test_a_type_in_another_is_one_object_with_the_fields_of_both(tmp_path: Path) -> None:
    inner = _function(1, f"{_TEXT}return ")
    inner += _function(0, _object(_property("name", 1), required=("name",)))
    outer = 'import{validate as validate9}from"Inner.js";' + _function(1, f"{_PORT}return ")
    outer += _function(0, f"{_reference(9)};{_object(_property('weight', 1))}")

    schema, defs = _read(tmp_path, Outer=outer, Inner=inner)

    assert _complaints(schema, defs, {"name": "a", "weight": 1}) == []
    assert _complaints(schema, defs, {"weight": 1}) == ["'name' is a required property"]
    assert "'other' was unexpected" in "; ".join(
        _complaints(schema, defs, {"name": "a", "other": 1})
    )


def test_a_type_may_hold_itself(tmp_path: Path) -> None:
    text = 'import{validate as validate1}from"Tree.js";' + _function(
        0, _object(_property("left", 1))
    )

    schema, defs = _read(tmp_path, Tree=text)

    assert _complaints(schema, defs, {"left": {"left": {}}}) == []
    assert _complaints(schema, defs, {"left": {"left": {"right": {}}}}) != []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no validator is exported|validate0 is not of a known form"),
        (
            _function(0, f'if(data.includes("a")){_NO_TEXT}return '),
            "includes",
        ),
        (
            _function(0, f"if(isNaN(data)){_NO_MULTIPLE}return "),
            "multipleOf",
        ),
        (_function(0, _object(_property("name", 7))), "validate7 is not of a known form"),
    ],
)
def test_a_form_that_is_not_known_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        _read(tmp_path, Odd=text)
