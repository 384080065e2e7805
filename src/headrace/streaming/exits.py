"""Why did a worker end? Its exit status says it to whoever started it."""

from typing import Final

EXIT_SETTINGS: Final = 2
"""The settings cannot work, or do not fit the model or the broker."""
EXIT_CANNOT_LOAD: Final = 3
"""The model cannot be loaded, or the endpoint not be asked what it takes."""
EXIT_CANNOT_LISTEN: Final = 4
"""An address cannot be had."""
EXIT_CANNOT_JOIN: Final = 5
"""The broker refuses, for good."""
EXIT_REPLACED: Final = 6
"""Another member has this one's name: two workers of one stream were given the same."""
EXIT_STOPPED_BY_RECORD: Final = 7
"""By its policy the stream stopped before a record that has no answer."""
