"""Put on PYTHONPATH by the harness: the wall clock of that process is wrong by so many seconds.

Shifts what Python code reads through `time.time` and `time.time_ns`: the timestamp that is signed,
the heartbeats that Dramatiq writes into Redis. The monotonic clock is left alone, as a wrong wall
clock leaves it alone.
"""

import os
import time

_SHIFT_S = float(os.environ["OUTBOX_TEST_CLOCK_SHIFT_S"])
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + _SHIFT_S
time.time_ns = lambda: _time_ns() + int(_SHIFT_S * 1e9)
