"""Grafana dashboards as JSON, from panels, rows, queries and variables.

Schema:
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from headrace.monitor.promql import restricted

Document = dict[str, Any]

_WIDTH: Final = 24
_HEIGHT: Final = 8
_STAT_HEIGHT: Final = 4
_SCHEMA: Final = 39
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_LINKS: Final = {
    "type": "dashboards",
    "title": "Headrace",
    "tags": ["headrace"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
}
_SOURCE_VARIABLE: Final = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
}
_SYSTEM: Final = 'namespace="$namespace",job="$job"'
"""Matchers of the chosen system. Without Kubernetes `$namespace` is empty, as is the label."""
_HIDDEN: Final = (
    *("Time", "__name__", "instance", "job"),
    *("namespace", "pod", "container", "service"),
)
"""Columns that a table does not show: they are the same in each row."""
_ALERTS: Final = {
    "name": "Alerts",
    "datasource": _SOURCE,
    "enable": True,
    "iconColor": "red",
    "expr": restricted('ALERTS{alertstate="firing",alertname=~"Headrace.*"}', _SYSTEM),
    "titleFormat": "{{alertname}}",
    "textFormat": "{{endpoint}}{{stream}}",
}


class PanelType(StrEnum):
    """Grafana's type of a panel."""

    LINES = "timeseries"
    STAT = "stat"
    TABLE = "table"
    HEATMAP = "heatmap"


class Axis(NamedTuple):
    """Grafana's unit id (`s`, `reqps`, `percentunit`, `suffix: cores`), and the axis label."""

    unit: str
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a dashboard."""

    title: str
    axis: Axis
    queries: Mapping[str, str]
    """PromQL by the name of its series, with `{{label}}`; `__auto` leaves the name to Grafana."""
    _: KW_ONLY
    help: str = ""
    panel_type: PanelType = PanelType.LINES
    width: int = 12
    stacked: bool = False
    most: float | None = None
    """Upper end of the axis; None for automatic."""
    limit: float | None = None
    """Threshold from which the panel is red."""


@dataclass(frozen=True, slots=True)
class RowHeading:
    """Heading of the following panels."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Variable of a dashboard: the values of the label `name` of a metric."""

    name: str
    metric: str
    many: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Dashboard with its panels and variables."""

    name: str
    """File name and Grafana address."""
    title: str
    description: str
    panels: tuple[RowHeading | Panel, ...]
    variables: tuple[Variable, ...] = ()
    """Variables beside the data source, namespace and job."""

    def queries(self) -> Iterator[str]:
        """Yield all PromQL queries of the dashboard."""
        for panel in self.panels:
            if isinstance(panel, Panel):
                yield from (restricted(query, _SYSTEM) for query in panel.queries.values())


def stat(title: str, expression: str, unit: str, text: str, *, limit: float | None = None) -> Panel:
    """Return a panel with one large number."""
    axis, queries = Axis(unit, title), {title: expression}
    return Panel(title, axis, queries, help=text, panel_type=PanelType.STAT, width=4, limit=limit)


def dashboard_json(dashboard: Dashboard) -> Document:
    """Return the dashboard in Grafana's import format."""
    variables = (_variable(variable, _SYSTEM) for variable in dashboard.variables)
    return {
        "uid": f"headrace-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["headrace"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [_LINKS],
        "templating": {"list": [_SOURCE_VARIABLE, *_SYSTEM_VARIABLES, *variables]},
        "annotations": {"list": [_ALERTS]},
        "panels": list(_panels(dashboard)),
    }


def _variable(variable: Variable, matchers: str) -> Document:
    values = f"label_values({restricted(variable.metric, matchers)}, {variable.name})"
    return {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": values, "refId": "values"},
        "definition": values,
        "refresh": 2,
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        "allValue": ".*" if variable.many else None,
        "current": {"text": ["All"], "value": ["$__all"]} if variable.many else {},
    }


_OF_CONTROL_PLANE: Final = "headrace_control_gateway_ready"
"""A metric that each control plane has: its labels are those of the systems."""
_SYSTEM_VARIABLES: Final = (
    _variable(Variable(name="namespace", metric=_OF_CONTROL_PLANE, many=False), ""),
    _variable(Variable(name="job", metric=_OF_CONTROL_PLANE, many=False), 'namespace="$namespace"'),
)


def _panels(dashboard: Dashboard) -> Iterator[Document]:
    """Yield the panels in rows from left to right, with grid positions."""
    x = y = height = 0
    for number, panel in enumerate(dashboard.panels, start=1):
        width = _WIDTH if isinstance(panel, RowHeading) else panel.width
        if x + width > _WIDTH:
            x, y, height = 0, y + height, 0
        if isinstance(panel, RowHeading):
            panel_height = 1
            body: Document = {"type": "row", "title": panel.title, "collapsed": False, "panels": []}
        else:
            panel_height, body = (
                _STAT_HEIGHT if panel.panel_type is PanelType.STAT else _HEIGHT,
                _panel(panel),
            )
        yield {"id": number, "gridPos": {"h": panel_height, "w": width, "x": x, "y": y}, **body}
        x, height = x + width, max(height, panel_height)


def _panel(panel: Panel) -> Document:
    at_once = panel.panel_type in {PanelType.TABLE, PanelType.STAT}
    form = {PanelType.TABLE: "table", PanelType.HEATMAP: "heatmap"}.get(
        panel.panel_type, "time_series"
    )
    body: Document = {
        "type": panel.panel_type.value,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": restricted(expression, _SYSTEM),
                "legendFormat": legend,
                "instant": at_once,
                "range": not at_once,
                "format": form,
            }
            for i, (legend, expression) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }
    if panel.panel_type is PanelType.TABLE:
        # One row per series, without irrelevant columns.
        hidden = dict.fromkeys(_HIDDEN, True)
        organized = {"excludeByName": hidden, "renameByName": {"Value": panel.axis.text}}
        body["transformations"] = [{"id": "organize", "options": organized}]
    return body


def _field(panel: Panel) -> Document:
    steps: list[Document] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    field: Document = {
        "unit": panel.axis.unit,
        "min": 0,
        "color": {
            "mode": "palette-classic" if panel.panel_type is PanelType.LINES else "thresholds"
        },
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        field["max"] = panel.most
    if panel.panel_type is PanelType.LINES:
        field["custom"] = {
            "axisLabel": panel.axis.text,
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "dashed"},
        }
    return field


def _options(panel: Panel) -> Document:
    match panel.panel_type:
        case PanelType.LINES:
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case PanelType.HEATMAP:
            return {
                "calculate": False,
                "yAxis": {"unit": panel.axis.unit, "axisLabel": panel.axis.text},
                "cellGap": 0,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
            }
        case _:
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
