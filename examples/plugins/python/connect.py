#!/usr/bin/env python3
"""Lets containers connect to the addresses of a list, and to nothing else.

    connect.py /run/podinit/pods/<pod>/plugins.sock 10.0.0.1:53 [::1]:443

The profile must notify of connect. The plugin makes the connection itself, with the
address that it judged, on a copy of the process's socket: were the call continued,
another thread could put another address in place.
"""

import asyncio
import socket

from podinit_plugin import EACCES, Plugin, address, arguments, dial_in, errno, run


def parse(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


class Connect(Plugin):
    def __init__(self, allowed):
        super().__init__()
        self.allowed = allowed

    async def verdict(self, notification):
        where = address(notification, 1)
        if where is None or where[1:] not in self.allowed:
            return errno(EACCES)
        target, number = self.target(notification), notification.arguments[0] & 0x7FFFFFFF
        ticket = (await target.duplicate(id=notification.id, descriptor=number)).ticket
        copy = socket.socket(fileno=self.fetch(ticket))
        try:
            # It can take minutes; others are decided meanwhile. The copy shares the
            # process's own flags, so that it must not be told to block or not to.
            failed = await asyncio.to_thread(copy.connect_ex, where[1:])
        finally:
            copy.close()
        return errno(failed) if failed else {"returnValue": 0}


async def main(where, *allowed):
    request = {
        "name": "connect-py",
        "selector": {"syscalls": ["connect"]},
        "decode": True,
        "deadlineMs": 180000,
    }
    await dial_in(where, request, Connect({parse(text) for text in allowed}))


run(main(*arguments("connect.py SOCKET ADDRESS:PORT...")))
