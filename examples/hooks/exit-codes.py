#!/usr/bin/env python3
"""containerExited: appends how each container ended to a file, one JSON object a line.

The file is named by EXIT_CODES. Containers of several pods may end at the same
time, so it is locked while it is written.
"""

import fcntl
import json
import os
import sys


def main():
    state = json.load(sys.stdin)
    told = state["podinit"]
    record = {
        "pod": told["podId"],
        "container": state["id"],
        # Exactly one of the two is known, unless the reason is "unknown".
        "exitCode": told.get("exitCode"),
        "signal": told.get("signal"),
        "reason": told.get("reason"),
    }
    with open(os.environ["EXIT_CODES"], "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")


main()
