"""Timeline pages of VGG-E(256) (simulated) and of the demo's network (measured), and a recording of 10,000 steps.

    python experiments/timeline.py      # writes runs/timeline/ and, with a browser, the pictures in docs/

Pages are opened in a headless Chromium where Debian's chromium, chromium-driver and selenium are; what is printed then
is how long that took until all was drawn, and what was asked of the network: only the page itself is allowed.
Exit status 1 if a page takes 6 MB or 3 s, asks for anything, or complains; or if a trace takes 20 MB.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import demo
import numpy as np
from rich.console import Console

import vdnn
from vdnn import models
from vdnn.data import digits
from vdnn.layers import Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.progress import progress_bar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the headless browser of the tests

PAGE_BYTES, PAGE_SECONDS, TRACE_BYTES = 6_000_000, 3.0, 20_000_000
BUDGET = "12GiB"


def vgg_e(policy: str) -> vdnn.Trace:
    """One simulated step of VGG-E, batch 256, on a Titan X with cuDNN 4's kernels."""
    made = vdnn.plan(
        models.vgg19(batch=256), policy, budget=BUDGET, hardware="titan-x", kernels="cudnn4", optimizer="sgd"
    )
    return vdnn.simulate(made, vdnn.roofline("titan-x"))


def demo_step() -> tuple[vdnn.Trace, int]:
    """(the fourth step of the demo's training as measured on this CPU, its budget)."""
    budget = demo.trainer("keep_all", None, "memory", 0).plan.arena_bytes // 2
    run = demo.trainer("vdnn_dyn", budget, "mixed", 0)
    data = digits()
    for _ in range(4):
        run.step(data.train_images[: demo.BATCH], data.train_labels[: demo.BATCH])
    assert run.trace is not None
    return run.trace, budget


def recorded(steps: int) -> vdnn.Recorder:
    """A recording of a tiny network's training under vdnn_all."""
    net = vdnn.Network((8, 1, 8, 8), name="tiny")
    x = net.input
    for _ in range(3):
        x = net.add(ReLU(), net.add(Conv2d(4, 3, padding=1), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(10), net.add(Flatten(), x)))
    trainer = vdnn.Trainer(net, policy="vdnn_all", algorithms="memory", threads=1)
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
    with progress_bar("recording", steps) as advance, vdnn.record(trainer, last=20) as recorder:
        for number in range(steps):
            trainer.step(images, np.arange(8))
            advance(f"step {number + 1}")
    return recorder


def opened(page: Path, picture: Path, height: int) -> tuple[float, list[str]]:
    """(seconds until the page was drawn, what it asked for or complained of); its picture is written."""
    from browser import chromium, complaints, figures, open_page, requests, tip_at

    with chromium(1280, height) as driver:
        seconds = open_page(driver, page)
        wrong = [url for url in requests(driver) if url != page.resolve().as_uri()] + complaints(driver)
        streams = figures(driver)[1]
        tip_at(driver, streams["x"] + 0.62 * streams["width"], streams["y"] + 12)  # shows what pointing at an op says
        picture.write_bytes(driver.get_screenshot_as_png())
    return seconds, wrong


@click.command()
@click.option("--steps", default=10_000, show_default=True, help="Of the recording.")
@click.option("--out", default="runs/timeline", show_default=True, type=click.Path(path_type=Path))
@click.option("--docs", default=str(ROOT / "docs"), type=click.Path(path_type=Path), help="Where pictures go.")
def main(steps: int, out: Path, docs: Path) -> None:
    """Write the pages and the recording, and say what they take."""
    from browser import why_not

    out.mkdir(parents=True, exist_ok=True)
    dyn, (measured, budget) = vgg_e("vdnn_dyn"), demo_step()
    pages = {
        "timeline_vgg_e": (dyn.save_html(out / "vgg_e.html", budget=BUDGET), 1150),
        "timeline_against": (vgg_e("vdnn_all").save_html(out / "against.html", other=dyn, budget=BUDGET), 1900),
        "timeline_demo": (measured.save_html(out / "demo.html", budget=budget), 1280),
    }
    measured.to_json(out / "demo.json")
    dyn.to_chrome(out / "vgg_e.json.gz")
    console, is_well = Console(highlight=False, soft_wrap=True), True
    for name, (page, height) in pages.items():
        size = page.stat().st_size
        seconds, wrong = (0.0, []) if why_not() else opened(page, docs / f"{name}.png", height)
        is_well &= size < PAGE_BYTES and seconds < PAGE_SECONDS and not wrong
        found = "; ".join(wrong) or "nothing asked for, no complaint"
        drawn = why_not() or f"drawn after {seconds:.2f} s (measured), {found}"
        console.print(f"{page}: {size / 1e6:.2f} MB; {drawn}")
    began = time.perf_counter()
    recorder = recorded(steps)
    took = time.perf_counter() - began
    for name in ("run.json", "run.json.gz"):
        size = recorder.to_chrome(out / name).stat().st_size
        is_well &= size < TRACE_BYTES
        console.print(
            f"{out / name}: {size / 1e6:.2f} MB for {recorder.steps} steps, trained in {took:.0f} s (measured)"
        )
    raise SystemExit(0 if is_well else 1)


if __name__ == "__main__":
    main()
