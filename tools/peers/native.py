"""The peers that are programs of ours: plain sockets and plain shared memory (raw/), gRPC (grpc/). They measure as harness.py does."""

import json
import os
import pathlib
import re
import subprocess

import harness

# Where cargo put them.
PROGRAMS = os.environ.get("GENIE_PEERS_PROGRAMS", "")


def measure(program, *arguments):
    path = os.path.join(PROGRAMS, f"genie-peers-{program}")
    if not os.path.exists(path):
        raise harness.Missing(f"genie-peers-{program} was not built")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"genie-peers-{program} ended with status {done.returncode}: {done.stderr[-500:]}")
    return {**json.loads(done.stdout), "version": version(program)}


def version(program):
    """Of the library that it is about."""
    if program != "grpc":
        return ""
    lock = pathlib.Path(__file__).with_name("grpc").joinpath("Cargo.lock").read_text()
    return "tonic " + re.search(r'name = "tonic"\nversion = "([^"]+)"', lock)[1]


if __name__ == "__main__":
    harness.run(measure)
