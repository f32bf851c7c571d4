"""A network cable that delays and drops: copies Ethernet frames between two TAP devices.

    python -m tests.slow_link DEVICE_A DEVICE_B SECONDS LOSS

Each frame takes SECONDS, in both directions, and a share LOSS of them is lost. It ends when stdin
closes, and its devices with it.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000  # linux/if_tun.h


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def main(name_a: str, name_b: str, delay_s: float, loss: float) -> None:
    end_a, end_b = open_tap(name_a), open_tap(name_b)
    other = {end_a: end_b, end_b: end_a}
    print("ready", flush=True)
    chance = random.Random(0)
    # when it is due, its number, where it goes, the frame
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([0, *other], [], [], wait_s)
        if 0 in ready and not os.read(0, 100):
            return
        for tap in set(ready) & other.keys():
            frame = os.read(tap, 65536)
            if chance.random() >= loss:
                count += 1
                heapq.heappush(under_way, (time.monotonic() + delay_s, count, other[tap], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(under_way)
            try:
                os.write(to, frame)
            except OSError:  # the device is down, or its queue is full: lost, as on a real cable
                continue


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
