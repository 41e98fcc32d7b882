"""The keys of a study: what each may be, what it is where nothing is said, and in which modes there is such a thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

from vdnn.memory.hardware import is_number
from vdnn.naming import among
from vdnn.studies.errors import StudyError

MODES = ("plan", "simulate", "run")
SUPPOSED = ("plan", "simulate")  # modes in which a machine is supposed, not used
ANY, OWN, BY_POLICY = "any", "own", "policy"


@dataclass(frozen=True)
class Key:
    """A key of a study.

    default  its value where the study has none; None: said by vdnn.studies.grid, which knows the rest of the cell
    check    a function: the value as cells have it, or ValueError
    modes    in which cells have it
    about    what it is, in a line
    """

    default: Any
    check: Callable[[Any], Any]
    about: str
    modes: tuple[str, ...] = MODES


def _whole(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StudyError(f"a whole number of at least {least}")
    return value


def _number(value: Any, below: float = float("inf")) -> float:
    if not is_number(value) or not isfinite(value) or not 0 < value < below:
        raise StudyError("a number above 0" + (f" and below {below:g}" if isfinite(below) else ""))
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise StudyError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise StudyError("a text that is not empty")
    return value


def _one_of(value: Any, names: Sequence[str]) -> str:
    if value not in names:
        raise StudyError(f"none of these{among(value, names)}")
    return str(value)


def _network(value: Any) -> str:
    from vdnn import models

    models.get(_text(value), batch=1)
    return str(value)


def _policy(value: Any) -> str:
    from vdnn.memory.policy import get

    if not isinstance(value, str):
        raise StudyError('a name, or "module:function" for one\'s own: cells go to other processes, and into files')
    get(value)
    return value


def _hardware(value: Any) -> str:
    from vdnn.memory.cost import roofline

    return roofline(_text(value)).name


def _budget(value: Any) -> int | str:
    from vdnn.budgets import check_budget

    check_budget(value)
    return value  # type: ignore[no-any-return]


def _bytes_or(value: Any, word: str, least: int) -> int | str:
    from vdnn.units import parse_bytes

    if value != word:
        parse_bytes(value, least=least)
    return value  # type: ignore[no-any-return]


def _rate_or(value: Any, word: str) -> int | str:
    if value != word:
        bytes_per_second(value)
    return value  # type: ignore[no-any-return]


def bytes_per_second(value: int | str) -> int:
    """That of "12GB", "12GB/s" or 12000000000.  Raises UnitError."""
    from vdnn.units import parse_bytes

    return parse_bytes(value.removesuffix("/s") if isinstance(value, str) else value)


def _rewrites(value: Any) -> str:
    from vdnn.rewrites import checked, title

    return title(checked(_text(value)))


def _parts(value: Any) -> int | str:
    return BY_POLICY if value == BY_POLICY else _whole(value, 1)


OPTIMIZERS = ("sgd", "momentum", "adam")
ALGORITHMS, COUNTS = ("performance", "memory", "mixed"), ("all", "weights", "features")

KEYS: Mapping[str, Key] = {
    "network": Key(None, _network, "a name, or module:function"),
    "batch": Key(32, partial(_whole, least=1), "samples per step"),
    "policy": Key("vdnn_dyn", _policy, "a name, or module:function"),
    "budget": Key("100%", _budget, "bytes of the arena: 12GiB, 80% of the memory, floor+25%, keep_all"),
    "host_budget": Key(
        ANY, partial(_bytes_or, word=ANY, least=0), "bytes of host memory, the rest goes to disk; or any"
    ),
    "hardware": Key("titan-x", _hardware, "whose speed and memory: a name of `vdnn hardware`", SUPPOSED),
    "link_bandwidth": Key(OWN, partial(_rate_or, word=OWN), "bytes a second of copies each way; or own"),
    "algorithms": Key("performance", partial(_one_of, names=ALGORITHMS), "performance, memory or mixed"),
    "optimizer": Key("momentum", partial(_one_of, names=OPTIMIZERS), "sgd, momentum or adam"),
    "rules": Key("ours", partial(_one_of, names=("ours", "paper")), "whose scheduling: ours or paper", SUPPOSED),
    "count": Key("all", partial(_one_of, names=COUNTS), "what takes bytes: all, weights or features", SUPPOSED),
    "purpose": Key(
        "step", partial(_one_of, names=("step", "gradients", "evaluate")), "step, gradients or evaluate", SUPPOSED
    ),
    "kernels": Key(
        None, partial(_one_of, names=("numpy", "cudnn4")), "whose algorithms and workspaces: numpy or cudnn4", SUPPOSED
    ),
    "threads": Key(None, partial(_whole, least=1), "that share one operation on a CPU"),
    "exact": Key(False, _flag, "on the host: plain products alone"),
    "fast": Key(None, _flag, "on the host: kernels compiled by Numba"),
    "rewrites": Key(None, _rewrites, "exact changes of the step: all, standard, none, names"),
    "micro_batches": Key(BY_POLICY, _parts, "parts of the batch; or policy, for its choice"),
    "allow_coupled": Key(False, _flag, "parts even where batch norm then sees each by itself"),
    "search_seconds": Key(10.0, _number, "how long policy search goes on in a cell"),
    "jitter": Key(None, partial(_number, below=1.0), "times vary by this share: how the step fares", ("simulate",)),
    "seed": Key(0, partial(_whole, least=0), "of policy search; of weights and data of a run"),
    "learning_rate": Key(None, _number, "of the optimizer", ("run",)),
    "steps": Key(5, partial(_whole, least=1), "that are measured", ("run",)),
    "warm_up": Key(1, partial(_whole, least=0), "steps before those", ("run",)),
}


def key_named(name: str, mode: str, where: str) -> Key:
    """The key of that name.  Raises StudyError with the closest names, and for a key of other modes."""
    there = [n for n, key in KEYS.items() if mode in key.modes]
    if name not in KEYS:
        raise StudyError(f"{where}: no key is named {name!r}{among(name, there)}")
    if mode not in KEYS[name].modes:
        raise StudyError(
            f"{where}: {name} is for mode {' and '.join(KEYS[name].modes)}, and this study's is {mode}"
            + (": it measures this machine" if mode == "run" else "")
        )
    return KEYS[name]


def checked(name: str, value: Any, mode: str, where: str) -> Any:
    """The value of a key as cells have it.  Raises StudyError that says what it may be."""
    key = key_named(name, mode, where)
    try:
        return key.check(value)
    except (ValueError, TypeError, ImportError) as error:
        raise StudyError(f"{where}: {name} = {value!r}: {error}") from error
