"""plugins: policies that installed distributions offer by the entry point group "vdnn.policies".

In the pyproject.toml of such a distribution:

    [project.entry-points."vdnn.policies"]
    mine = "my_package.policies:mine"

Then "mine" is a policy like those of vdnn's own, by name.  Nothing is imported before it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "vdnn.policies"


class PluginError(ValueError):
    """A policy of another distribution that cannot be used; the message names the distribution."""


def offered() -> dict[str, tuple[EntryPoint, ...]]:
    """{name: the entry points that offer it}, by name; more than one is a clash."""
    return _offered(tuple(sys.path))


@lru_cache(maxsize=4)
def _offered(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """What is installed on that path, looked up once."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, {})[distribution(point), point.value] = point
    return {name: tuple(points[key] for key in sorted(points)) for name, points in sorted(found.items())}


def distribution(point: EntryPoint) -> str:
    """Name and version of the distribution that an entry point comes from."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unnamed distribution"


def check_clash(name: str, own: Collection[str]) -> None:
    """Raise PluginError if a distribution offers a policy by a name of vdnn's own, or several by the same name."""
    points = offered().get(name, ())
    if points and name in own:
        raise PluginError(
            f"{distribution(points[0])} offers a policy {name!r} ({points[0].value}), which is a name of vdnn's own; "
            "rename or uninstall it"
        )
    if len(points) > 1:
        both = " and ".join(f"{distribution(point)} ({point.value})" for point in points)
        raise PluginError(f"several distributions offer a policy {name!r}: {both}; rename or uninstall one")


def load(name: str) -> Callable[..., Any] | None:
    """The policy of that name; None if no distribution offers one.

    Raises PluginError, with what went wrong, if it cannot be imported or is no function.
    """
    points = offered().get(name)
    if points is None:
        return None
    (point,) = points
    try:
        found = point.load()
    except Exception as error:
        raise PluginError(
            f"policy {name!r} of {distribution(point)} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise PluginError(
            f"policy {name!r} of {distribution(point)}: {point.value} is a {type(found).__name__}, not a function"
        )
    return found  # type: ignore[no-any-return]
