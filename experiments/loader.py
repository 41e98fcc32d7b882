"""Time training steps fed by the loader against the same steps on data in memory, in turn (all measured).

    python experiments/loader.py            # writes experiments/results/loader.csv

The demo's network on its digits, and networks of 224x224 on folders of JPEGs, one of 224x224 and one of 500x375, that
this script makes and removes.  Steps on a batch in memory, while the loader rests, and steps on the loader's next
batch, while it makes another, take turns: A B A B, since what the machine does besides drifts.  The ratio is the median
of the pairs' ratios.
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
from vdnn.kernels.numpy import NumpyKernels
from vdnn.progress import progress_bar

COLUMNS = (
    *("network", "batch", "mode", "loader_threads", "image_ms_of_one_core_measured", "step_ms_memory_measured"),
    *("step_ms_loader_measured", "ratio_median_of_pairs_measured", "ratio_first_quarter_measured"),
    *("ratio_third_quarter_measured", "wait_ms_measured", "pairs"),
)
SMALL, LARGE = "224x224", "500x375"  # width by height of pictures
NORMAL = {"mean": IMAGENET_MEAN, "deviation": IMAGENET_DEVIATION}


def endless(source: Source, epoch: int = 0) -> Iterator[tuple[Any, Any]]:
    """Full batches of a source, epoch after epoch."""
    while True:
        yield from (pair for pair in source.epoch(epoch) if len(pair[1]) == source.batch)
        epoch += 1


def make_pictures(folder: Path, count: int, width: int, height: int) -> int:
    """JPEGs of two classes, in tens: patterns, half noise, to have as many bytes as photographs; their mean bytes."""
    for first in range(0, count, 10):
        images, labels = synthetic((3, height, width), 2, 10, seed=first)
        for i, (image, label) in enumerate(zip(images, labels, strict=True), start=first):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            pixels = np.clip(image * 12 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / str(label) / f"{i:04}.jpg", quality=85)
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    return sum(sizes) // len(sizes)


def image_milliseconds(loader: Loader, samples: int = 64) -> float:
    """CPU time of one image from file or cache to its place in a batch, on one thread with nothing beside it."""
    target = np.empty(loader.view.shape, np.float32)
    words = [i * (2**61 + 7) for i in range(5)]
    count = min(samples, len(loader.images))
    began = time.thread_time()
    for index in range(count):
        loader.view.place(target, loader.images.image(index), words)
        loader.view.normalise(target)
    return (time.thread_time() - began) / count * 1e3


def compare(trainer: vdnn.Trainer, loader: Loader, pairs: int, advance: Any) -> tuple[list[Any], ...]:
    """(seconds of steps from memory, from the loader, and what of these was waiting for a batch), in turn.

    What the threads do for a step from the loader they begin when it does; the step from memory begins when they rest.
    """
    batches = endless(loader)
    kept = [tuple(part.copy() for part in next(batches)) for _ in range(2)]
    memory, loaded, waited = [], [], []
    for pair in range(pairs + 1):
        rest(loader)
        began = time.perf_counter()
        trainer.step(*kept[pair % 2])
        middle = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        trainer.step(*batch)
        end = time.perf_counter()
        if pair:  # the first warms up
            memory.append(middle - began)
            loaded.append(end - middle)
            waited.append(ready - middle)
            advance(f"{median(loaded) / median(memory):.3f}")
    return memory, loaded, waited


def rest(loader: Loader) -> None:
    """Wait until the loader's threads have nothing to do."""
    for job in loader._queue:
        for piece in job.pieces:
            piece.result()


def row(trainer: vdnn.Trainer, mode: str, loader: Loader, pairs: int) -> list[Any]:
    """A line of the table for one way of loading."""
    title = f"{trainer.net.name}, {mode}"
    with loader, progress_bar(title, pairs) as advance:
        cost = image_milliseconds(loader)
        memory, loaded, waited = compare(trainer, loader, pairs, advance)
    times = [1e3 * median(part) for part in (memory, loaded)]
    ratios = sorted(b / a for a, b in zip(memory, loaded, strict=True))
    quarters = [ratios[len(ratios) * n // 4] for n in (1, 2, 3)]
    numbers = [f"{cost:.3f}", *(f"{t:.2f}" for t in times), *(f"{ratio:.4f}" for ratio in (quarters[1], quarters[0]))]
    last = f"{quarters[2]:.4f}", f"{1e3 * median(waited):.3f}"
    return [trainer.net.name, loader.batch, mode, loader.threads, *numbers, *last, len(loaded)]


def demo_rows(pairs: int) -> Iterator[list[Any]]:
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
        yield row(trainer, mode, loader, 8 * pairs)
    trainer.close()


def folder_rows(name: str, folders: dict[str, Path], pairs: int, batch: int, only: str) -> Iterator[list[Any]]:
    """A network of 224x224 on each folder: decoded each time, and the larger pictures from a cache; two crops."""
    net = vdnn.models.get(name, batch=batch, classes=2)
    trainer = vdnn.Trainer(net, "keep_all", optimizer=vdnn.SGD(1e-4, momentum=0.9))
    crops = {"random crop": Transform(224, "random", flip=True, **NORMAL)}
    crops["random resized crop"] = Transform(224, "resized", flip=True, **NORMAL)
    for crop, transform in crops.items():
        for size, cache in ((SMALL, 0), (LARGE, "2GiB"), (LARGE, 0)):
            mode = f"{size}, {crop}, {'cached' if cache else 'decoded'}"
            if only not in mode:
                continue
            images = ImageFolder(folders[size], short=224 if size == SMALL else 256, cache=cache)
            for index in range(len(images) if cache else 1):
                images.image(index)
            yield row(trainer, mode, Loader(images, batch, transform), pairs)
    trainer.close()


@click.command()
@click.option("--pairs", default=12, show_default=True, help="Steps of each kind; for the demo eight times as many.")
@click.option("--batch", default=32, show_default=True)
@click.option("--network", "networks", multiple=True, default=("alexnet", "resnet18"), show_default=True)
@click.option("--pictures", default=320, show_default=True, help="Files in the folder.")
@click.option("--only", default="", help="Of the folders only ways whose names have this in them: 224x224; no demo.")
@click.option("--quick", is_flag=True, help="A few small steps, to see that it runs.")
@click.option("--out", default=RESULTS / "loader.csv", show_default=True, type=click.Path(path_type=Path))
def main(pairs: int, batch: int, networks: tuple[str, ...], pictures: int, only: str, quick: bool, out: Path) -> None:
    """Write one line for each network and way of loading."""
    if quick:
        pairs, batch, networks, pictures = 2, 2, ("alexnet",), 10
    rows = [] if only else list(demo_rows(pairs))
    with tempfile.TemporaryDirectory() as parent:
        folders = {size: Path(parent, size) for size in (SMALL, LARGE)}
        said = [
            f"JPEGs {size} of {make_pictures(folder, pictures, *map(int, size.split('x')))} bytes"
            for size, folder in folders.items()
        ]
        for name in networks:
            rows += folder_rows(name, folders, pairs, batch, only)
    kernels = "compiled kernels" if NumpyKernels().fast else "NumPy alone"
    facts = f"{os.cpu_count()} cores", kernels, *said, "all times measured"
    write(out, COLUMNS, rows, *facts)
    for line in rows:
        click.echo("  ".join(map(str, line)))


if __name__ == "__main__":
    main()
