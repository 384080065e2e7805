"""Where do the states of a stream's windows lie? For whoever keeps and whoever removes them."""

from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.streaming.settings import StreamSettings

_FOLDER: Final = "stream-state"


def state_folder(settings: StreamSettings) -> Path:
    """Where the states of a stream's group are."""
    home = Path(settings.home) if settings.home else Path.cwd()
    if settings.windows is not None and settings.windows.state:
        root = Path(settings.windows.state)
        return root / _folder_name(settings.name) / _folder_name(settings.group)
    return group_folder(home, settings.name, settings.group)


def group_folder(home: Path, stream: str, group: str) -> Path:
    """Where they are if nothing else was said."""
    return home / _FOLDER / _folder_name(stream) / _folder_name(group)


def _folder_name(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")  # '..' is a name like another
