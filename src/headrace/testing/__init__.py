"""Fakes and contract suites. Imports its siblings `core`, `features`, `runtimes`, `streaming`.

- `headrace.testing.contracts`: contract suites for plug-ins (needs pytest)
- `headrace.testing.online_stores`: contract suites for online stores (needs pytest)
- `headrace.testing.models`: small models built in code (needs onnx)
- `headrace.testing.streams`: an in-memory broker on a manual clock
- `VirtualTimeLoop`: an event loop on virtual time; `LoopClock` reads its time
"""

from headrace.testing.virtual_time import LoopClock, VirtualTimeLoop

__all__ = ["LoopClock", "VirtualTimeLoop"]
