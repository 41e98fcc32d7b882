"""The BLAS held to one thread while vdnn's own threads call it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

MULTIPLICATIONS = 10**6  # of a product: the limit that OpenBLAS has for it
UNPACKED = ("skylakex", "cooperlake", "sapphirerapids")  # OpenBLAS's kernels, by processor, that have them


class Blas:
    """The BLAS libraries of this process, held to one thread while at least one `single` block is open.

    The libraries are looked up once: threadpoolctl's own context managers search again on each entry (720 us).
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.setters: list[tuple[Any, Callable[[int], Any]]] | None = None
        self.before: list[int | None] = []

    def find(self) -> list[tuple[Any, Callable[[int], Any]]]:
        """(its controller, the function that sets its number of threads) for every BLAS that is loaded."""
        if self.setters is None:
            try:
                import threadpoolctl
            except ImportError:  # vdnn was not installed, it runs from its folder: then the BLAS threads as it likes
                return []
            controllers = threadpoolctl.ThreadpoolController().lib_controllers
            self.setters = [(library, _setter(library)) for library in controllers if library.user_api == "blas"]
        return self.setters

    @cached_property
    def multiplies_unpacked(self) -> bool:
        """Whether products of up to MULTIPLICATIONS leave their factors where they are, instead of packing them."""
        found = [getattr(library, "architecture", None) or "" for library, _ in self.find()]
        return any(name.lower() in UNPACKED for name in found)

    def enter(self) -> None:
        """Hold the BLAS to one thread until as many `leave` as `enter` have been called."""
        with self.lock:
            if self.depth == 0:
                self.before = [library.get_num_threads() for library, _ in self.find()]
                self.hold()
            self.depth += 1

    def leave(self) -> None:
        """Undo one `enter`; the last one restores the numbers of threads."""
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                for (_, set_threads), count in zip(self.find(), self.before, strict=True):
                    if count is not None:
                        set_threads(count)

    @contextmanager
    def single(self) -> Iterator[None]:
        """Hold the BLAS to one thread inside the block; blocks may nest and overlap between threads."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def hold(self) -> None:
        """Set one thread; a BLAS on OpenMP keeps the number per calling thread, so every worker calls this too."""
        for _, set_threads in self.find():
            set_threads(1)


def _setter(library: Any) -> Callable[[int], Any]:
    """The BLAS's own function: threadpoolctl's obeys only the thread that called it first, and ignores all others."""
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            found = getattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}", None)
            if found is not None:
                found.argtypes, found.restype = [ctypes.c_int], None
                return found  # type: ignore[no-any-return]
    return library.set_num_threads  # type: ignore[no-any-return]


BLAS = Blas()  # the setting is the process's, so its keeper is too
