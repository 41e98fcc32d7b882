"""Recompute every figure of the paper, and what goes beyond it: CSVs, pictures and RESULTS.md.

    python experiments/paper/everything.py

Runs each script of `MODULES` that is there as it runs by itself, then writes all its numbers into one document.
Pictures need matplotlib; without it all the rest is done.  As many scripts run at a time as there are processors.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import click
from published import ANOMALIES, MIB, RESOLUTION, SOURCES
from reporting import Result, markdown, read_csv, read_results, summary
from rich.console import Console
from study import TITAN_X

from vdnn.plot import PlotError

HERE = Path(__file__).parent
FOLDER = HERE / "results"
FIGURES = ("fig01", "fig04", "fig05", "fig06", "fig09", "fig11", "fig12", "fig14", "fig15", "abstract")
FURTHER = ("beyond", "whatif")  # not the paper's
MODULES = [name for name in (*FIGURES, *FURTHER) if (HERE / f"{name}.py").exists()]
SHOWN = 120  # rows of a CSV that the document has in full
NEAR = 0.05  # of the paper's number, or 5 points of a share
VERDICTS = ("within", "out", "inputs", "undecided", "near", "far")
HEAD = """# The paper's figures, recomputed

Written by `python experiments/paper/everything.py` from the numbers in [results](results); the pictures are in
[pictures](pictures).  The paper is Rhu, Gimelshein, Clemons, Zulfiqar, Keckler: vDNN, MICRO-49, 2016 (arXiv 1602.08124
v3).

* **Ours** is what vdnn plans for the paper's networks under the paper's rules: one memory stream, a join after every
  layer that copied, the prefetch search of Fig. 10, its pooling, its fused backward.  No GPU is involved.  *Exact*
  numbers are bytes that follow from shapes and plans; *simulated* ones depend on a model of times or workspaces.
* **The model** is {hardware} with cuDNN 4 as Fig. 5 (workspaces) and Fig. 6 (times) show it for one VGG; all other
  convolutions are extrapolated from those two figures.  Nothing is fitted to any other result.  One assumption is
  supported by neither figure, since all of both is 3 x 3: a workspace grows with the window's size, R S.  It makes that
  of AlexNet's conv2, 5 x 5, 530 MiB; without it that would be 191, the network's largest 282, and Fig. 4 shows 328.
* **The paper's** numbers were read from its text and its figures, to {grid} MiB and {performance} in Fig. 11 and 14.
* **Within** says whether ours keeps a tolerance that was set before ours was computed: from what the figure can be read
  to, and, for the maxima of all (m), from what Fig. 10's search adds by hand (15 %).  A dash means that none was.
  *Undecided* is what depends on workspaces that the paper does not show.  *Inputs* are the paper's own numbers that the
  model was given: that they come out again says nothing of the paper.
* **Not recomputed** are Fig. 13, the bandwidth of the GPU's memory, since nothing here models the memory traffic of
  single kernels, and power (section V-D), of which there is no model either.
"""
CAUSES = """## What explains most deviations

* **Workspaces.**  The paper shows those of VGG's forward pass and one number per network (Fig. 4).  Ours for
  everything else are a model: too large for AlexNet and OverFeat, too small for VGG.  This moves base (p), with it
  every saving, the maxima and averages of (p), and what dyn chooses.  Baselines and maxima of fixed policies do not
  depend on the model where they stand without workspace or with Fig. 4's.  The largest shares of Fig. 1 do even with
  Fig. 4's, which they divide among layers as the model has it; so do all (p) of Fig. 15, and everything of dyn.
* **POOL.**  By the search of Fig. 10, the X of the CONV below comes back while a POOL computes its gradient.  The
  figure's maxima of all (m) agree within {grid} MiB, in all six networks, once those bytes are subtracted.  That is a
  hypothesis, no rule of the paper, and no such plan is made.
* **GoogLeNet.**  Outputs of inception branches are X of no CONV or POOL, so by the policies' words they stay on the
  GPU.  The figure's averages come near (within 50 MiB) once their bytes are subtracted; no such plan is made.
* **(m).**  Times of implicit GEMM are known only for the three layers where cuDNN chose it because it was fast.  The
  paper's is up to 2.2 times as slow as the model, which hides more of the copies as well.
* **dyn.**  It stops at the first trial that fits.  With our workspaces that is no offload for VGG-16 (128) and conv (p)
  for VGG-16 (256) and the deep four; in the paper conv (p), all with a mix of algorithms, and all.  Workspaces could
  explain VGG-16 (256) alone: with Fig. 4's, conv (p) needs 16,536 MiB.  No offload of VGG-16 (128) fits 12,288 MiB even
  with Fig. 4's (10,947 + 472 of the classifier = 11,419), and conv (p) of the deep four fits either way.  Why the
  paper's dyn chose otherwise is unknown.
"""


def module(name: str) -> ModuleType:
    """One of `MODULES`, imported."""
    return importlib.import_module(name)


def recompute(name: str) -> str:
    """Run a script as it runs by itself, without its table; return why there are no pictures, if there are none."""
    try:
        with redirect_stdout(io.StringIO()):
            module(name).main([], standalone_mode=False)
    except PlotError as error:
        return str(error)
    except SystemExit:
        pass  # a script's own verdict, which is in its results
    return ""


# ---- the document


def verdicts(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results that have a number of the paper, by how ours compares."""
    found: dict[str, list[Result]] = {name: [] for name in VERDICTS}
    for each in results:
        if each.paper is not None:
            found[_verdict(each)].append(each)
    return found


