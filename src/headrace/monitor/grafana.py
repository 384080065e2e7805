"""Grafana dashboards as JSON, from panels, rows, queries and variables.

Schema: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, Final

from headrace.monitor.promql import REQUESTS

Document = dict[str, Any]

_WIDTH: Final = 24
_HEIGHT: Final = 8
_STAT_HEIGHT: Final = 4
_SCHEMA: Final = 39
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Look(StrEnum):
    """What kind of picture a panel is."""

    LINES = "timeseries"
    STAT = "stat"
    TABLE = "table"
    BARS = "bargauge"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """A question in PromQL; `legend` names its series, with `{{label}}`."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    `unit`: Grafana's id for it (`s`, `reqps`, `percentunit`, `bytes`, `suffix: cores`). `axis`:
    what the axis says. `help`: what the reader should know. `limit`: where it turns red.
    """

    title: str
    unit: str
    axis: str
    queries: tuple[Query, ...]
    _: KW_ONLY
    help: str = ""
    look: Look = Look.LINES
    width: int = 12
    stacked: bool = False
    most: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Something that the reader picks: the values of a label of a metric."""

    name: str
    label: str
    metric: str
    many: bool = True

    @property
    def values(self) -> str:
        """The question for them, in Grafana's words."""
        return f"label_values({self.metric}, {self.label})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A page of pictures. `name`: of its file, and its address in Grafana."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def queries(self) -> Iterator[str]:
        """Every question in PromQL that it asks."""
        for row in self.rows:
            for panel in row.panels:
                yield from (query.expression for query in panel.queries)


def dashboard_json(dashboard: Dashboard) -> Document:
    """The dashboard as Grafana imports it."""
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
        "links": [
            {
                "type": "dashboards",
                "title": "Headrace",
                "tags": ["headrace"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_source_variable(), *map(_variable, dashboard.variables)]},
        "annotations": {"list": [_alert_annotation()]},
        "panels": list(_panels(dashboard.rows)),
    }


def _source_variable() -> Document:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _variable(variable: Variable) -> Document:
    return {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": variable.values, "refId": "values"},
        "definition": variable.values,
        "refresh": 2,
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        "allValue": ".*" if variable.many else None,
        "current": {"text": ["All"], "value": ["$__all"]} if variable.many else {},
    }


def _alert_annotation() -> Document:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing",alertname=~"Headrace.*"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{endpoint}}{{stream}}",
    }


def _panels(rows: Sequence[Row]) -> Iterator[Document]:
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": _WIDTH, "x": 0, "y": y},
            "panels": [],
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y, height = 0, y + height, 0
            own = _STAT_HEIGHT if panel.look is Look.STAT else _HEIGHT
            height = max(height, own)
            number += 1
            place = {"h": own, "w": panel.width, "x": x, "y": y}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            x += panel.width
        y += height


def _panel(panel: Panel) -> Document:
    return {
        "type": panel.look.value,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "targets": [_target(i, query, panel.look) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        **_rearranged(panel),
    }


def _target(place: int, query: Query, look: Look) -> Document:
    at_once = look in {Look.TABLE, Look.STAT, Look.BARS}
    return {
        "refId": chr(ord("A") + place),
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "instant": at_once,
        "range": not at_once,
        "format": {Look.TABLE: "table", Look.HEATMAP: "heatmap"}.get(look, "time_series"),
    }


def _field(panel: Panel) -> Document:
    steps: list[Document] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    found: Document = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "palette-classic" if panel.look is Look.LINES else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        found["max"] = panel.most
    if panel.look is Look.LINES:
        found["custom"] = {
            "axisLabel": panel.axis,
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "dashed"},
        }
    return found


def _options(panel: Panel) -> Document:
    match panel.look:
        case Look.LINES:
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case Look.HEATMAP:
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit, "axisLabel": panel.axis},
                "cellGap": 0,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
            }
        case _:
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}


def _rearranged(panel: Panel) -> Document:
    """Tables show one row for each series, without the columns that nobody reads."""
    if panel.look is not Look.TABLE:
        return {}
    hidden = dict.fromkeys(("Time", "__name__", "instance", "job"), True)
    rename = {"Value": panel.axis}
    organized = {"excludeByName": hidden, "renameByName": rename}
    return {"transformations": [{"id": "organize", "options": organized}]}


RATE: Final = "$__rate_interval"
OF_ENDPOINT: Final = 'endpoint=~"$endpoint"'
OF_MODEL: Final = 'model=~"$endpoint"'
OF_REPLICA: Final = 'replica=~"$replica"'
OURS: Final = '{process=~"control|gateway"}'
QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
PHASES: Final = ("preprocess", "queue_wait", "compute", "postprocess")

OF_STREAM: Final = 'stream=~"$stream"'
OF_JOB: Final = 'job_name=~"$job_name"'
PICK_STREAM: Final = Variable(name="stream", label="stream", metric="headrace_stream_up")
PICK_JOB: Final = Variable(name="job_name", label="job_name", metric="headrace_job_late")
PICK_ENDPOINT: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS)
PICK_ONE: Final = Variable(name="endpoint", label="endpoint", metric=REQUESTS, many=False)
PICK_REPLICA: Final = Variable(
    name="replica", label="replica", metric="headrace_control_replica_ready"
)


def per_s(expression: str, by: str) -> str:
    """How fast a counter grows, by these labels."""
    return f"sum by ({by}) (rate({expression}[{RATE}]))"


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """A quantile of a histogram, over the last moments."""
    inner = f"sum by (le{', ' if by else ''}{by}) (rate({metric}_bucket{{{labels}}}[{RATE}]))"
    return f"histogram_quantile({q:g}, {inner})"


def error_ratio(labels: str, by: str) -> str:
    """The share of failed requests, by this label; 0 where none failed."""
    failed = f'{REQUESTS}{{{labels}{"," if labels else ""}outcome="error"}}'
    return (
        f"(sum by ({by}) (rate({failed}[{RATE}])) or 0 * {per_s(f'{REQUESTS}{{{labels}}}', by)}) "
        f"/ {per_s(f'{REQUESTS}{{{labels}}}', by)}"
    )


def stat(title: str, expression: str, unit: str, text: str, *, limit: float | None = None) -> Panel:
    """One number, large."""
    return Panel(
        title,
        unit,
        title,
        (Query(expression, title),),
        help=text,
        look=Look.STAT,
        width=4,
        limit=limit,
    )
