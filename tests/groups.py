"""Trees of files as a kernel shows its control groups, planted below a folder that stands for /."""

from pathlib import Path

V2 = "30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "3{n} 23 0:3{n} {root} {point} rw,nosuid - cgroup cgroup rw,{controllers}"


def plant(root: Path, own: str, mounts: list[str], files: dict[str, str]) -> Path:
    """`own`: /proc/self/cgroup; `mounts`: lines of /proc/self/mountinfo; `files`: by their paths
    below /, with their text."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    other = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw"
    (root / "proc/self/mountinfo").write_text("\n".join([other, *mounts, ""]))
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def v2(
    root: Path, path: str, files: dict[str, str], seen: str = "/", point: str = "/sys/fs/cgroup"
) -> Path:
    """Version 2 alone; the names of `files` begin at the mount point."""
    (root / point.lstrip("/")).mkdir(parents=True)
    below = {f"{point.lstrip('/')}/{name}": text for name, text in files.items()}
    return plant(root, f"0::{path}\n", [V2.format(root=seen, point=point)], below)


def v1(root: Path, path: str, files: dict[str, str], seen: str = "/") -> Path:
    """Version 1, CPU and its accounting mounted together, beside a version 2 without controllers,
    as systemd's hybrid has them."""
    own = (
        f"11:memory:{path}\n4:cpu,cpuacct:{path}\n3:pids:{path}\n1:name=systemd:{path}\n0::{path}\n"
    )
    mounts = [
        V1.format(n=1, root=seen, point="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct"),
        V1.format(n=2, root=seen, point="/sys/fs/cgroup/memory", controllers="memory"),
        V1.format(n=3, root=seen, point="/sys/fs/cgroup/pids", controllers="pids"),
        V1.format(n=4, root=seen, point="/sys/fs/cgroup/systemd", controllers="name=systemd"),
        V2.format(root="/", point="/sys/fs/cgroup/unified"),
    ]
    (root / "sys/fs/cgroup/unified").mkdir(parents=True)
    return plant(root, own, mounts, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
