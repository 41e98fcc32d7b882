"""A best-fit pool as cnmem keeps one, to compare with the layout of a plan: what it is worth to know a step beforehand.

The paper takes the GPU's memory once and sub-allocates from it with NVIDIA's cnmem while a step runs (section III-B).
What cnmem does (github.com/NVIDIA/cnmem, src/cnmem.cpp and include/cnmem.h, version 1.0.0):

    sizes       requests and the pool are rounded up to 512 bytes; a request for no bytes takes no block
    search      all free blocks, by ascending address: the smallest that is large enough, the first of equals
    split       the request takes the block's low end; what is left is a free block, however small
    merge       a freed block joins the free blocks that touch it, below and above, at once
    boundaries  blocks of different calls of cudaMalloc never join; a pool that may not grow has one call's
    streams     each registered stream has its own lists, which get and keep blocks of the common pool; a request that
                finds no room takes a free block from another stream, once that stream has finished its work

Here is one list, as for cnmem's null stream, in one slab that does not grow, for the paper's pool has all the memory.
Frees count at once, in plan order; cnmem's user would first have to wait for the streams that work on the block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from vdnn.memory.plan import Plan
from vdnn.tape import GRANULE, granules

EFFORT = 2_000_000  # requests: a few seconds at most
_UNBOUNDED = 1 << 60  # bytes

Requests = list[tuple[str, int | None]]  # (name, bytes to allocate, or None to free)


class PoolError(RuntimeError):
    """The pool cannot do what it is asked for.

    If memory has run out, needed_bytes, largest_free_bytes and free_bytes say how far it goes; else they are 0.
    """

    def __init__(self, message: str, needed_bytes: int = 0, largest_free_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.largest_free_bytes = largest_free_bytes
        self.free_bytes = free_bytes


class Pool:
    """Blocks of one slab of `size_bytes`, given to names by best fit; sizes are rounded up to `alignment` bytes.

    used_bytes        of the blocks in use, rounding included
    high_water_bytes  the highest end of a block so far

    Used and free blocks cover the slab, and no two free ones touch.
    Raises ValueError unless `size_bytes` is a positive multiple of `alignment`.
    """

    def __init__(self, size_bytes: int, alignment: int = GRANULE) -> None:
        if alignment < 1 or size_bytes < 1 or size_bytes % alignment:
            raise ValueError(f"size_bytes={size_bytes} must be a positive multiple of alignment={alignment}")
        self.size_bytes = size_bytes
        self.alignment = alignment
        self.used_bytes = 0
        self.high_water_bytes = 0
        self._used: dict[str, tuple[int, int]] = {}  # {name: (offset, size)}
        self._freed: set[str] = set()
        self._free: list[tuple[int, int]] = []  # (size, offset), ascending: the first that is large enough is the best
        self._begin: dict[int, int] = {}  # {offset: size} of the free blocks
        self._end: dict[int, int] = {}  # {end: size} of the free blocks
        self._add(0, size_bytes)

    @property
    def largest_free_bytes(self) -> int:
        """The largest request that would find room."""
        return self._free[-1][0] if self._free else 0

    def allocate(self, name: str, nbytes: int) -> int:
        """The offset in bytes of a block for `name`: the low end of the smallest free block, the lowest of equals.

        Raises PoolError if no free block is large enough, or `name` has a block already; ValueError if nbytes < 0.
        """
        if name in self._used:
            raise PoolError(f"{name} already has {self._used[name][1]} bytes at {self._used[name][0]}")
        size = self._rounded(nbytes)
        offset = self._extract(name, size) if size else 0
        self._used[name] = offset, size
        self._freed.discard(name)
        self.used_bytes += size
        self.high_water_bytes = max(self.high_water_bytes, offset + size)
        return offset

    def free(self, name: str) -> None:
        """Take the block of `name` back and join it with its free neighbours.  Raises PoolError if it has none."""
        if name not in self._used:
            raise PoolError(f"{name} is already free" if name in self._freed else f"{name} was never allocated")
        offset, size = self._used.pop(name)
        self._freed.add(name)
        self.used_bytes -= size
        if not size:
            return
        below, above = self._end.get(offset, 0), self._begin.get(offset + size, 0)
        if below:
            self._remove(offset - below, below)
        if above:
            self._remove(offset + size, above)
        self._add(offset - below, below + size + above)

    def turns_at(self, nbytes: int) -> int | None:
        """The least larger slab in which a request for `nbytes` would now go otherwise: elsewhere, or not fail.

        None if there is none.  A larger slab differs in its top free block only.  Once that has `size` bytes it serves
        the request, unless a hole fits as well or better; once as large as the best hole, it loses to it for good.
        """
        size = self._rounded(nbytes)
        best = bisect_left(self._free, (size,))
        top = self._end.get(self.size_bytes, 0)
        start = self.size_bytes - top
        if best < len(self._free) and self._free[best] == (top, start):
            best += 1
        hole = self._free[best][0] if best < len(self._free) else None
        turns = hole if hole is not None and top >= size else size
        return start + turns if size and top < turns and hole != size else None

    def grown(self, size_bytes: int) -> Pool:
        """A copy in a larger slab, in which only the top free block is larger.  Raises ValueError for a smaller one."""
        top = self._end.get(self.size_bytes, 0)
        start = self.size_bytes - top
        if size_bytes <= self.size_bytes:
            raise ValueError(f"size_bytes={size_bytes} does not exceed the pool's {self.size_bytes}")
        copy = Pool(size_bytes, self.alignment)
        copy.used_bytes, copy.high_water_bytes = self.used_bytes, self.high_water_bytes
        copy._used, copy._freed, copy._free = self._used.copy(), self._freed.copy(), self._free.copy()
        copy._begin, copy._end = self._begin.copy(), self._end.copy()
        if top:
            copy._remove(start, top)
        copy._add(start, size_bytes - start)
        return copy

    def _rounded(self, nbytes: int) -> int:
        if nbytes < 0:
            raise ValueError(f"nbytes={nbytes} is below 0")
        return -(-nbytes // self.alignment) * self.alignment

    def _extract(self, name: str, size: int) -> int:
        """The offset of `size` bytes that are free no longer.  Raises PoolError."""
        best = bisect_left(self._free, (size,))
        if best == len(self._free):
            largest, free = self.largest_free_bytes, self.size_bytes - self.used_bytes
            raise PoolError(
                f"{name} needs {size} bytes; the largest free block has {largest}, all {best} free blocks together "
                f"have {free} of the pool's {self.size_bytes}",
                *(size, largest, free),
            )
        room, offset = self._free[best]
        self._remove(offset, room)
        if room > size:
            self._add(offset + size, room - size)
        return offset

    def _add(self, offset: int, size: int) -> None:
        insort(self._free, (size, offset))
        self._begin[offset] = self._end[offset + size] = size

    def _remove(self, offset: int, size: int) -> None:
        del self._free[bisect_left(self._free, (size, offset))]
        del self._begin[offset], self._end[offset + size]


@dataclass(frozen=True)
class PoolReport:
    """What a plan's allocs and frees need of a best-fit pool, in plan order; exact bytes of a simulated pool.

    peak_bytes        most bytes live at one time: no pool and no layout needs less
    arena_bytes       what the plan's own layout needs
    needed_bytes      the least pool found in which no request fails; a larger one may fail (best fit is not monotone)
    secure_bytes      the least pool from which on none fails, however large; None if the search ended before it
    high_water_bytes  the highest end in a pool without bound; one of this size may fail
    searched_bytes    every pool smaller than this was looked at; None if every one was
    offsets           where the pool of `needed_bytes` puts each alloc of the plan
    """

    peak_bytes: int
    arena_bytes: int
    needed_bytes: int
    secure_bytes: int | None
    high_water_bytes: int
    searched_bytes: int | None
    offsets: tuple[int, ...]

    @property
    def is_least(self) -> bool:
        """Whether every pool smaller than `needed_bytes` fails, and not only those that were looked at."""
        return self.searched_bytes is None or self.needed_bytes <= self.searched_bytes

    @property
    def arena_ratio(self) -> float:
        """Fragmentation of the plan's layout: arena / peak."""
        return self.arena_bytes / self.peak_bytes

    @property
    def pool_ratio(self) -> float:
        """Fragmentation of the least pool found: needed / peak."""
        return self.needed_bytes / self.peak_bytes


