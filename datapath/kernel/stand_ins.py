"""TCX links that need not be waited for: a clsact filter stands in at a hook until its link is made.

Belongs here: which of the two a hook gets first, and the change from one to the other. Does not belong here: how
either is made (links.py, clsact.py).

The first link on a hook costs 8-16 ms, in which the kernel waits for its readers and nobody else may change a
device; a filter costs 1 ms. So a new hook gets the filter, with the same program, and `settle` makes the link when
nothing waits. While both are there the kernel runs the link, and as our programs always decide, a packet meets one
program, not two and not none.

A filter's qdisc stops the queues of its device when it comes, and would again when it goes (clsact.py). So it never
goes, and comes with the first program of a device that we made, before anybody sends to it; the underlay's device,
which is in use before, gets its links at once.
"""

import errno
from collections.abc import Iterator, Mapping

from datapath.errors import KernelError
from datapath.kernel.clsact import Filters
from datapath.kernel.links import Links
from datapath.kernel.netlink import Netlink
from datapath.kernel.programs import Program
from datapath.tables import AttachmentKey


class StandIns:
    """A form of attachment (attachments.py); `walk` comes first. Filters that an earlier agent left are stand-ins
    too, whatever the form it had chosen."""

    def __init__(
        self, links: Links, netlink: Netlink, programs: Mapping[str, Program], underlay_ifindex: int
    ) -> None:
        self._links, self._filters = links, Filters(netlink)
        self._programs = programs
        self._underlay_ifindex = underlay_ifindex
        self._linked = {key for key, _ in links.walk()}
        self._standing: dict[AttachmentKey, int] = {}
        """Which program each of them runs, by its number."""
        self._has_walked = False

    def walk(self) -> Iterator[tuple[AttachmentKey, int]]:
        """Every hook of ours once, with the number of the program that packets meet there."""
        linked = dict(self._links.walk())
        self._linked = set(linked)
        yield from linked.items()
        if self._standing or not self._has_walked:
            self._has_walked = True
            self._standing = dict(self._filters.walk())
            yield from ((key, number) for key, number in self._standing.items() if key not in linked)

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Where there is a link, it gets the program; elsewhere a filter does, or a link where none may or can. Raises
        KernelError."""
        if key not in self._linked and key.ifindex != self._underlay_ifindex:
            try:
                self._filters.put(key, program)
            except KernelError:
                # Another owner has the filter's place.
                pass
            else:
                self._standing[key] = program.id
                return
        self._links.put(key, program)
        self._linked.add(key)

    def delete(self, key: AttachmentKey) -> None:
        """Both go; at return the hook is free. Raises KernelError."""
        self._links.delete(key)
        self._linked.discard(key)
        if key in self._standing:
            self._end_filter(key)

    def settle(self) -> bool:
        """Replace one stand-in by its link; False if there was none. Raises KernelError."""
        if not self._standing:
            return False
        key = min(self._standing)
        number = self._standing[key]
        program = next((each for each in self._programs.values() if each.id == number), None)
        if program is None:
            # Of another version: no row wants it, or its row is put again and it stands in anew.
            del self._standing[key]
            return True
        try:
            self._links.put(key, program)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            del self._standing[key]
            return True
        self._linked.add(key)
        self._end_filter(key)
        return True

    def _end_filter(self, key: AttachmentKey) -> None:
        self._filters.delete(key)
        self._standing.pop(key, None)


class NoForm:
    """A form of attachment in which nothing is left and nobody attaches."""

    def walk(self) -> tuple[tuple[AttachmentKey, int], ...]:
        """Nothing."""
        return ()

    def put(self, key: AttachmentKey, program: Program) -> None:
        """Refused. Raises KernelError."""
        raise KernelError(f"no form to attach {program.name} in", errno.EOPNOTSUPP)

    def delete(self, key: AttachmentKey) -> None:
        """Nothing to end."""
