"""What plugins in Python share: meeting the monitor, and fetching descriptors.

Needs pycapnp (https://pypi.org/project/pycapnp/) and schema/plugin.capnp, which it
finds in this repository, or where PODINIT_SCHEMA says.
"""

import asyncio
import os
import pathlib
import socket
import sys
import traceback

import capnp

_HERE = pathlib.Path(__file__).resolve().parent
schema = capnp.load(os.environ.get("PODINIT_SCHEMA", str(_HERE.parents[2] / "schema" / "plugin.capnp")))

EPERM, EBADF, EACCES, EFAULT = 1, 9, 13, 14


def errno(number):
    return {"errno": number}


class Plugin(schema.SeccompPlugin.Server):
    """Derive from it, and give it `async def verdict(self, notification)`."""

    def __init__(self):
        self.sessions = {}
        self.descriptors = None
        self.pod = None

    async def synchronise(self, host, sessions, **kwargs):
        self.descriptors = host.descriptorSocket
        self.pod = host.podId
        self.sessions = {session.id: session.target for session in sessions}

    async def sessionOpened(self, session, **kwargs):
        self.sessions[session.id] = session.target

    async def sessionClosed(self, session, **kwargs):
        self.sessions.pop(session, None)

    async def decide(self, notifications, **kwargs):
        try:
            return list(await asyncio.gather(*[self.verdict(one) for one in notifications]))
        except Exception:
            # The monitor is told, and keeps no more than the beginning.
            traceback.print_exc()
            raise

    async def verdict(self, notification):
        return {"passOn": None}

    def target(self, notification):
        return self.sessions[notification.session]

    def fetch(self, ticket):
        """The descriptor that a ticket stands for."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as exchange:
            exchange.connect(self.descriptors)
            exchange.send(b"t" + ticket)
            said, descriptors, _, _ = socket.recv_fds(exchange, 256, 1)
        if said != b"p" or not descriptors:
            raise OSError(EBADF, said[1:].decode(errors="replace"))
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]


def text(notification, argument):
    """The whole text that an argument pointed to, or None."""
    for decoded in notification.decoded:
        if decoded.argument == argument and not decoded.cut and decoded.which() == "text":
            return bytes(decoded.text)
    return None


def address(notification, argument):
    """The (address, port) that an argument pointed to, or None."""
    for decoded in notification.decoded:
        if decoded.argument == argument and not decoded.cut and decoded.which() == "address":
            kind = decoded.address.which()
            if kind in ("inet", "inet6"):
                where = getattr(decoded.address, kind)
                family = socket.AF_INET if kind == "inet" else socket.AF_INET6
                return family, socket.inet_ntop(family, bytes(where.address)), where.port
    return None


def arguments(usage):
    """The program's own arguments: the socket and what comes after it."""
    if len(sys.argv) < 2:
        print("usage:", usage, file=sys.stderr)
        sys.exit(2)
    return sys.argv[1:]


async def dial_in(path, request, plugin):
    """Registers with one pod, and stays until it ends."""
    stream = await capnp.AsyncIoStream.create_unix_connection(path)
    client = capnp.TwoPartyClient(stream)
    host = client.bootstrap().cast_as(schema.PluginHost)
    registered = await host.register(request=request, plugin=plugin)
    print("registered", flush=True)
    await client.on_disconnect()
    return registered


class _Program(schema.PluginProgram.Server):
    def __init__(self, request, make):
        self.request, self.make, self.kept = request, make, []

    async def attach(self, host, **kwargs):
        self.kept.append(await host.register(request=self.request, plugin=self.make()))


async def listen(path, request, make):
    """Registers with every pod whose monitor connects; `make` makes a plugin for each."""

    async def connected(stream):
        server = capnp.TwoPartyServer(stream, bootstrap=_Program(request, make))
        await server.on_disconnect()

    if os.path.exists(path):
        os.unlink(path)
    os.umask(0o177)
    server = await capnp.AsyncIoStream.create_unix_server(connected, path)
    async with server:
        await server.serve_forever()


def run(plugin):
    """Runs a plugin to its end."""
    asyncio.run(capnp.run(plugin))
