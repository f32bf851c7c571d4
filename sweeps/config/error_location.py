"""Checks every combination, and assigns every fault to the value in the file that causes it.

A combination consists of the top-level parameters, a block's parameters, and one choice for every
swept value. Its faults name a key such as `loader.num_workers`, but the reader needs a line. The
faulty value is the block's if the block writes it, otherwise the top level's. Of a swept value, it
is the chosen one. A fault of a rule for several keys belongs to the swept value that all failing
combinations share, if other combinations pass. Otherwise it belongs to the group. Faults with the
same text are reported once.
"""

from collections.abc import Callable, Iterable

from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.config.config_errors import KeyPath, translate
from sweeps.config.grid import Path, Point
from sweeps.config.yaml_source import Source

# Takes a valid trial; yields faults: (path of a parameter, sentence)
Rule = Callable[[TrialConfig], Iterable[tuple[Path, str]]]


def check_points(
    source: Source, block: str, points: list[Point], rule: Rule, faulty_paths: set[KeyPath]
) -> None:
    """Validates every point, checks it against `rule`, and adds the faults to `source`.

    Values at `faulty_paths` have faults already and get no others.
    """
    failing: dict[tuple[KeyPath, str], list[Point]] = {}
    for point in points:
        for fault in _find_faults(point, rule):
            failing.setdefault(fault, []).append(point)
    for (path, text), failed in failing.items():
        location = _locate_cause(source, block, path, failed, points)
        if not any(location[:n] in faulty_paths for n in range(1, len(location) + 1)):
            source.add_fault(location, text)


def _find_faults(point: Point, rule: Rule) -> list[tuple[KeyPath, str]]:
    """Returns the faults of a point: (path of a parameter, sentence)."""
    try:
        return list(rule(point.trial))
    except ValidationError as error:
        return translate(TrialConfig, point.parameters, error)


def _locate_cause(
    source: Source, block: str, path: KeyPath, failed: list[Point], points: list[Point]
) -> KeyPath:
    """Returns the path in the file of the value that causes the fault of `failed` at `path`."""
    choice = failed[0].choice
    for swept, index in choice.items():
        if path[: len(swept)] == swept:
            return (*_path_in_file(source, block, swept), "values", index, *path[len(swept) :])
    if len(failed) < len(points):
        for swept, index in choice.items():
            varies = any(point.choice[swept] != index for point in points)
            if (
                swept[: len(path)] == path
                and varies
                and all(point.choice[swept] == index for point in failed)
            ):
                return (*_path_in_file(source, block, swept), "values", index)
    return _path_in_file(source, block, path)


def _path_in_file(source: Source, block: str, path: KeyPath) -> KeyPath:
    """Returns the path at which the file writes a parameter: in the block, or at the top level.

    A key that neither of them writes belongs to the top level.
    """
    inside: KeyPath = ("blocks", block, "parameters", *path)
    top: KeyPath = ("parameters", *path)
    depth_inside, depth_top = source.written_depth(inside) - 3, source.written_depth(top) - 1
    return (
        inside
        if depth_inside > depth_top
        or (depth_inside == depth_top and (depth_inside > 0 or not path))
        else top
    )
