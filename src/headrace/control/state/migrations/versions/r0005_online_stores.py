"""Online stores by name: URLs of endpoints and streams move to `online_stores` of the spec."""

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rewrite the stored documents; the settings of replicas and workers are not changed."""
    state = sa.table("state", sa.column("id"), sa.column("spec"))
    endpoints = sa.table("endpoints", sa.column("name"), sa.column("document"))
    history = sa.table(
        "generations", sa.column("endpoint"), sa.column("generation"), sa.column("document")
    )
    connection = op.get_bind()
    names: dict[str, str] = {}
    for table, keys in ((endpoints, ("name",)), (history, ("endpoint", "generation"))):
        for row in connection.execute(sa.select(table).where(table.c.document.is_not(None))).all():
            entry = json.loads(row.document)
            if _name_stores(entry, names):
                key = sa.and_(*(table.c[name] == getattr(row, name) for name in keys))
                values = {"document": json.dumps(entry)}
                connection.execute(sa.update(table).where(key).values(values))
    for row in connection.execute(sa.select(state)).all():
        spec = json.loads(row.spec)
        for listed in (*spec.get("endpoints", ()), *spec.get("streams", ())):
            for entry in listed if isinstance(listed, list) else [listed]:
                _name_stores(entry, names)
        if names:
            spec["online_stores"] = [{"name": name, "url": url} for url, name in names.items()]
            values = {"spec": json.dumps(spec)}
            connection.execute(sa.update(state).where(state.c.id == row.id).values(values))


def _name_stores(entry: Any, names: dict[str, str]) -> bool:  # noqa: ANN401  # JSON
    """Replace the URLs in an entry by names (`names` by URL); return whether there were any."""
    changed = False
    for part in ("features", "push"):
        section = entry.get(part) if isinstance(entry, dict) else None
        url = section.get("online_store") if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(url, str):
            if url.startswith("sqlite:///") or ("://" not in url and not url.startswith("${")):
                url = f"sqlite:///{Path(url.removeprefix('sqlite:///')).absolute()}"
            section["online_store"] = names.setdefault(url, f"store-{len(names) + 1}")
            changed = True
    return changed
