"""Files that hold a secret and are mistaken for models, in the forms of every format."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SECRET: Final = "hrt_" + "q7ZxK93wVb2nLp8RtYd5Mc"
_PARTS: Final = frozenset(SECRET[start : start + 8] for start in range(len(SECRET) - 7))


def leaked(text: str) -> bool:
    """Whether `text` holds eight characters of the secret in a row."""
    return any(part in text for part in _PARTS)


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return (
        bytes([number << 3 | 2, len(content)]) + content
        if number < 16
        else (bytes([(number << 3 | 2) & 0x7F | 0x80, number >> 4, len(content)]) + content)
    )


def _zipped(**members: bytes | str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


TEXTS: Final = {
    "text": "{s}",
    "line": "{s}\n",
    "two words": "{s} {s}\n",
    "shadow": "root:$6${s}:19000:0:99999:7:::\n",
    "environment": "TOKEN={s}\nOTHER=1\n",
    "quoted": '"{s}"',
    "unterminated": '"{s}\n',
    "import": "import {s}\n",
    "from import": "from os import {s}\n",
    "raise": "raise ValueError('{s}')\n",
    "raise name": "class {s}(Exception): pass\nraise {s}\n",
    "raise base": "class {s}(BaseException): pass\nraise {s}('{s}')\n",
    "exit": "raise SystemExit('{s}')\n",
    "coding": "# coding: {s}\n",
    "assertion": "assert 0, '{s}'\n",
    "invalid escape": "x = '\\d {s}'; y = (1, '{s}' 2)\n",
    "global": "def f({s}, {s}): pass\n",
    "class": "MODEL = '{s}'\n",
    "json": '{{"token": "{s}"}}',
    "json name": '{{"{s}": 1}}',
    "json twice": '{{"{s}": 1, "{s}": 2}}',
    "json list": '["{s}"]',
    "json cut": '{{"token": "{s}',
    "learner": (
        '{{"learner": {{"attributes": {{}}, "learner_model_param": {{"num_feature": "{s}"}}}}}}'
    ),
    "learner text": '{{"learner": "{s}"}}',
    "manifest": '{{"schema": "{s}"}}',
    "manifest members": '{{"schema": 1, "members": [{{"path": "{s}", "{s}": 1}}]}}',
    "manifest enum": '{{"schema": 1, "source": "{s}", "{s}": []}}',
    "signature": '{{"inputs": [{{"name": "{s}", "datatype": "{s}", "shape": [1]}}]}}',
    "tokenizer": '{{"version": "1.0", "model": {{"type": "{s}"}}, "added_tokens": "{s}"}}',
    "yaml": "token: {s}\n",
    "yaml cut": "{s}: [\n",
    "yaml alias": "a: *{s}\n",
    "yaml tag": "a: !{s} x\n",
    "yaml anchor": "a: &{s} x\nb: &{s} y\n",
    "yaml tab": "a:\n\t{s}: x\n",
    "yaml twice": "{s}: 1\n{s}: 2\n",
    "steps": "steps: {s}\n",
    "step kind": "steps:\n- kind: {s}\n",
    "step value": "steps:\n- kind: tokenizer\n  file: ../{s}\n  max_length: {s}\n  {s}: 1\n",
    "version": "version: {s}\nsteps: []\noutputs: {s}\n",
    "toml": '[a]\ntoken = "{s}"\n',
    "pem": "-----BEGIN PRIVATE KEY-----\n{s}\n-----END PRIVATE KEY-----\n",
    "tree": "tree\n{s}\n",
    "tree header": "tree\nversion=v4\nnum_class={s}\nmax_feature_idx={s}\nTree=0\n",
    "tree twice": "tree\n{s}=1\n{s}=2\nTree=0\n",
    "xml": '<?xml version="1.0"?><net name="{s}" version="{s}"><layers/></net>',
    "xml cut": '<net name="{s}',
    "xml entity": "<net>&{s};</net>",
    "xml layer": '<net version="11"><layers><layer id="{s}" type="{s}" name="{s}"/></layers></net>',
    "xml tag": "<{s}></a>",
    "pbtxt": 'name: "{s}"\ninput [ {{ name: {s}\n',
}
_MAGIC: Final = {
    "pickle": b"\x80\x04",
    "zip cut": b"PK\x03\x04",
    "catboost": b"CBM1\x10\0\0\0",
    "tflite": b"\x1c\0\0\0TFL3",
    "ort": b"\x1c\0\0\0ORTM",
    "ubjson": b"{L\0\0\0\0\0\0\0\x07learner{",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "binf": b"binf",
    "onnx": b"\x08\x07",
}
_MEMBERS: Final = (
    "schema.json",
    "a/data.pkl",
    "a/constants.pkl",
    "a/version",
    "a/archive_format",
    "a/extra/signature.json",
    "serialized_exported_program.json",
    "model.weights.h5",
)


def secret_contents() -> Iterator[tuple[str, bytes]]:
    """Contents of files that hold the secret, with a name for each."""
    secret = SECRET.encode()
    for name, text in TEXTS.items():
        yield name, text.format(s=SECRET).encode()
    for name, magic in _MAGIC.items():
        yield f"{name} magic", magic + secret + b"\0" * 40
    for number in range(1, 27):
        yield f"protobuf {number}", _field(number, secret)
        yield f"protobuf nested {number}", b"\x08\x07" + _field(14, _field(number, secret))
    yield "zip name", _zipped(**{SECRET: "x", f"a/{SECRET}.pkl": "x"})
    for name in _MEMBERS:
        yield f"zip {name}", _zipped(**{name: SECRET})
    script = {"a/code/__torch__.py": f"class {SECRET}(Module):\n  {SECRET}", "a/version": "3"}
    yield "zip script", _zipped(**script, **dict.fromkeys(_MEMBERS[1:3], SECRET))
    skops = {"__class__": SECRET, "__module__": SECRET, "__loader__": SECRET, "content": SECRET}
    yield "zip skops", _zipped(**{"schema.json": json.dumps(skops), SECRET: SECRET})


INSIDE: Final = (
    "model.py", "model.onnx", "pipeline.yaml", "optimized.json", "saved_model.pb", "model.xml",
    "model.json", "model.txt", "model.tflite", "model.pt", "model.pt2", "signature.json",
    "tokenizer.json",
)  # fmt: skip
"""File names that a directory is recognised by."""


def write_secret(folder: Path, name: str, content: bytes) -> Path:
    """The path of a file, or of a directory that holds it if `name` is one of `INSIDE`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return folder if name in INSIDE else path
