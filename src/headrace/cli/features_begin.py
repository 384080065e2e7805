"""How does somebody begin who has no features yet? A short file, and what to do with it."""

from pathlib import Path
from typing import Final

DEFAULT_PATH: Final = Path("features.yaml")
EXAMPLE: Final = """\
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
feature_views:
  - name: customer_stats
    entities: [customer]
    source: {path: customers.parquet}   # customer_id, event_timestamp, age
    features:
      - {name: age, datatype: INT64}
feature_services:
  - {name: fraud, features: [customer_stats]}
"""
HOW_TO_BEGIN: Final = """\
To begin, say in features.yaml what there is, and then:

    headrace features apply

    headrace features materialize

    headrace features get fraud -k customer_id=17

`headrace features apply` without a features.yaml shows a short one; `--from-feast REPO` needs none.
"""


def check_exists(path: Path) -> None:
    """Show somebody who has no file yet what one looks like; FailedPreconditionError."""
    from headrace.core import FailedPreconditionError  # noqa: PLC0415  # loaded by every command

    if path != DEFAULT_PATH or path.exists():
        return
    message = (
        f"there is no {path} here. To begin, write one such as\n\n{EXAMPLE}\nor name another "
        "file, or take what a Feast repository defines: headrace features apply --from-feast REPO"
    )
    raise FailedPreconditionError(message)
