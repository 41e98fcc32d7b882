"""What PyTorch's autograd saves, moved to the host and back on streams of their own: a variant of gpu_torch.py."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import torch
from torch import nn

KEPT_FROM = 1 << 20  # bytes: smaller tensors are not worth a copy
STASH = 2  # tensors that may wait for the end of their copies, and that are fetched ahead


class Saved:
    """A tensor that autograd saved: on the device, on the host, or on its way."""

    def __init__(self, tensor: torch.Tensor, number: int) -> None:
        self.tensor: torch.Tensor | None = tensor
        self.number, self.uses = number, 1
        self.host: torch.Tensor | None = None
        self.done: Any = None  # event: the copy that was begun last is over


class StreamOffload:
    """Hooks for saved tensors: what backward reads leaves during forward and comes back shortly before it is read.

    The device memory of a tensor that leaves is kept until the main stream has waited for its copy, so it can never be
    used again too early, however far the host is ahead; at most two wait so.  A tensor that autograd saves twice (a
    ReLU's output is the next layer's input) leaves once.  Parameters and small tensors stay.  On a CPU the copies
    remain, the streams do not.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.staying = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.out, self.back = (torch.cuda.Stream(device) if self.cuda else None for _ in range(2))
        self.pinned: dict[Any, list[torch.Tensor]] = {}  # host memory that is used anew in each step
        self.begin()

    def begin(self) -> None:
        """Before forward: forget the step before, and wait for its last copies."""
        self.order: list[Saved] = []
        self.leaving: deque[tuple[Any, Saved]] = deque()
        self.taken: Counter[Any] = Counter()
        if self.cuda:
            self.out.wait_stream(self.back)

    def pack(self, tensor: torch.Tensor) -> Saved | torch.Tensor:
        """Begin to copy a tensor to the host."""
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        is_dense = last or tensor.is_contiguous()
        small = tensor.numel() * tensor.element_size() < (KEPT_FROM if self.cuda else 1)
        if small or not is_dense or tensor.untyped_storage().data_ptr() in self.staying:
            return tensor
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
        for known, saved in self.leaving:  # these still hold their memory, so an address means one tensor
            if known == key:
                saved.uses += 1
                self.leaving.remove((known, saved))  # it is likely to be saved once more: let it wait longest
                self.leaving.append((known, saved))
                return saved
        saved = Saved(tensor.detach(), len(self.order))
        saved.host = self._host(tensor)
        self._copy(saved, saved.host, saved.tensor, self.out)
        self.order.append(saved)
        self.leaving.append((key, saved))
        while len(self.leaving) > STASH:
            self._leave(self.leaving.popleft()[1])
        return saved

    def unpack(self, saved: Saved | torch.Tensor) -> torch.Tensor:
        """The tensor on the device; those that were saved before it begin to come back."""
        if isinstance(saved, torch.Tensor):
            return saved
        for number in range(saved.number, max(-1, saved.number - 1 - STASH), -1):
            self._fetch(self.order[number])
        if self.cuda and saved.done is not None:
            torch.cuda.current_stream(self.device).wait_event(saved.done)
        tensor = saved.tensor
        assert tensor is not None
        saved.uses -= 1
        if not saved.uses:  # autograd holds it from here
            saved.tensor = saved.host = None
        return tensor

    def _leave(self, saved: Saved) -> None:
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(saved.done)
        saved.tensor = saved.done = None

    def _fetch(self, saved: Saved) -> None:
        if saved.tensor is None and saved.host is not None and saved.uses:
            saved.tensor = torch.empty_like(saved.host, device=self.device)
            self._copy(saved, saved.tensor, saved.host, self.back)

    def _copy(self, saved: Saved, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """After all that the main stream was given, on `stream`."""
        if not self.cuda:
            target.copy_(source)
            return
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            saved.done = torch.cuda.Event()
            saved.done.record(stream)

    def _host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Page-locked memory like the tensor, the same in each step for the first, second, ... of its kind."""
        kind = (tensor.dtype, tensor.shape, tensor.stride())
        free = self.pinned.setdefault(kind, [])
        if self.taken[kind] == len(free):
            free.append(torch.empty_like(tensor, device="cpu", pin_memory=self.cuda))
        self.taken[kind] += 1
        return free[self.taken[kind] - 1]
