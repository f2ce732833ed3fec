#!/usr/bin/env python3
"""Makes harmless device nodes for containers that may not make any.

    mknod.py /run/podinit/pods/<pod>/plugins.sock

The profile must notify of mknod and mknodat. A node that is not in the list is refused,
and so is one in a directory that is neither the process's own nor open to everybody,
unless root asks; what is no device is left to the kernel, which the mode, a register,
decides.
"""

import os
import stat

from podinit_plugin import EACCES, EFAULT, EPERM, Plugin, arguments, dial_in, errno, run, text

# Major and minor of null, zero, full, random and urandom.
HARMLESS = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)}
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def mount_of(descriptor):
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


class Mknod(Plugin):
    async def verdict(self, notification):
        # mknodat has a directory before the other arguments.
        first = 1 if notification.name == "mknodat" else 0
        mode, device = notification.arguments[first + 1] & 0xFFFF, notification.arguments[first + 2]
        if not stat.S_ISCHR(mode):
            return errno(EPERM) if stat.S_ISBLK(mode) else {"continue": None}
        if (os.major(device), os.minor(device)) not in HARMLESS:
            return errno(EPERM)
        path = text(notification, first)
        if not path:
            return errno(EFAULT)
        try:
            await self.make(notification, first, path, mode, device)
        except OSError as error:
            return errno(error.errno or EPERM)
        return {"returnValue": 0}

    async def make(self, notification, first, path, mode, device):
        target, call = self.target(notification), notification.id
        if path.startswith(b"/"):
            ticket = (await target.open(id=call, place="root")).ticket
        elif first == 1 and notification.arguments[0] & 0x80000000 == 0:
            number = notification.arguments[0] & 0x7FFFFFFF
            ticket = (await target.duplicate(id=call, descriptor=number)).ticket
        else:
            ticket = (await target.open(id=call, place="workingDirectory")).ticket
        directory = self.fetch(ticket)
        try:
            # Step by step, without links and without "..": it cannot lead out of the container.
            *parents, name = [part for part in path.split(b"/") if part not in (b"", b".")]
            for part in parents:
                if part == b"..":
                    raise OSError(EPERM, "not followed")
                below = os.open(part, DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = below
            owner = (await target.credentials(id=call)).credentials
            # What was opened is the process's own if its call still waits.
            if not (await target.check(id=call)).open:
                raise OSError(EPERM, "the process is gone")
            # The plugin itself may make nodes anywhere.
            place = os.fstat(directory)
            if owner.uid not in (0, place.st_uid) and not place.st_mode & stat.S_IWOTH:
                raise OSError(EACCES, "it is not the process's directory")
            os.mknod(name, mode, device, dir_fd=directory)
            self.give(directory, name, device, owner)
        finally:
            os.close(directory)

    def give(self, directory, name, device, owner):
        # By now the name can be another file's, even one from outside, mounted there: what is given
        # away is the node, or nothing. Nothing is removed either: by its name it could be that file.
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(node)
            is_node = stat.S_ISCHR(found.st_mode) and found.st_rdev == device
            if not is_node or mount_of(node) != mount_of(directory):
                raise OSError(EPERM, "it was replaced")
            # fchown(2) takes no such descriptor, and Python has no AT_EMPTY_PATH.
            os.chown(f"/proc/self/fd/{node}", owner.uid, owner.gid)
        finally:
            os.close(node)


async def main(socket):
    request = {
        "name": "mknod-py",
        "selector": {"syscalls": ["mknod", "mknodat"]},
        "allowContinue": True,
        "decode": True,
    }
    await dial_in(socket, request, Mknod())


run(main(*arguments("mknod.py SOCKET")))
