#!/usr/bin/env python3
"""Prints, for every pod of a node, what was decided about its containers' calls.

    trace.py /run/podinit/plugins.d/trace.sock

It listens, and every pod's monitor connects to it.
"""

import sys

from podinit_plugin import Plugin, arguments, listen, run


class Trace(Plugin):
    async def observe(self, records, lost, **kwargs):
        for record in records:
            call = record.notification
            said = (call.name, record.verdict.which(), record.decidedBy, record.latencyUs)
            print(self.pod, call.container, *said, flush=True)
        if lost:
            print(lost, "records were lost", file=sys.stderr)


async def main(socket):
    await listen(socket, {"name": "trace-py", "kind": "observer"}, Trace)


run(main(*arguments("trace.py SOCKET")))