def _verdict(each: Result) -> str:
    if each.is_input and each.within is not False:
        return "inputs"
    if each.within is not None:
        return "within" if each.within else "out"
    if each.tolerance == "undecided":
        return "undecided"
    if (
        each.figure == "Fig. 11"
        and each.unit == "MiB"
        and abs(each.deviation or 0) <= RESOLUTION["figure_11_14"]["mib"]
    ):
        return "near"
    deviation = each.deviation if each.unit in ("share", "yes/no") else each.relative
    return "near" if abs(deviation if deviation is not None else each.ours) <= NEAR else "far"


def text(folder: Path) -> str:
    """RESULTS.md, from the CSVs in the folder and from nothing else."""
    figures = {name: read_results(folder / f"{name}.csv") for name in MODULES if name in FIGURES}
    resolution = RESOLUTION["figure_11_14"]
    head = HEAD.format(hardware=TITAN_X.name, grid=resolution["mib"], performance=resolution["performance"])
    causes = CAUSES.format(grid=resolution["mib"])
    parts = [head, _summary(figures), causes, _anomalies(), "## Figure by figure\n"]
    parts += [_section(name, results) for name, results in figures.items()]
    further = [name for name in MODULES if name in FURTHER]
    if further:
        parts += ["## Not in the paper\n", *(_further(name, read_csv(folder / f"{name}.csv")) for name in further)]
    return "\n".join(parts)


def _summary(figures: Mapping[str, Sequence[Result]]) -> str:
    every = [each for results in figures.values() for each in results]
    of = verdicts(every)
    kept, out, inputs, undecided, near, far = (len(of[name]) for name in VERDICTS)
    marks = len({(each.figure, each.name, each.quantity.partition(":")[0]) for each in of["undecided"]})
    lines = [
        "## Summary\n",
        f"{len(every)} numbers, {sum(map(len, of.values()))} of which have a counterpart in the paper.  {inputs} of "
        f"them are inputs of the model, reproduced.  {kept} of {kept + out} keep their tolerance.  {marks} marks "
        f"({undecided} rows) are undecided.  Of those without a tolerance {near} are near the paper's (within 5 %, 5 "
        f"points of a share, or what the figure can be read to), {far} are not; the tables say why.\n",
        "| figure | numbers | within tolerance | out | inputs reproduced | undecided | no tolerance, near | farther |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for results in figures.values():
        row = verdicts(results)
        cells = [len(row[name]) for name in VERDICTS]
        lines.append(f"| {results[0].figure} | {len(results)} | " + " | ".join(map(str, cells)) + " |")
    if of["out"]:
        lines += ["", "Out of their tolerance:\n"]
        lines += [
            f"* {each.figure}, {each.name}, {each.quantity}: {each.note or 'no reason is known'}" for each in of["out"]
        ]
    return "\n".join(lines) + "\n"


def _anomalies() -> str:
    lines = [f"* {each.where}: {each.what}" for each in ANOMALIES]
    about = SOURCES["anomalies"]
    return "\n".join(["## What the paper leaves open or contradicts\n", f"{_upper(about)}.\n", *lines]) + "\n"


def _section(name: str, results: Sequence[Result]) -> str:
    """A figure's table below what its script says of it."""
    heading, _, table = markdown(results).partition("\n")
    return f"{heading}\n\n{_about(name)}\n\n{_upper(summary(results))}.\n{table}"


def _further(name: str, rows: Sequence[Mapping[str, str]]) -> str:
    """A CSV as it is, or where it is if it is long, below what its script says of it; bytes are shown as MiB."""
    if len(rows) > SHOWN:
        return f"### {name}\n\n{_about(name)}\n\n{len(rows)} rows: see [{name}.csv](results/{name}.csv).\n"
    columns = list(rows[0]) if rows else []
    lines = [[column.replace("_bytes", ", MiB").replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[_shown(column, row[column]) for column in columns] for row in rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"### {name}\n\n{_about(name)}\n\n{table}\n"


def _shown(column: str, cell: str) -> str:
    """A cell for people."""
    if column.endswith("_bytes") and cell:
        return f"{float(cell) / MIB:,.1f}"
    try:
        return cell if cell.isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return " ".join(cell.split()).replace("|", "\\|")


def _about(name: str) -> str:
    """What a script's docstring says, without its name and its command."""
    said = (module(name).__doc__ or "").replace(f"\n    python experiments/paper/{name}.py\n", "")
    parts = said.strip().split("\n\n")
    paragraphs = [part if part.startswith("    ") else " ".join(part.split()) for part in parts]  # a table stays
    return "\n\n".join([_upper(paragraphs[0].partition(": ")[2] or paragraphs[0]), *paragraphs[1:]])


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


@click.command()
def main() -> None:
    """Recompute everything: results/*.csv, pictures/*.png and RESULTS.md."""
    console = Console()
    without = ""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        begun = {pool.submit(recompute, name): name for name in reversed(MODULES)}  # the longest are the last
        for done in as_completed(begun):
            name, without = begun[done], done.result() or without
            said = summary(read_results(FOLDER / f"{name}.csv")) if name in FIGURES else "not in the paper"
            console.print(f"{name:9} {said}")
    if without:
        console.print(f"no pictures: {without}")
    path = HERE / "RESULTS.md"
    path.write_text(text(FOLDER), encoding="utf-8")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
