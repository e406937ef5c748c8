"""Cancel an order's reminder, and know for sure whether the customer will get it.

Needs a node (`make run`) and a target (`python examples/target.py`). Two jobs: one is cancelled before its time, the other
while its request is on the way, to a target that takes 3 s to answer.
"""

import os
import time

from tickwheel.client import Client

with Client(os.environ.get("TICKWHEEL_SERVER", "127.0.0.1:7070")) as tickwheel:
    early = tickwheel.create("http://127.0.0.1:9000/ok", delay="1h")
    print("before its time: ", tickwheel.cancel(early).outcome)

    late = tickwheel.create("http://127.0.0.1:9000/slow", delay="1s")
    time.sleep(2)
    answer = tickwheel.cancel(late)
    print("on its way:      ", answer.outcome, "attempt", answer.attempt)
