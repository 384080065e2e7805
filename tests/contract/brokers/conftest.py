"""Of the suite on Kafka's stand-ins, what takes long and is held elsewhere."""

from pathlib import Path
from typing import Final

import pytest

SHORT_ON_TANSU: Final = (
    "test_members_share_what_comes_and_nothing_is_lost_when_one_goes",
    "test_what_is_done_stays_done_and_what_is_not_comes_again",
)
"""What noida cannot. The rest is held on noida, and on tansu takes 4 s for each group it forms."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_here = Path(__file__).parent in item.path.parents
        if is_here and "[tansu" in item.name and not item.name.startswith(SHORT_ON_TANSU):
            item.add_marker(pytest.mark.long)
