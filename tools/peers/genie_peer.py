"""Genie itself, through `genie serve` and `genie bench transfer`: over tcp (polling, and with --spin 0), and over shm, from ordinary
memory (which is copied into shared memory) and from a tensor that was allocated there (which is passed)."""

import json
import os
import subprocess
import tempfile

import harness

GENIE = os.environ.get("GENIE", "genie")
PUT_S = 2.0


def measure(link, memory="heap"):
    spin = ["--spin", "0"] if link == "tcp-blocking" else []
    with tempfile.TemporaryDirectory(prefix="genie-peers-") as folder:
        address = f"shm://{folder}/genie.sock" if link == "shm" else "tcp://127.0.0.1:0"
        serve = [GENIE, "serve", "--listen", address, "--device", "cpu", "--with-parent", "--json", *spin]
        try:
            with harness.other_end(serve) as (_, server):
                client = ["--uri", server["uri"], *spin]
                return {"version": version(), "echo": echo(client), "puts": puts(client, memory)}
        except harness.NotReady as error:
            raise harness.Missing(f"this build of Genie does not serve {link}") from error


def echo(client):
    row = transfer("echo", harness.ECHO_BYTES, 1, "--time", str(harness.ECHO_S), *client)
    return {name: row[name] for name in ["bytes", "p50_us", "p99_us"]} | {"samples": row["requests"]}


def puts(client, memory):
    rows = []
    for size in harness.PUT_BYTES:
        for depth in harness.DEPTHS:
            row = transfer("put", size, depth, "--time", str(PUT_S), "--memory", memory, *client)
            rows.append({"bytes": size, "depth": depth, "gb_s": row["gb_s"]})
    return rows


def transfer(op, size, depth, *more):
    asked = ["--op", op, "--sizes", str(size), "--depth", str(depth), "--no-floor", "--json", *more]
    done = subprocess.run([GENIE, "bench", "transfer", *asked], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"genie bench ended with status {done.returncode}: {done.stderr[-500:]}")
    [row] = json.loads(done.stdout)
    return row


def version():
    return subprocess.run([GENIE, "--version"], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    harness.run(measure)
