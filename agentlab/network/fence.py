"""The fence round all sandboxes: bridge, taps and rules, kept as the daemon's list says."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from agentlab.model.profile import NetworkMode
from agentlab.network import bridge, nft
from agentlab.network.rules import plan_tables
from agentlab.network.settings import Member, NetworkSettings

ReadMembers = Callable[[], Sequence[Member]]


class Fence:
    """One installation's network on this host.  All methods may be called from any thread.

    `sync` returns only when the kernel was seen to hold the rules for all members, and only then
    may a machine be given power.  Where the taps are ours, a member's tap does not exist before.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._calls = itertools.count(1)
        self._served = 0
        self._applied: tuple[Member, ...] | None = None  # what the kernel was last seen to hold
        self._admitted: set[Member] = set()  # those for whom the bridge was seen to be in order

    def ensure(self) -> None:
        """Puts up rules that let nobody through, where there are none, and then the bridge.

        Rules that are there stay, since sandboxes may be running; `sync` brings them up to date.
        Conflict when bridge, subnet or table are in other hands.
        """
        with self._lock:
            nft.ensure_ruleset(self._settings)
            bridge.ensure_bridge(self._settings)

    def sync(self, read_members: ReadMembers) -> None:
        """Makes rules and taps those of the members that `read_members` gives, and no others.

        `read_members` is called with the lock held, so a late caller never applies an old list;
        callers that wait at the same time are served by one turn, which reads the list after
        they all called.  Raises Unavailable when the rules cannot be put in place or are not
        as asked when read back; then no new tap has been made.
        """
        call = next(self._calls)
        with self._lock:
            if call < self._served:
                return
            turn = next(self._calls)  # every call with a smaller number has begun by now
            self._apply(read_members())
            self._served = turn

    def _apply(self, members: Sequence[Member]) -> None:
        """Who leaves is shut out first, whatever there is against letting somebody in."""
        plan_tables(self._settings, members)  # refuses a wrong list before anything changes
        if not self._settings.own_taps:
            self._apply_rules(members)
            return
        wanted = {member.tap for member in members}
        try:
            bridge.remove_taps(self._settings, bridge.taps(self._settings) - wanted)
        finally:  # a tap that will not go is one more reason to shut it out
            nft.apply_ruleset(self._settings, members)
            self._applied = tuple(members)
        if any(member.mode is NetworkMode.NAT for member in members):
            bridge.ensure_forwarding()
        if not bridge.taps_ready(self._settings, wanted):
            bridge.ensure_bridge(self._settings)
            bridge.ensure_taps(self._settings, wanted)

    def _apply_rules(self, members: Sequence[Member]) -> None:
        """Rules alone: taps come and go with the power, and are not ours to touch."""
        self._admitted.intersection_update(members)
        nft.apply_ruleset(self._settings, members)
        self._applied = tuple(members)
        if any(member.mode is NetworkMode.NAT for member in members):
            bridge.ensure_forwarding()
        if not self._admitted.issuperset(members):
            bridge.ensure_bridge(self._settings)
            self._admitted.update(members)

    def check_port(self, tap: str) -> None:
        """Conflict unless this tap is a port of the bridge on this host, where the rules see it."""
        bridge.check_port(self._settings, tap)

    def look_at_bridge(self) -> bool:
        """Whether the bridge is ours, rather than the administrator's; NotFound, Conflict."""
        return bridge.look_at_bridge(self._settings)

    def look_at_rules(self) -> int:
        """How many sandboxes the kernel's rules admit; NotFound, Conflict, Unavailable.

        Unavailable also when they are not those that `sync` last put there.
        """
        admitted = nft.look_at_ruleset(self._settings)
        self.verify()
        return admitted

    def verify(self) -> None:
        """Raises Unavailable when the kernel's rules are not those that `sync` last put there.

        What is only asked for yet does not count: it is not others' doing.  Before the first
        `sync` of this process there is nothing to compare with.
        """
        with self._lock:
            if self._applied is not None:
                nft.verify_ruleset(self._settings, self._applied)

    def taps(self) -> set[str]:
        """The taps on this host that carry our mark."""
        return bridge.taps(self._settings)

    def remove(self) -> None:
        """Takes away all that is ours: taps first and rules last.  Absent is success.

        No machine may have power when the taps are not ours: they stay, without rules.
        """
        with self._lock:
            bridge.remove_taps(self._settings, bridge.taps(self._settings))
            bridge.remove_bridge(self._settings)
            nft.remove_ruleset(self._settings)
            self._applied = None