def replay(plan: Plan, effort: int = EFFORT) -> PoolReport:
    """What the plan's allocs and frees, in plan order and so with resident buffers first, need of a best-fit pool.

    `effort` bounds the search in requests, a few microseconds each.  If it ends before a pool has served all, then
    pools larger by thousandths of the peak are tried.
    Raises ValueError for a plan that allocates nothing, or with network-wide lifetimes, where slots are shared and
    nothing is freed; PoolError if the plan frees what is not there.
    """
    requests, peak = _requests(plan), plan.peak_bytes
    if not peak:
        raise ValueError(f"a plan of {len(plan.steps)} steps that allocates no bytes needs no pool")
    replays = list(_sweep(requests, peak, max(effort, 1)))
    searched = replays[-1][2]
    secure = max((after or 0 for _, fitted, after in replays if not fitted), default=peak)
    needed = next((size for size, fitted, _ in replays if fitted), searched or peak)
    while not fits(plan, needed):
        needed += granules(1 + peak // 1000)
    unbounded = Pool(_UNBOUNDED)
    _run(unbounded, requests)
    offsets = tuple(_run(Pool(needed), requests))
    sizes = peak, plan.arena_bytes, needed, secure if searched is None else None
    return PoolReport(*sizes, unbounded.high_water_bytes, searched, offsets)


def fits(plan: Plan, size_bytes: int) -> bool:
    """Whether no request of the plan fails in a pool of `size_bytes`.  Raises as `replay` and Pool do."""
    try:
        _run(Pool(size_bytes), _requests(plan))
    except PoolError as error:
        if not error.needed_bytes:
            raise
        return False
    return True


def _requests(plan: Plan) -> Requests:
    if plan.decisions.lifetimes == "network":
        raise ValueError(f"{plan.policy or 'the plan'} has network-wide lifetimes: a pool has no use for shared slots")
    kinds = ("alloc", "free")
    return [(s.name, plan.size(s.name) if s.kind == "alloc" else None) for s in plan.steps if s.kind in kinds]


def _run(pool: Pool, requests: Requests) -> list[int]:
    """The offset of each alloc.  Raises PoolError at the first request that fails."""
    offsets = []
    for name, nbytes in requests:
        if nbytes is None:
            pool.free(name)
        else:
            offsets.append(pool.allocate(name, nbytes))
    return offsets


def _sweep(requests: Requests, size_bytes: int, effort: int) -> Iterator[tuple[int, bool, int | None]]:
    """(size of a pool, whether all fits, the next size that goes another way or None), ascending from `size_bytes`.

    What lies between a size and the next goes as the first of the two, so thousands of replays answer for all sizes.
    Each begins at the request where it turns away from one before.  The sweep ends once `effort` requests are served.
    """
    turns = [(0, Pool(size_bytes))]  # (the request that goes otherwise, the pool before it), the smallest last
    while turns and effort > 0:
        first, pool = turns.pop()
        served = first
        while served < len(requests) and _serve(pool, requests, served, turns):
            served += 1
        effort -= served - first + 1
        yield pool.size_bytes, served == len(requests), turns[-1][1].size_bytes if turns else None


def _serve(pool: Pool, requests: Requests, i: int, turns: list[tuple[int, Pool]]) -> bool:
    """Serve request `i` if there is room, and note the pool in which it would go otherwise if that is the smallest."""
    name, nbytes = requests[i]
    if nbytes is None:
        pool.free(name)
        return True
    turn = pool.turns_at(nbytes)
    if turn is not None and (not turns or turn < turns[-1][1].size_bytes):
        turns.append((i, pool.grown(turn)))
    fitted = nbytes <= pool.largest_free_bytes
    if fitted:
        pool.allocate(name, nbytes)
    return fitted
