"""Genie itself, through `genie serve` and `genie bench`: over tcp (polling, and with --spin 0), and over shm where it has it."""

import json
import os
import subprocess
import tempfile

import harness

GENIE = os.environ.get("GENIE", "genie")


def measure(link):
    spin = ["--spin", "0"] if link == "tcp-blocking" else []
    with tempfile.TemporaryDirectory(prefix="genie-peers-") as folder:
        address = f"shm://{folder}/genie.sock" if link == "shm" else "tcp://127.0.0.1:0"
        serve = [GENIE, "serve", "--listen", address, "--device", "cpu", "--with-parent", "--json", *spin]
        try:
            with harness.other_end(serve) as (_, server):
                client = ["--connect", server["uri"], "--json", *spin]
                return {"version": version(), "echo": echo(client), "puts": puts(client)}
        except harness.NotReady as error:
            raise harness.Missing(f"this build of Genie does not serve {link}") from error


def echo(client):
    [row] = bench("latency", "--sizes", str(harness.ECHO_BYTES), "--time", str(harness.ECHO_S), *client)
    return {"bytes": row["bytes"], "p50_us": row["p50_us"], "p99_us": row["p99_us"]}


def puts(client):
    rows = []
    for size in harness.PUT_BYTES:
        for depth in harness.DEPTHS:
            asked = ["--sizes", str(size), "--depth", str(depth), "--turns", str(harness.TURNS)]
            [row] = bench("put", *asked, *client)
            rows.append({"bytes": size, "depth": depth, "gb_s": row["gb_s"], "turns": harness.TURNS})
    return rows


def bench(*arguments):
    done = subprocess.run([GENIE, "bench", *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"genie bench ended with status {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def version():
    return subprocess.run([GENIE, "--version"], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    harness.run(measure)
