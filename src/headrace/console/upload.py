"""Upload of a model file."""

from typing import Final
from urllib.parse import quote

from headrace.console.forms import FormInput, confirmation
from headrace.console.view import PageRequest, PageView, RefusedError
from headrace.control.asgi.multipart import MultipartBody
from headrace.control.auth.roles import ObjectKind, Role

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz")


async def upload(request: PageRequest) -> PageView:
    """Return the form."""
    if not may_upload(request):
        message = f"{request.caller.name} needs operator for this page"
        raise RefusedError.of(_FORBIDDEN, message)
    form = request.form
    return confirmation(
        request,
        title="Upload a model",
        consequence="Stores the file as the next version of the model. The same content is the "
        "same version. The next page serves it.",
        label="Upload",
        crumbs=[("/models", "Models")],
        section="models",
        encoding="multipart/form-data",
        inputs=[
            FormInput(
                name="name",
                label="Name of the model",
                value=form.get("name", ""),
                is_required=True,
            ),
            FormInput(
                name="allow_code",
                label="Allow the model to run its author's code",
                kind="checkbox",
                value=form.get("allow_code", ""),
                help="Formats such as Python files and pickles run code when they are loaded, in a "
                "sandbox.",
            ),
            # The last input: the file is passed on while it arrives.
            FormInput(
                name="file",
                label="File",
                kind="file",
                help="A model file, or a directory as a `.tar` archive.",
                is_required=True,
            ),
        ],
    )


def may_upload(request: PageRequest) -> bool:
    """Whether the visitor may push some model; the API checks the model's name as well."""
    grants = request.caller.grants
    return any(
        grant.includes(Role.OPERATOR)
        and (grant.name is None or grant.resource in {ObjectKind.MODEL, ObjectKind.ENDPOINT})
        for grant in grants
    )


async def send_upload(request: PageRequest, body: MultipartBody) -> str:
    """Stream the file to the API; return the page that serves the version.

    Raises:
        RefusedError: The form is incomplete, or the API refuses the model.
    """
    filename = await body.file_name()
    form = body.fields
    name = form.get("name", "").strip()
    if not filename or not name:
        raise RefusedError.of(_BAD_REQUEST, "choose a file, and name the model")
    is_archive = filename.endswith(_ARCHIVES)
    parameters = {
        "filename": name if is_archive else filename,
        "format": "tar" if is_archive else "file",
        "allow_code": "true" if form.get("allow_code") else "false",
    }
    answer = await request.visitor.upload(
        f"/api/v1/models/{quote(name, safe='')}",
        parameters,
        body.file_chunks(),
        csrf_token=form.get("csrf_token", ""),
    )
    stored = answer.json()
    return f"/models/{stored['name']}/{stored['version']}/serve"
