"""Fakes and contract suites. Imports its siblings `core`, `features`, `runtimes`, `streaming`.

- `headrace.testing.contracts`: what a plug-in has to pass before it ships (needs pytest)
- `headrace.testing.online_stores`: what an online store has to pass (needs pytest)
- `headrace.testing.models`: small models made in code (needs onnx)
- `headrace.testing.streams`: a broker in memory, on a clock that is turned
- `VirtualTimeLoop`: tests in which an hour passes at once; `LoopClock` tells its time
"""

from headrace.testing.virtual_time import LoopClock, VirtualTimeLoop

__all__ = ["LoopClock", "VirtualTimeLoop"]
