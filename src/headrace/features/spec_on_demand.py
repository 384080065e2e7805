"""How does an on-demand view of `features.yaml` become one, with the code that it runs?"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.features.definitions import (
    Feature,
    FeatureView,
    OnDemandInput,
    OnDemandView,
)
from headrace.features.spec_models import (
    MAX_CODE_CHARACTERS,
    FeatureSpec,
    FeaturesSpec,
    OnDemandViewSpec,
    RequestColumnSpec,
)


def check_code_allowed(spec: FeaturesSpec, *, allow_code: bool) -> None:
    """Refuse definitions whose use runs code, unless that is allowed."""
    if spec.on_demand_views and not allow_code:
        first = spec.on_demand_views[0]
        raise FailedPreconditionError(
            f"on-demand view '{first.name}' runs the code of {first.function} wherever its "
            "features are used; if you trust the author, say so: `--allow-code` on the command "
            "line, `allow_code=True` in Python"
        )


def read_code(spec: OnDemandViewSpec, base_dir: Path) -> str:
    """The text of the function's file, unless the view has it.

    Raises:
        InvalidArgumentError: It is no text, or too long.
        FailedPreconditionError: It cannot be read.
    """
    if spec.code is not None:
        return spec.code
    path = base_dir.absolute() / Path(spec.function.rpartition(":")[0]).expanduser()
    where = f"on-demand view '{spec.name}': {path}"
    try:
        with path.open("rb") as file:
            text = file.read(4 * MAX_CODE_CHARACTERS + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{where} is no UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise FailedPreconditionError(f"{where} cannot be read: {error.strerror}") from error
    if len(text) > MAX_CODE_CHARACTERS:
        limit = f"{MAX_CODE_CHARACTERS} characters; install what it needs as a package"
        raise InvalidArgumentError(f"{where} has more than {limit}")
    return text.replace("\r\n", "\n")


def on_demand_view(spec: OnDemandViewSpec, views: Mapping[str, FeatureView]) -> OnDemandView:
    """The view that `spec`, whose code is read, says."""
    assert spec.code is not None
    return OnDemandView(
        name=spec.name,
        function=spec.function,
        source=spec.code,
        inputs=tuple(_inputs(spec, views)),
        request=tuple(feature_of(one) for one in spec.request_columns),
        features=tuple(feature_of(one) for one in spec.features),
    )


def feature_of(spec: FeatureSpec | RequestColumnSpec) -> Feature:
    """A column, its default as its datatype has it."""
    datatype, default = Datatype(spec.datatype), spec.default
    if isinstance(default, str):
        return Feature(name=spec.name, datatype=datatype, default=default.encode())
    if datatype in {Datatype.FP32, Datatype.FP64} and default is not None:
        default = float(default)
    return Feature(name=spec.name, datatype=datatype, default=default)


def _inputs(spec: OnDemandViewSpec, views: Mapping[str, FeatureView]) -> Iterator[OnDemandInput]:
    for item in spec.inputs:
        name, _, wanted = item.partition(":")
        view = views[name]
        for feature in view.features:
            if not wanted or feature.name == wanted:
                shown_as = f"{name}__{feature.name}" if spec.full_feature_names else feature.name
                yield OnDemandInput(name=shown_as, view=view, feature=feature)
