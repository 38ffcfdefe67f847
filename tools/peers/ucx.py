"""UCX through its own ucx_perftest (Debian's ucx-utils), both ends polling.

An echo is twice the one-way latency of tag_lat. A put with one in flight is that test with a put's size: each message is answered by
one as large when it has arrived, so half a round trip is a put that is known to have arrived. With several in flight it is tag_bw."""

import os
import shutil
import subprocess
import time

import harness

TLS = {"tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}, "shm": {"UCX_TLS": "shm"}}
PORT = 13347
# Which column of the last line of the output has what.
PERCENTILE_US, OVERALL_US, OVERALL_MB_S = 1, 3, 5
ECHOES, ECHO_WARM_UP = 100_000, 10_000


def measure(link):
    if not shutil.which("ucx_perftest"):
        raise harness.Missing("ucx_perftest is not installed (Debian: ucx-utils)")
    one_way = lambda rank: figures(link, "tag_lat", harness.ECHO_BYTES, ECHOES, ECHO_WARM_UP, "-R", rank)[PERCENTILE_US]
    echo = {
        "bytes": harness.ECHO_BYTES,
        "p50_us": 2 * one_way("50"),
        "p99_us": 2 * one_way("99"),
        "samples": ECHOES,
    }
    return {"version": version(), "echo": echo, "puts": [put(link, s, d) for s in harness.PUT_BYTES for d in harness.DEPTHS]}


def put(link, size, depth):
    count = max(8, harness.TURN_BYTES // size)
    rates = []
    for _ in range(harness.TURNS):
        if depth == 1:
            rates.append(size / figures(link, "tag_lat", size, count, 4)[OVERALL_US] / 1e3)
        else:
            # Its megabyte is 2^20.
            megabytes = figures(link, "tag_bw", size, count, 4, "-O", str(depth))[OVERALL_MB_S]
            rates.append(megabytes * 2**20 / 1e9)
    return {"bytes": size, "depth": depth, "gb_s": harness.median(rates), "turns": len(rates)}


def figures(link, test, size, count, warm_up, *more):
    """The numbers in the last line of a run."""
    env = {**os.environ, **TLS[link]}
    ask = ["-t", test, "-s", str(size), "-n", str(count), "-w", str(warm_up), *more]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(["ucx_perftest", "-p", str(PORT), *ask], env=env, **quiet)
    try:
        until = time.monotonic() + 5
        # It does not say when it listens.
        while True:
            client = ["ucx_perftest", "127.0.0.1", "-p", str(PORT), "-f", *ask]
            done = subprocess.run(client, env=env, capture_output=True, text=True, timeout=60)
            if done.returncode == 0:
                break
            if time.monotonic() > until or server.poll() is not None:
                raise RuntimeError(f"ucx_perftest ended with status {done.returncode}: {done.stderr[-500:]}")
            time.sleep(0.05)
    finally:
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    return [float(number) for number in done.stdout.split()[-8:]]


def version():
    text = subprocess.run(["ucx_info", "-v"], capture_output=True, text=True).stdout
    return "ucx " + next(iter(text.split()[2:3]), "?")


if __name__ == "__main__":
    harness.run(measure)
