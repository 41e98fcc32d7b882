"""Descent: better ways from given ones, by the scheduler's estimate of each change.

repair    changes ways, the cheapest for its bytes first, until everything has room
fill      keeps what costs most for its bytes, as far as there is room
sweep     drops what is copied, many at once, and fills
descend   tries to take back what costs most: keep it, or the other way to be without it; what has no room then
          is repaired elsewhere, so that one change pays for another
anneal    walks at random, at first to the worse as well
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vdnn.memory.schedule import Schedule, Scheduler, Way

Ways = dict[str, Way]
SMALLEST = 1e-9  # seconds: smaller gains are rounding
FILLS = 3  # prefixes, one after the other
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds to run again, for a second of copies
NEGLIGIBLE = 1e-5  # of the step: waits that are not worth a change


@dataclass
class Descent:
    """Looks for the best fates within `limit` bytes; it stops early when `is_over()`."""

    scheduler: Scheduler
    limit: int
    is_over: Callable[[], bool]
    tried: int = 0
    known: dict[tuple[Way, ...], Schedule] = field(default_factory=dict)

    def schedule(self, ways: Mapping[str, Way]) -> Schedule:
        """The schedule of these ways within the limit."""
        key = tuple(ways.get(b, Way.KEEP) for b in self.scheduler.movable)
        found = self.known.get(key)
        if found is None:
            self.tried += 1
            found = self.known[key] = self.scheduler.schedule(ways, self.limit)
        return found

    # ---- repair

    def repair(self, ways: Mapping[str, Way], frozen: str = "", changes: int = 10**9) -> Schedule:
        """Fates that have room, if changing some of these, but not `frozen`, leads there; else as near as it got."""
        now = dict(ways)
        found = self.schedule(now)
        while found.overflow and changes > 0 and not self.is_over():
            flips = self._relief(now, found, frozen)[:changes]
            if not flips:
                break
            changes -= len(flips)
            now.update(flips)
            after = self.schedule(now)
            if after.overflow >= found.overflow and after.worst == found.worst and len(flips) == 1:
                return min(after, found, key=lambda s: s.rank)
            found = after
        return found

    def _relief(self, ways: Mapping[str, Way], found: Schedule, frozen: str) -> list[tuple[str, Way]]:
        """The changes, cheapest for its bytes first, that give the worst place as many bytes as it lacks."""
        scheduler = self.scheduler
        price = self._link_price(ways, found)
        offers = []
        for b, was_late in scheduler.crossing(found):
            if b == frozen:
                continue
            for way, seconds in self._costs(b, ways, price, was_late):
                offers.append((seconds / scheduler.size[b], b, way))
        chosen: dict[str, Way] = {}
        lacking = found.overflow
        for _, b, way in sorted(offers, key=lambda offer: offer[:2]):
            if lacking <= 0:
                break
            if b not in chosen:
                chosen[b] = way
                lacking -= scheduler.size[b]
        return list(chosen.items()) or self._last_resort(ways, found, frozen)

    def _costs(self, b: str, ways: Mapping[str, Way], price: float, was_late: bool) -> Iterator[tuple[Way, float]]:
        """The ways that would free a buffer where it crosses, with the seconds that each is supposed to cost.

        Between two uses in backward only that frees it which lets it leave again.
        """
        scheduler, given = self.scheduler, ways.get(b, Way.KEEP)
        copies = price * (scheduler.out[b] + scheduler.back[b])
        if given is not Way.EACH:
            yield Way.EACH, copies + price * scheduler.back[b] + SMALLEST
        if not was_late and given is Way.KEEP:
            yield Way.OFFLOAD, copies
            if b in scheduler.makers:
                yield Way.DROP, scheduler.rerun_seconds(b, ways)

    def _last_resort(self, ways: Mapping[str, Way], found: Schedule, frozen: str) -> list[tuple[str, Way]]:
        """Where nothing crosses: what the op touches because it was dropped is moved; else all that was dropped is."""
        scheduler = self.scheduler
        op = found.runs[found.worst]
        touched = {*scheduler.reads[op], *scheduler.writes[op]}
        dropped = [b for b in scheduler.movable if ways.get(b) is Way.DROP and b != frozen]
        return [(b, Way.EACH) for b in dropped if b in touched] or [(b, Way.EACH) for b in dropped]

    def _link_price(self, ways: Mapping[str, Way], found: Schedule) -> float:
        """Seconds that a second of copies is supposed to cost: the busier the link, the more."""
        scheduler = self.scheduler
        moved = [b for b, way in ways.items() if way.is_moved]
        busy = 2 * max(sum(scheduler.out[b] for b in moved), sum(scheduler.back[b] for b in moved))
        return min(1.0, 0.05 + (busy / max(found.seconds, SMALLEST)) ** 2)

    # ---- fill

    def fill(self, ways: Mapping[str, Way]) -> Schedule:
        """Keep what costs most for its bytes, as far as there is room: a prefix of that order, then of the rest."""
        found = self.repair(ways)
        gain = {b: self._gain(b, found.ways) / self.scheduler.size[b] for b in found.ways}
        order = sorted((b for b, way in found.ways.items() if way is not Way.KEEP), key=lambda b: (-gain[b], b))
        best = found
        for _ in range(FILLS):
            kept, found = self._longest_prefix(order, found)
            best = min(best, found, key=lambda s: s.rank)  # copies may need the room more
            order = order[kept + 1 :]
            if not order or self.is_over():
                break
        return best

    def _gain(self, b: str, ways: Mapping[str, Way]) -> float:
        """Seconds that its way is supposed to cost if the link is busy."""
        scheduler = self.scheduler
        return scheduler.rerun_seconds(b, ways) if ways[b] is Way.DROP else scheduler.out[b] + scheduler.back[b]

    def _longest_prefix(self, order: list[str], found: Schedule) -> tuple[int, Schedule]:
        """How many of these, from the first, can be kept with no more overflow, and the schedule with them."""
        kept, most = 0, len(order)
        best = found
        while kept < most:
            count = (kept + most + 1) // 2
            tried = self.schedule({**found.ways, **dict.fromkeys(order[:count], Way.KEEP)})
            if tried.overflow <= found.overflow:
                kept, best = count, tried
            else:
                most = count - 1
        return kept, best

    # ---- descend

    def sweep(self, start: Schedule) -> Schedule:
        """Drop what is offloaded, many at once, the cheapest to run again for its copies first, as far as it pays."""
        scheduler, best = self.scheduler, start
        for share in SHARES:
            moved = [b for b, way in start.ways.items() if way.is_moved and b in scheduler.makers]
            cheap = [
                b
                for b in moved
                if scheduler.rerun_seconds(b, best.ways) < share * (scheduler.out[b] + scheduler.back[b])
            ]
            if cheap:
                found = self.fill({**start.ways, **dict.fromkeys(cheap, Way.DROP)})
                best = min(best, found, key=lambda s: s.rank)
            if self.is_over():
                break
        return best

    def descend(self, start: Schedule, most: int = 10**9) -> Schedule:
        """The best schedule that single changes, repaired where they have no room, lead to; after `most` trials or so
        the best so far.
        """
        best, until = start, self.tried + most
        improved = True
        while improved and not self.is_over() and self.tried < until:
            improved = False
            for b in self._costly(best):
                for found in self._without(b, best):
                    if found.overflow <= best.overflow and found.seconds < best.seconds - SMALLEST:
                        best, improved = found, True
                        break
                if self.is_over() or self.tried >= until:
                    break
        return best

    def _costly(self, found: Schedule) -> list[str]:
        """Buffers that are not kept and that seconds could be won with, the most costly first."""
        scheduler, ways = self.scheduler, found.ways
        waits = sum(found.waited.values()) > NEGLIGIBLE * found.seconds

        def cost(b: str) -> float:
            if ways[b] is Way.DROP:
                return scheduler.rerun_seconds(b, ways)
            copies = scheduler.out[b] + scheduler.back[b]
            return found.waited.get(b, 0.0) + (1e-3 * copies if waits else 0.0)

        costs = {b: cost(b) for b in scheduler.movable if ways[b] is not Way.KEEP}
        return sorted((b for b in costs if costs[b] > 0), key=lambda b: (-costs[b], b))

    def _without(self, b: str, best: Schedule) -> Iterator[Schedule]:
        """Schedules with another way for `b`."""
        ways = dict(best.ways)
        given = ways[b]
        for way in (Way.KEEP, Way.DROP, Way.OFFLOAD):
            if way is given or (way is Way.DROP and b not in self.scheduler.makers):
                continue
            ways[b] = way
            found = self.schedule(ways)
            if found.overflow > best.overflow:
                found = self.repair(ways, frozen=b, changes=6)
            yield found

    # ---- anneal

    def anneal(self, start: Schedule, lot: random.Random, turns: int, heat: float) -> Schedule:
        """The best schedule of a random walk that takes steps to the worse ever more rarely.

        heat   seconds by which a step may be worse, about, at first
        """
        now = best = start
        costly = self._costly(now)
        for turn in range(turns):
            if self.is_over():
                break
            found = self._neighbour(now, costly, lot)
            allowed = -heat * (1 - turn / turns) * math.log(1 - lot.random())
            if found.overflow <= now.overflow and found.seconds < now.seconds + allowed:
                now = found
                costly = self._costly(now)
                best = min(best, now, key=lambda s: s.rank)
        return best

    def _neighbour(self, now: Schedule, costly: list[str], lot: random.Random) -> Schedule:
        """A schedule with one to three other ways, half of them of what costs most, repaired."""
        scheduler, ways = self.scheduler, dict(now.ways)
        for _ in range(lot.choice((1, 1, 1, 2, 2, 3))):
            if costly and lot.random() < 0.5:
                b = costly[int(len(costly) * lot.random() ** 2)]
            else:
                b = lot.choice(scheduler.movable)
            ways[b] = lot.choice([w for w in Way if w is not ways[b] and (w is not Way.DROP or b in scheduler.makers)])
        found = self.schedule(ways)
        return self.repair(ways, changes=4) if found.overflow > now.overflow else found
