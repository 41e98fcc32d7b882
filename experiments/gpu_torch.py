"""The same networks in PyTorch, trained in the ways that PyTorch's users have: the other half of gpu_bench.py.

A process of its own, so that its memory can be told apart: it reads commands and writes answers, each a line of JSON.

    {"do": "open", "network": "vgg19", "batch": 64, "options": {}, "math": "fp32", "variant": "eager",
     "channels_last": false, "warm_up": 4}
    {"do": "run", "steps": 5}       seconds of a step, from the first copy of its images to the end of its update
    {"do": "close"}                 gives the memory back

A network is translated from vdnn's graph layer by layer and starts with the same weights.  Its variants:

eager           everything kept
save_on_cpu     torch.autograd.graph.save_on_cpu with page-locked memory
checkpoint      torch.utils.checkpoint around each block of a network that has blocks, or about sqrt(n) parts of a chain
stream_offload  saved tensors leave on a stream of their own and come back on another, two ahead of their use
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from children import answers_apart
from gpu_bench_plan import batch_for, network_of
from gpu_torch_offload import StreamOffload
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch_twin import Translated, first_weights

from vdnn.network import Network

VARIANTS = ("eager", "save_on_cpu", "checkpoint", "stream_offload")


class Training:
    """One network under one variant, with the optimizer of the comparison."""

    def __init__(
        self, net: Network, weights: dict[str, np.ndarray], batch: Any, variant: str, channels_last: bool, rate: float
    ) -> None:
        self.variant = variant
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        with self.device:  # where PyTorch's own first values, which are not used, take no time
            self.model = Translated(net)
        self.model.load(weights)
        self.model.to(memory_format=layout).train()
        self.parts = self.model.parts() if variant == "checkpoint" else list(self.model.pieces)
        self.optimizer = torch.optim.SGD(self.model.parameters(), rate, momentum=0.9)
        images, labels = (torch.from_numpy(a) for a in batch)
        images = images.contiguous(memory_format=layout)
        self.host = [a.pin_memory() if self.device.type == "cuda" else a for a in (images, labels)]
        self.offload = StreamOffload(self.model, self.device) if variant == "stream_offload" else None

    def _loss(self) -> torch.Tensor:
        x, labels = (a.to(self.device, non_blocking=True) for a in self.host)
        for part in self.parts:
            if self.variant == "checkpoint":  # nothing in these networks is random, so there is no state to keep
                x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = part(x)
        return functional.cross_entropy(x, labels)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        if self.variant == "save_on_cpu":
            with save_on_cpu(pin_memory=self.device.type == "cuda"):
                yield
        elif self.offload is not None:
            self.offload.begin()
            with saved_tensors_hooks(self.offload.pack, self.offload.unpack):
                yield
        else:
            yield

    def step(self) -> torch.Tensor:
        """One step; its images and labels come from page-locked memory.  The loss stays on the device."""
        with self._saving():
            loss = self._loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, steps: int) -> tuple[float, list[float]]:
        """(seconds of one of so many steps, all losses); the host waits for the device only at the end."""
        self._wait()
        began = time.perf_counter()
        losses = [self.step() for _ in range(steps)]
        self._wait()
        return (time.perf_counter() - began) / steps, [float(loss) for loss in losses]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Answers:
    """What the commands do."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.given: dict[str, Any] = {}  # the weights and the batch of the network asked for last

    def about(self) -> dict[str, Any]:
        """Versions."""
        cuda = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if cuda else "cpu"
        return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "device": name}

    def open(
        self,
        network: str,
        batch: int,
        options: dict[str, Any],
        math: str,
        variant: str,
        channels_last: bool,
        warm_up: int,
        rate: float,
    ) -> dict[str, Any]:
        """Build, warm up; losses of the first steps, most bytes of device memory in a later one."""
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        self.close()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = math == "tf32"
        self._prepare(network, batch, options)
        given = self.given
        self.training = Training(given["net"], given["weights"], given["batch"], variant, channels_last, rate)
        _, losses = self.training.run(warm_up)
        cuda = torch.cuda.is_available()
        if cuda:  # what the search for algorithms took is over
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds, more = self.training.run(1)
        found: dict[str, Any] = {"losses": losses + more, "step_seconds": seconds}
        if cuda:
            found |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return found

    def run(self, steps: int) -> dict[str, Any]:
        """Seconds of a step."""
        assert self.training is not None, "nothing is open"
        seconds, losses = self.training.run(steps)
        return {"step_seconds": seconds, "loss": losses[-1]}

    def close(self) -> dict[str, Any]:
        """Give the memory back, page-locked memory too."""
        self.training = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            getattr(torch._C, "_host_emptyCache", lambda: None)()
        return {}

    def _prepare(self, network: str, batch: int, options: dict[str, Any]) -> None:
        """The network, and the weights and the batch that vdnn trains it with."""
        key = [network, batch, options]
        if self.given.get("key") != key:
            net = network_of(network, batch, options)
            self.given = {"key": key, "net": net, "weights": first_weights(net), "batch": batch_for(net)}


def main() -> None:
    """Answer commands until there are no more."""
    answer_to = answers_apart()
    answers = Answers()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            found = getattr(answers, command.pop("do"))(**command)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            found = {"error": text}
            with contextlib.suppress(Exception):
                del error
                answers.close()
        print(json.dumps(found), file=answer_to, flush=True)


if __name__ == "__main__":
    main()
