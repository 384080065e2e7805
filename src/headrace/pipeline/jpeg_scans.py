"""How often would a decoder go over a JPEG picture? A few bytes are enough to ask for once more.

A progressive file refines its picture in scans, some ten of them. Nothing but the file's size
limits their number: a megabyte can hold ten thousand that say nothing, each of them a pass over all
pixels. See libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf
"""

import re
from typing import Final

MAX_SCANS: Final = 100
"""As libtiff and GDAL have it."""
_START: Final = b"\xff\xd8"
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""One that a length follows, or the end; not what stands for itself within a scan's data."""
_END: Final = 0xD9
_SCAN: Final = 0xDA


def has_too_many_scans(raw: bytes | bytearray | memoryview) -> bool:
    """Whether this is a JPEG file with more scans than anybody's; what follows its end is none."""
    if raw[:2] != _START:
        return False
    count, at = 0, len(_START)
    while count <= MAX_SCANS:
        found = _MARKER.search(raw, at)
        if found is None or raw[found.end() - 1] == _END:
            return False
        count += raw[found.end() - 1] == _SCAN
        length = int.from_bytes(raw[found.end() : found.end() + 2], "big")
        at = found.end() + max(length, 2)
    return True
