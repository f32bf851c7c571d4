"""Locates the files of this process's control groups: cgroup version 1, version 2, or both.

/proc/self/cgroup names the group. /proc/self/mountinfo lists the mounted part of every hierarchy
and its mount point. A container sees its group at the mount's root; on a host the group lies
deeper. The limits of all ancestor groups apply too, as far as this process can see them.

Every function takes the folder that / stands for, so that a tree of files can replace a machine.
"""

import contextlib
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

HOST_ROOT = Path("/")
DEFAULT_MOUNT = "/sys/fs/cgroup"


class _Mount(NamedTuple):
    root: PurePosixPath  # the group at the mount point
    point: Path
    controllers: frozenset[str]  # of version 1; empty for version 2


def group_folders(controller: str, root: Path = HOST_ROOT) -> list[Path]:
    """Returns the folders of this process's group and of its ancestors, the own one first.

    Where both versions are mounted, the folders of version 1 come first. A controller is in use in
    one version only; in the other its files are missing.
    """
    mounts, paths = _read_mounts(root), _read_groups(root)
    folders: list[Path] = []
    for version in (1, 2):
        path = next(
            (
                path
                for controllers, path in paths
                if (controller in controllers if version == 1 else not controllers)
            ),
            None,
        )
        version_mounts = [
            mount
            for mount in mounts
            if (controller in mount.controllers if version == 1 else not mount.controllers)
        ]
        if path is not None and version_mounts:
            folders += _group_and_ancestors(path, version_mounts)
    return folders


def counterpart(folder: Path, controller: str, other: str, root: Path = HOST_ROOT) -> Path | None:
    """Returns the folder of the same version 1 group under another controller.

    `folder` is the group's folder under `controller`; the result lies under `other`. Returns None
    where the two controllers have different groups.
    """
    paths = {name: path for names, path in _read_groups(root) for name in names}
    own_folders, other_folders = group_folders(controller, root), group_folders(other, root)
    if (
        controller not in paths
        or paths.get(controller) != paths.get(other)
        or len(own_folders) != len(other_folders)
    ):
        return None
    return dict(zip(own_folders, other_folders, strict=True)).get(folder)


def read_number(file: Path) -> int | None:
    """Returns the number at the start of a file.

    Returns None where the file can't be read, or starts with "max" or with anything else.
    """
    text = _read_text(file).split()
    return int(text[0]) if text and re.fullmatch(r"-?\d+", text[0]) else None


def read_counts(file: Path) -> dict[str, int]:
    """Returns the lines `name number` of a file; other lines are skipped."""
    lines = (line.split() for line in _read_text(file).splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}


def read_words(file: Path) -> list[str]:
    """Returns the words of a file, or an empty list where it can't be read."""
    return _read_text(file).split()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _read_groups(root: Path) -> list[tuple[list[str], str]]:
    """Returns (controllers, path of this process's group) for every hierarchy.

    The list of controllers is empty for version 2.
    """
    lines = [line.split(":", 2) for line in _read_text(root / "proc/self/cgroup").splitlines()]
    return [
        ([name for name in line[1].split(",") if name], line[2].removesuffix(" (deleted)"))
        for line in lines
        if len(line) == 3
    ]


def _read_mounts(root: Path) -> list[_Mount]:
    mounts = []
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(), after.split() or [""]
        if kind in ("cgroup", "cgroup2") and len(fields) > 4:
            names = frozenset(rest[-1].split(",")) if kind == "cgroup" and rest else frozenset()
            mounts.append(
                _Mount(
                    PurePosixPath(_unescape(fields[3])),
                    root / _unescape(fields[4]).lstrip("/"),
                    names,
                )
            )
    if mounts:
        return mounts
    default_mount = root / DEFAULT_MOUNT.lstrip("/")  # some sandboxes have no mountinfo
    of_version_1 = {
        names: default_mount / ",".join(names)
        for names, _ in ((tuple(names), path) for names, path in _read_groups(root))
        if names
    }
    return [
        *(
            _Mount(PurePosixPath("/"), point, frozenset(names))
            for names, point in of_version_1.items()
        ),
        _Mount(PurePosixPath("/"), default_mount, frozenset()),
    ]


def _unescape(text: str) -> str:
    """Reverses the kernel's octal escapes of spaces and similar characters."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _group_and_ancestors(path: str, mounts: list[_Mount]) -> list[Path]:
    """Returns the folders from the group at `path` up to the mount's root.

    A group may be invisible: its path leads out of the namespace, or is older than the mount. Then
    the group at the mount's root replaces it, which is a container's own.
    """
    for mount in mounts:
        below = PurePosixPath(path)
        if ".." not in below.parts and below.is_relative_to(mount.root):
            own = mount.point / below.relative_to(mount.root)
            if own.is_dir():
                return [
                    folder for folder in (own, *own.parents) if folder.is_relative_to(mount.point)
                ]
    with contextlib.suppress(StopIteration):
        return [next(mount.point for mount in mounts if mount.point.is_dir())]
    return []
