"""The least there is: one request, a few seconds from now.

Needs a node (`make run`) and a target (`python examples/target.py`).
"""

import os

from tickwheel.client import Client

with Client(os.environ.get("TICKWHEEL_SERVER", "127.0.0.1:7070")) as tickwheel:
    job = tickwheel.create("http://127.0.0.1:9000/ok", delay="3s", body={"order": 17})
    print(job.name, job.next_time)
