"""Published systems' policies on this tape, with this cost model and this layout: what `search` is compared with.

Each follows its publication as far as a plan can say it, and its docstring says what is left out.  All that a budget
can decide is decided for the budget: a policy returns the plan that it takes to be the fastest that fits, or its
smallest, if none does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdnn.memory.published.capuchin import capuchin
from vdnn.memory.published.chen import chen_budget
from vdnn.memory.published.dtr import dtr
from vdnn.memory.published.modnn import modnn
from vdnn.memory.published.paper_rules import paper_all, paper_conv, paper_dyn, vdnn_plus_plus
from vdnn.memory.published.pofo import pofo
from vdnn.memory.published.superneurons import superneurons
from vdnn.memory.published.swap_advisor import swap_advisor

PUBLISHED: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        paper_all,
        paper_conv,
        paper_dyn,
        vdnn_plus_plus,
        chen_budget,
        superneurons,
        capuchin,
        dtr,
        swap_advisor,
        modnn,
        pofo,
    )
}
