"""Hosts made of network, mount, PID and UTS namespaces on this machine, on a bridge of their own
with no route outside.

Each has an address and a name, a /tmp, a /dev/shm, a HOME, a machine id and a boot id of its own,
and at /srv a folder of its own with a copy of the project. All of them live in a PID namespace
whose first process reads a pipe that the test holds open: however the test ends, the kernel ends
every process of theirs, and with the last one their devices are gone.

    with hosts(folder, "head", "a") as (head, a):
        a.run("ping", "-c1", "head")
        a.unplug()
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.trees import ROOT

HOME = Path("/srv")  # on every host: its own folder
NAMESPACES = ["--net", "--mount", "--uts", "--pid"]
NET = "10.77.0"
READS_A_PIPE = "cat; :"  # a shell is a first process that reaps, and ends with the pipe

AT_START = """
set -e
mount --make-rprivate /
mount --bind {folder} {home}
for place in {seen}; do
    case $place in /tmp/*) mkdir -p {folder}/tmp/${{place#/tmp/}}; mount --rbind $place {folder}/tmp/${{place#/tmp/}};; esac
done
mount --rbind {folder}/tmp /tmp
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount --bind {home}/etc/boot-id /proc/sys/kernel/random/boot_id
if [ -e /etc/machine-id ]; then mount --bind {home}/etc/machine-id /etc/machine-id; fi
mount --bind {home}/etc/hosts /etc/hosts
hostname {name}
ip link set lo up
echo up
exec sh -c '{reads}'
"""


@dataclass
class Host:
    name: str
    address: str
    folder: Path  # what it has at /srv
    pid: int  # of its first process
    switch: int  # the process in whose network the other end of its cable is
    cable: str = field(init=False)

    def __post_init__(self) -> None:
        self.cable = f"to-{self.name}"

    def start(
        self, *command: str | Path, log: Path | None = None, **variables: str
    ) -> subprocess.Popen:
        """A process on this host, in /srv/work; its output is text, and comes by a pipe or goes to
        the file `log`."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "LD_LIBRARY_PATH")
        }
        own = {
            "HOME": str(HOME / "home"),
            "PYTHONPATH": str(HOME / "project"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        enter = [*_enter(self.pid), "sh", "-c", f'cd {HOME}/work && exec "$@"', "sh"]
        with contextlib.ExitStack() as stack:
            to = stack.enter_context(log.open("a")) if log else subprocess.PIPE
            return subprocess.Popen(
                [*enter, *map(str, command)],
                env=inherited | own | variables,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                text=True,
            )

    def run(self, *command: str | Path, **variables: str) -> str:
        """What a command prints on this host, which has to succeed."""
        process = self.start(*command, **variables)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, f"{self.name}: {command}\n{out}{err}"
        return out

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of this host with that name."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if (
                    process.name() == name
                    and os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                ):
                    found.append(process)
        return found

    def unplug(self) -> None:
        in_net(self.switch, f"link set {self.cable} down")

    def plug_in(self) -> None:
        in_net(self.switch, f"link set {self.cable} up")


def in_net(pid: int, command: str) -> None:
    """`ip` in the network of a process."""
    subprocess.run(
        ["nsenter", f"--target={pid}", "--net", "ip", *command.split()],
        check=True,
        capture_output=True,
        timeout=20,
    )


def inner(process: subprocess.Popen) -> psutil.Process:
    """The process on the host that was started: to be signalled."""
    return psutil.Process(process.pid).children()[0]


def why_not() -> str:
    """Why this machine has no such hosts; empty where it has."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed (apt install iproute2 util-linux)"
    probe = ["unshare", *NAMESPACES, "--fork", "ip", "link", "add", "br0", "type", "bridge"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no bridge in a namespace of its own: {done.stderr.strip()}" if done.returncode else ""


@contextlib.contextmanager
def hosts(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Hosts of these names, with addresses that the others know by name, each with the folder of
    its name in `folder`."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_first_process([], f"echo up; {READS_A_PIPE}"))
        in_net(switch, "link add br0 type bridge")
        in_net(switch, "link set br0 up")
        addresses = {name: f"{NET}.{count + 2}" for count, name in enumerate(names)}
        yield [_host(stack, folder / name, name, addresses, switch) for name in names]


def _host(
    stack: contextlib.ExitStack, folder: Path, name: str, addresses: dict[str, str], switch: int
) -> Host:
    for part in ("home", "work", "etc", "tmp"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc" / "boot-id").write_text(f"boot-of-{name}\n")
    (folder / "etc" / "machine-id").write_text(f"id-of-{name}\n")
    known = {"localhost": "127.0.0.1"} | addresses
    (folder / "etc" / "hosts").write_text(
        "".join(f"{address} {each}\n" for each, address in known.items())
    )
    _copy_project(folder / "project")
    seen = " ".join(dict.fromkeys([sys.prefix, sys.base_prefix]))
    script = AT_START.format(folder=folder, home=HOME, name=name, seen=seen, reads=READS_A_PIPE)
    made = Host(
        name,
        addresses[name],
        folder,
        stack.enter_context(_first_process(_enter(switch), script)),
        switch,
    )
    in_net(switch, f"link add {made.cable} type veth peer name eth0 netns {made.pid}")
    in_net(switch, f"link set {made.cable} master br0 up")
    in_net(made.pid, f"address add {made.address}/24 dev eth0")
    in_net(made.pid, "link set eth0 up")
    return made


def _copy_project(to: Path) -> None:
    no_caches = shutil.ignore_patterns("__pycache__")
    for package in ("speech", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, to / package, ignore=no_caches)
    shutil.copy(ROOT / "launch.py", to)


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", *NAMESPACES, "--"]


@contextlib.contextmanager
def _first_process(enter: list[str], script: str) -> Iterator[int]:
    """The first process of new namespaces, which ends with this one, and all that lives in them
    with it."""
    command = [
        *enter,
        "unshare",
        *NAMESPACES,
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as outer:
        assert outer.stdin
        assert outer.stdout
        try:
            assert outer.stdout.readline() == "up\n"
            yield next(
                each.pid
                for each in psutil.Process(outer.pid).children(recursive=True)
                if _is_first(each.pid)
            )
        finally:
            outer.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                outer.wait(5)
            outer.kill()


def _is_first(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in status if line.startswith("NSpid")).split()[-1] == "1"


@contextlib.contextmanager
def slow_link(host: Host, delay_s: float, loss: float) -> Iterator[None]:
    """Meanwhile each frame to and from the host takes `delay_s`, and a share of them is lost: its
    cable ends in a bridge of its own, from where tests/slow_link.py copies to the others'."""
    own, ends = f"br-{host.name}", (f"{host.name}-1", f"{host.name}-2")
    relay_command = [
        "nsenter",
        f"--target={host.switch}",
        "--net",
        sys.executable,
        "-m",
        "tests.slow_link",
        *ends,
        str(delay_s),
        str(loss),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(relay_command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as relay:
        assert relay.stdin
        assert relay.stdout
        try:
            assert relay.stdout.readline() == "ready\n"
            in_net(host.switch, f"link add {own} type bridge")
            for device, bridge in ((ends[0], "br0"), (ends[1], own), (host.cable, own)):
                in_net(host.switch, f"link set {device} master {bridge} up")
            in_net(host.switch, f"link set {own} up")
            yield
        finally:
            relay.stdin.close()
            relay.wait(5)
            in_net(host.switch, f"link set {host.cable} master br0")
            in_net(host.switch, f"link delete {own}")
