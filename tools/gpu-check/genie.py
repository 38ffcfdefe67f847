"""The `genie` command: a server, and calls of it."""

import contextlib
import json
import subprocess
import tempfile
import threading
import time

import proc


class Broken(Exception):
    """A measurement could not be made: why, and what the program wrote."""

    def __init__(self, why, log=""):
        super().__init__(why)
        self.log = log


def call(arguments, until, env):
    """What a call says as JSON."""
    done = proc.run(arguments, until.left(), env)
    if done.code != 0 or not done.out.strip():
        raise Broken(done.why(), done.tail())
    return json.loads(done.out)


class Server(contextlib.AbstractContextManager):
    """`genie serve`, which ends with its standard input. Its address is what `with` gives."""

    def __init__(self, genie, device, env, limit):
        command = [genie, "--json", "serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--with-parent"]
        self.what = f"genie serve --device {device}"
        self.log = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self.log, start_new_session=True)
        self.limit = limit

    def __enter__(self):
        lines = []
        reader = threading.Thread(target=lambda: lines.append(self.child.stdout.readline()), daemon=True)
        reader.start()
        reader.join(self.limit)
        if not lines or not lines[0].strip():
            self.stop()
            said = self.said()
            last = said.splitlines()[-1] if said else "it said nothing"
            raise Broken(f"{self.what} did not get ready: {last}", said)
        return json.loads(lines[0])["uri"]

    def __exit__(self, *_):
        self.stop()

    def said(self):
        """The last lines of its standard error."""
        self.log.seek(0)
        lines = [line.rstrip()[:400] for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-30:])

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        until = time.monotonic() + 10
        while self.child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        proc.end(self.child)
        # A driver that hangs holds its program in the kernel: nobody waits for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(proc.PATIENCE_S)
