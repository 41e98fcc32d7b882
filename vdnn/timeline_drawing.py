"""The pictures of a timeline page, drawn with Bokeh: memory by role above, streams as lanes below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.plot import COLOURS, WORK, byte_scale, time_scale
from vdnn.timeline_data import LANES, STACK, Bar, Block, memory_blocks, stream_bars
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace

WORKS = {name: WORK[name] for name in ("forward", "rerun", "backward", "update")} | {
    "offload": "#5fa777",
    "prefetch": "#2f6f4f",
    "stall": "#f6d5d2",
}
RED, GREY, INK = "#b3261e", "#8a8f98", "#3c4043"
LEFT, RIGHT = 130, 24  # pixels beside the frames, the same for all, so that their times stand below each other
HEIGHTS = {1: 340, 2: 230}  # of the picture of memory, by how many there are


class Drawing:
    """The pictures of a page, all with one axis of time."""

    def __init__(self, traces: Sequence[Trace], budget: int | None) -> None:
        from bokeh.models import Range1d, Span

        self.traces, self.budget = traces, budget
        longest = max(trace.step_seconds for trace in traces) or 1.0
        self.scale, self.unit = time_scale(longest)
        self.times = Range1d(0, longest * self.scale, bounds=(0, longest * self.scale))
        arena = max(trace.plan.arena_bytes for trace in traces)
        highest = max(arena, *(max(trace.timeline.total, default=0) for trace in traces))
        self.size, self.size_unit = byte_scale(highest)
        self.is_budget_shown = budget is not None and budget <= 1.6 * highest
        top = max(highest, budget if budget is not None and self.is_budget_shown else 0)
        self.bytes = Range1d(0, 1.1 * top / self.size)
        self.here = Span(dimension="height", line_color=INK, line_alpha=0.5, line_width=1)

    def parts(self) -> list[Any]:
        """For each trace: memory above, streams below."""
        from bokeh.layouts import gridplot

        made = []
        for trace in self.traces:
            bars = stream_bars(trace)
            rows = [[self._memory(trace, bars)], [self._streams(trace, bars)]]
            options = {"sizing_mode": "stretch_width", "toolbar_location": "right", "toolbar_options": {"logo": None}}
            made.append(gridplot(rows, **options))
        return made

    def _figure(self, height: int, **options: Any) -> Any:
        from bokeh.models import BoxZoomTool, CrosshairTool, PanTool, ResetTool, WheelZoomTool
        from bokeh.plotting import figure

        box = BoxZoomTool(dimensions="width")
        tools = [box, WheelZoomTool(dimensions="width"), PanTool(dimensions="width"), ResetTool()]
        tools.append(CrosshairTool(overlay=self.here))
        made = figure(
            height=height, tools=tools, active_drag=box, x_range=self.times, sizing_mode="stretch_width",
            min_border_left=LEFT, min_border_right=RIGHT, outline_line_color=None, **options,
        )  # fmt: skip
        made.xgrid.grid_line_color = None
        made.axis.axis_line_color = made.axis.major_tick_line_color = GREY
        made.axis.minor_tick_line_color = None
        made.axis.major_label_text_color = made.axis.axis_label_text_color = INK
        made.axis.axis_label_text_font_style = "normal"
        made.axis.major_label_text_font_size = made.axis.axis_label_text_font_size = "13px"
        return made

    # ---- memory

    def _memory(self, trace: Trace, bars: list[Bar]) -> Any:
        made = self._figure(HEIGHTS[len(self.traces)], y_range=self.bytes, name="memory")
        made.yaxis.axis_label = f"live on the device, {self.size_unit}"
        made.xaxis.visible = False
        made.ygrid.grid_line_color = "#e3e5e8"
        waits = [bar for bar in bars if bar.work == "stall"]
        made.quad(
            left=[bar.left * self.scale for bar in waits], right=[bar.right * self.scale for bar in waits],
            bottom=0, top=self.bytes.end, fill_color=WORKS["stall"], fill_alpha=0.6, line_color=None,
        )  # fmt: skip
        blocks = memory_blocks(trace)
        drawn = [self._blocks(made, role, [b for b in blocks if b.role == role]) for role in STACK]
        self._hover(made, [one for one in drawn if one], "@role: @bytes of @total", "@names")
        self._levels(made, trace)
        return made

    def _blocks(self, made: Any, role: str, blocks: list[Block]) -> Any:
        from bokeh.models import ColumnDataSource

        if not blocks:
            return None
        data = self._spans(blocks)
        data["bottom"] = np.array([block.bottom / self.size for block in blocks])
        data["top"] = np.array([block.top / self.size for block in blocks])
        data["role"] = [str(role)] * len(blocks)
        data["bytes"] = [format_bytes(block.top - block.bottom) for block in blocks]
        data["total"] = [f"{format_bytes(block.total)} live" for block in blocks]
        data["names"] = [block.names for block in blocks]
        return made.quad(
            left="left", right="right", bottom="bottom", top="top", source=ColumnDataSource(data),
            fill_color=COLOURS[role], line_color=COLOURS[role], line_width=0.5,
            hover_fill_color=COLOURS[role], hover_line_color=INK,
        )  # fmt: skip

    def _spans(self, marks: Sequence[Block | Bar]) -> dict[str, Any]:
        return {
            "left": np.array([mark.left * self.scale for mark in marks]),
            "right": np.array([mark.right * self.scale for mark in marks]),
            "took": [format_seconds(mark.right - mark.left) for mark in marks],
        }

    def _levels(self, made: Any, trace: Trace) -> None:
        """The lines of budget and arena, each with its label."""
        arena, budget = trace.plan.arena_bytes, self.budget
        close = budget is not None and self.is_budget_shown and abs(budget - arena) < 0.08 * self.bytes.end * self.size
        told = f"arena {format_bytes(arena)}"
        if budget is not None and self.is_budget_shown:
            both = f"budget {format_bytes(budget)}" + (f", {told}" if close else "")
            self._level(made, budget, both, RED, "solid")
        elif budget is not None:
            told += f" (budget {format_bytes(budget)}, far above)"
        self._level(made, arena, "" if close else told, INK, "dotted")

    def _level(self, made: Any, height: int, told: str, colour: str, dash: str) -> None:
        from bokeh.models import Label, Span

        at = height / self.size
        made.add_layout(Span(location=at, dimension="width", line_color=colour, line_dash=dash, line_width=1.5))
        made.add_layout(
            Label(
                x=6, y=at, x_units="screen", y_offset=2, text=told, text_color=colour, text_font_size="13px",
                background_fill_color="white", background_fill_alpha=0.75,
            )
        )  # fmt: skip

    # ---- streams

    def _streams(self, trace: Trace, bars: list[Bar]) -> Any:
        used = {bar.lane for bar in bars} | set(LANES[:3])
        lanes = [lane for lane in LANES if lane in used][::-1]
        height = 36 * len(lanes) + 56
        made = self._figure(height, y_range=(-0.6, len(lanes) - 0.4), name="streams")
        made.yaxis.ticker = list(range(len(lanes)))
        made.yaxis.major_label_overrides = dict(enumerate(lanes))
        made.yaxis.major_tick_line_color = made.ygrid.grid_line_color = made.yaxis.axis_line_color = None
        made.xaxis.axis_label = f"time in the step, {self.unit} ({trace.kind})"
        drawn = [self._bars(made, work, [bar for bar in bars if bar.work == work], lanes) for work in WORKS]
        self._hover(made, [one for one in drawn if one], "@title", "@work: @about")
        return made

    def _bars(self, made: Any, work: str, bars: list[Bar], lanes: list[str]) -> Any:
        from bokeh.models import ColumnDataSource

        if not bars:
            return None
        data = self._spans(bars)
        middles = np.array([lanes.index(bar.lane) for bar in bars], float)
        data |= {"bottom": middles - 0.38, "top": middles + 0.38}
        data |= {"title": [bar.title for bar in bars], "about": [bar.about for bar in bars], "work": [work] * len(bars)}
        stall = {"line_color": RED, "line_width": 0.5, "hatch_pattern": "/", "hatch_color": RED, "hatch_alpha": 0.5}
        look = stall if work == "stall" else {"line_color": "white", "line_width": 0.5}
        return made.quad(
            left="left", right="right", bottom="bottom", top="top", source=ColumnDataSource(data),
            fill_color=WORKS[work], hover_fill_color=WORKS[work], hover_line_color=INK, **look,
        )  # fmt: skip

    def _hover(self, made: Any, renderers: list[Any], head: str, body: str) -> None:
        from bokeh.models import HoverTool

        when = f"@left{{0.[000]}} to @right{{0.[000]}} {self.unit} (@took)"
        told = f'<div class="vdnn-tip" style="max-width:340px"><b>{head}</b><br>{body}<br>{when}</div>'
        made.add_tools(HoverTool(renderers=renderers, tooltips=told, point_policy="follow_mouse"))
