"""Time training steps fed by the loader against the same steps on data in memory, in turn (all measured).

    python experiments/loader.py            # writes experiments/results/loader.csv

The demo's network on its digits, and a network of 224x224 on a folder of JPEGs of 500x375 that this script makes and
removes.  Each mode is a loader that runs all the time, as it does in training, while steps on the same kind of batch
from memory alternate with it: A B A B, in blocks of a few steps, since what the machine does besides drifts.  In the
steps from memory its threads have nothing to do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from PIL import Image
from record import RESULTS, write

import vdnn
from vdnn.data import ArraySet, ImageFolder, Loader, Source, Transform, digits, synthetic
from vdnn.data.transform import IMAGENET_DEVIATION, IMAGENET_MEAN
from vdnn.progress import progress_bar

COLUMNS = (
    *("network", "batch", "mode", "loader_threads", "image_ms_of_one_core_measured", "step_ms_memory_measured"),
    *("step_ms_loader_measured", "ratio_measured", "ratio_of_best_measured", "wait_ms_measured", "steps_of_each"),
)
NORMAL = {"mean": IMAGENET_MEAN, "deviation": IMAGENET_DEVIATION}


def endless(source: Source, epoch: int = 0) -> Iterator[tuple[Any, Any]]:
    """Full batches of a source, epoch after epoch."""
    while True:
        yield from (pair for pair in source.epoch(epoch) if len(pair[1]) == source.batch)
        epoch += 1


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of 500x375 in two classes: patterns, half noise so that they have as many bytes as photographs do."""
    for first in range(0, count, 10):
        images, labels = synthetic((3, 375, 500), 2, 10, seed=first)
        for i, (image, label) in enumerate(zip(images, labels, strict=True), start=first):
            (folder / str(label)).mkdir(exist_ok=True)
            pixels = np.clip(image * 12 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / str(label) / f"{i:04}.jpg", quality=85)


def image_milliseconds(loader: Loader, samples: int = 64) -> float:
    """CPU time of one image from file or cache to its place in a batch, on one thread with nothing beside it."""
    target = np.empty(loader.view.shape, np.float32)
    words = np.arange(5, dtype=np.uint64) * np.uint64(2**61 + 7)
    count = min(samples, len(loader.images))
    began = time.thread_time()
    for index in range(count):
        loader.view.write(target, loader.images.image(index), words)
    return (time.thread_time() - began) / count * 1e3


def compare(trainer: vdnn.Trainer, loader: Loader, rounds: int, block: int, advance: Any) -> tuple[list[Any], ...]:
    """(seconds of steps from memory, from the loader, and what of these was waiting for a batch)."""
    batches = endless(loader)
    kept = [tuple(part.copy() for part in next(batches)) for _ in range(2)]
    memory, loaded, waited = [], [], []
    for _ in range(rounds):
        for step in range(block):
            began = time.perf_counter()
            trainer.step(*kept[step % 2])
            memory.append(time.perf_counter() - began)
        for step in range(block + 1):
            began = time.perf_counter()
            pair = next(batches)
            wait = time.perf_counter() - began
            trainer.step(*pair)
            if step:  # the first finds a full queue, and starts the threads again
                loaded.append(time.perf_counter() - began)
                waited.append(wait)
        advance(f"{median(loaded) / median(memory):.3f}")
    return memory, loaded, waited


def row(trainer: vdnn.Trainer, mode: str, loader: Loader, rounds: int, block: int) -> list[Any]:
    """A line of the table for one way of loading."""
    title = f"{trainer.net.name}, {mode}"
    with loader, progress_bar(title, rounds) as advance:
        cost = image_milliseconds(loader)
        memory, loaded, waited = compare(trainer, loader, rounds, block, advance)
    times = [1e3 * median(part) for part in (memory, loaded)]
    best = min(loaded) / min(memory)
    numbers = [f"{cost:.3f}", *(f"{t:.2f}" for t in times), f"{times[1] / times[0]:.4f}", f"{best:.4f}"]
    wait = f"{1e3 * median(waited):.3f}"
    return [trainer.net.name, loader.batch, mode, loader.threads, *numbers, wait, len(loaded)]


def demo_rows(rounds: int) -> Iterator[list[Any]]:
    """The demo's step: digits in memory as floats, and as bytes that move at random."""
    net = vdnn.models.digits_vgg(batch=128)
    data = digits()
    images = np.round(data.train_images * 16).astype(np.uint8)
    modes = {
        "float32 as they are": (data.train_images, Transform()),
        "uint8, random crop": (images, Transform(crop="random", padding=1, deviation=16 / 255)),
    }
    trainer = vdnn.Trainer(net, "vdnn_dyn", "10MiB", optimizer=vdnn.Adam(2e-3))
    for mode, (pixels, transform) in modes.items():
        loader = Loader(ArraySet(pixels, data.train_labels), 128, transform)
        yield row(trainer, mode, loader, 4 * rounds, 12)
    trainer.close()


def folder_rows(name: str, pictures: Path, rounds: int, batch: int) -> Iterator[list[Any]]:
    """A network of 224x224 on the folder: decoded each time, from the cache, and both with random crops."""
    net = vdnn.models.get(name, batch=batch, classes=2)
    trainer = vdnn.Trainer(net, "keep_all", optimizer=vdnn.SGD(1e-4, momentum=0.9))
    crops = {"random crop": Transform(224, "random", flip=True, **NORMAL)}
    crops["random resized crop"] = Transform(224, "resized", flip=True, **NORMAL)
    for crop, transform in crops.items():
        for cache in ("2GiB", 0):
            images = ImageFolder(pictures, cache=cache)
            for index in range(len(images) if cache else 1):
                images.image(index)
            mode = f"{crop}, {'cached' if cache else 'decoded'}"
            yield row(trainer, mode, Loader(images, batch, transform), rounds, 3)
    trainer.close()


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Blocks of steps of each kind.")
@click.option("--batch", default=32, show_default=True)
@click.option("--network", "networks", multiple=True, default=("alexnet", "resnet18"), show_default=True)
@click.option("--pictures", default=320, show_default=True, help="Files in the folder.")
@click.option("--quick", is_flag=True, help="A few small steps, to see that it runs.")
@click.option("--out", default=RESULTS / "loader.csv", show_default=True, type=click.Path(path_type=Path))
def main(rounds: int, batch: int, networks: tuple[str, ...], pictures: int, quick: bool, out: Path) -> None:
    """Write one line for each network and way of loading."""
    if quick:
        rounds, batch, networks, pictures = 1, 2, ("alexnet",), 10
    rows = list(demo_rows(rounds))
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), pictures)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) // pictures
        for name in networks:
            rows += folder_rows(name, Path(folder), rounds, batch)
    facts = f"{os.cpu_count()} cores", f"JPEGs 500x375 of {size} bytes", "all times measured"
    write(out, COLUMNS, rows, *facts)
    for line in rows:
        click.echo("  ".join(map(str, line)))


if __name__ == "__main__":
    main()
