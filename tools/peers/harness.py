"""What every peer's driver shares: how an echo and a put are measured, how the two ends are started, and what is reported.

A driver is one file. Run with a link's name it measures that link and prints one JSON line; run with `serve LINK` it is the other
end, a process of its own, which prints one JSON line when it is ready and ends when its standard input does.

**echo**: `ECHO_BYTES` go to the other process and come back. **put**: bytes that lie in this process's memory are in the other's,
and this process knows; so many are in flight (`DEPTHS`). The other end uses the bytes where they land: nobody is made to copy them
once more, and nobody is let off a transfer.
"""

import contextlib
import ctypes
import importlib.metadata
import json
import mmap
import os
import subprocess
import sys
import time

ECHO_BYTES = 64
PUT_BYTES = (4 << 20, 64 << 20)
DEPTHS = (1, 4)

ECHO_WARM_UP_S = 0.3
ECHO_S = 2.0
# A turn is long enough that its first and last put do not matter; the median of the turns counts. Slow peers get fewer turns.
TURN_BYTES = 256 << 20
TURNS = 7
PUT_S = 4.0


class Missing(Exception):
    """The peer is not here, or lacks what the link needs: its row says so."""


class NotReady(Exception):
    """The other end ended before it was ready."""


def echo(round_trip):
    """Calls `round_trip` for a while; its percentiles in microseconds."""
    clock = time.perf_counter_ns
    until = clock() + int(ECHO_WARM_UP_S * 1e9)
    while clock() < until:
        round_trip()
    trips = []
    until = clock() + int(ECHO_S * 1e9)
    ended = began = clock()
    while ended < until:
        began = clock()
        round_trip()
        ended = clock()
        trips.append(ended - began)
    return percentiles(trips)


def percentiles(nanoseconds):
    """p50 and p99 of round trips, as a report has them."""
    trips = sorted(nanoseconds)
    return {
        "bytes": ECHO_BYTES,
        "p50_us": trips[len(trips) // 2] / 1e3,
        "p99_us": trips[min(len(trips) - 1, len(trips) * 99 // 100)] / 1e3,
        "samples": len(trips),
    }


def put(size, depth, start, finish):
    """Puts of `size` bytes, `depth` in flight: `start(slot)` begins one and gives what `finish` waits for."""
    count = max(8, TURN_BYTES // size)
    rates = []
    until = None
    # The first turn is not counted: memory is touched, connections are set up, windows open.
    for turn in range(TURNS + 1):
        began = time.perf_counter()
        flying = []
        for i in range(count):
            if len(flying) == depth:
                finish(flying.pop(0))
            flying.append(start(i % depth))
        for one in flying:
            finish(one)
        ended = time.perf_counter()
        if turn > 0:
            rates.append(count * size / (ended - began) / 1e9)
            if ended > until:
                break
        else:
            until = ended + PUT_S
    return {"bytes": size, "depth": depth, "gb_s": median(rates), "turns": len(rates)}


def puts(of_size):
    """All sizes and depths. `of_size(size, depth)` is a context manager that gives `start` and `finish` for them."""
    rows = []
    for size in PUT_BYTES:
        for depth in DEPTHS:
            with of_size(size, depth) as (start, finish):
                rows.append(put(size, depth, start, finish))
    return rows


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def pattern(size):
    """Memory to put from, or into: page-aligned, and with other bytes than zeros, which a kernel could map without pages behind."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(range(1, 65)) * (size // 64))
    return memory


def address(buffer):
    """Where the bytes are."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def version(package):
    """A Python package's version; `Missing` without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Missing(f"{package} is not installed") from error


@contextlib.contextmanager
def other_end(command, env=None):
    """Starts the other end; gives its process and what it said when it was ready. It is stopped with the context."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    try:
        yield process, ready_line(process)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready_line(process):
    # Libraries write to standard output too: the line is the first that is a JSON object.
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise NotReady(f"the other end ended with status {process.wait()} before it was ready")


def own_end(driver, link, env=None):
    """The other end of a driver that is its own server."""
    return other_end([sys.executable, driver, "serve", link], env)


def tell(process, **what):
    """One JSON line to the other end's standard input."""
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


def told():
    """The line that `tell` sent."""
    return json.loads(sys.stdin.readline())


def say(**what):
    """One JSON line, for whoever started this process."""
    print(json.dumps(what), flush=True)


def until_parent_ends():
    """Returns when standard input ends."""
    with contextlib.suppress(OSError):
        while sys.stdin.buffer.read(4096):
            pass


def run(measure, serve=None):
    """The main of a driver: `measure(link)` gives a report, `serve(link)` is the other end."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        serve(*arguments[1:])
        return
    try:
        say(**measure(*arguments))
    except Missing as missing:
        say(missing=str(missing))
