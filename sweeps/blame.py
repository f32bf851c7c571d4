"""Every combination checked, and each fault laid at the value in the file that causes it.

A combination is built from the top-level parameters, a block's, and one choice for each swept value; its faults say
`loader.num_workers`, the reader needs a line. The value at fault is the block's where the block writes it, else the top level's. Of a
swept value it is the one chosen. A rule that binds several keys is blamed on the swept value that all failing combinations share,
where others pass, else on the group. Faults that read alike are told once.
"""

from collections.abc import Callable, Iterable

from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.faults import KeyPath, translate
from sweeps.grid import Path, Point
from sweeps.yaml_source import Source

Rule = Callable[[TrialConfig], Iterable[tuple[Path, str]]]  # a valid trial -> (path of a parameter, sentence)


def check_points(source: Source, block: str, points: list[Point], rule: Rule, broken: set[KeyPath]) -> None:
    """Validate each point, then hold it to `rule`; note the faults in `source`. What stands at a `broken` path is known to be faulty."""
    failing: dict[tuple[KeyPath, str], list[Point]] = {}
    for point in points:
        for fault in _faults(point, rule):
            failing.setdefault(fault, []).append(point)
    for (path, text), failed in failing.items():
        culprit = _culprit(source, block, path, failed, points)
        if not any(culprit[:n] in broken for n in range(1, len(culprit) + 1)):
            source.fault(culprit, text)


def _faults(point: Point, rule: Rule) -> list[tuple[KeyPath, str]]:
    try:
        return list(rule(TrialConfig.model_validate(point.parameters)))
    except ValidationError as error:
        return translate(TrialConfig, point.parameters, error)


def _culprit(source: Source, block: str, path: KeyPath, failed: list[Point], points: list[Point]) -> KeyPath:
    choice = failed[0].choice
    for swept, index in choice.items():
        if path[: len(swept)] == swept:
            return (*_origin(source, block, swept), "values", index, *path[len(swept) :])
    if len(failed) < len(points):
        for swept, index in choice.items():
            varies = any(point.choice[swept] != index for point in points)
            if swept[: len(path)] == path and varies and all(point.choice[swept] == index for point in failed):
                return (*_origin(source, block, swept), "values", index)
    return _origin(source, block, path)


def _origin(source: Source, block: str, path: KeyPath) -> KeyPath:
    """Where the file writes the parameter: in the block, or at the top. A key that neither writes belongs at the top."""
    inside: KeyPath = ("blocks", block, "parameters", *path)
    top: KeyPath = ("parameters", *path)
    depth_inside, depth_top = source.written(inside) - 3, source.written(top) - 1
    return inside if depth_inside > depth_top or (depth_inside == depth_top and (depth_inside > 0 or not path)) else top
