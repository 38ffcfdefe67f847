"""Reaching servers, and losing them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import genie
import numpy as np
import pytest
from conftest import Halted, Server, write_safetensors


def test_nobody_there_is_an_error_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(genie.ConnectError, match="genie serve"):
        genie.connect("tcp://127.0.0.1:9")
    assert time.monotonic() - began < 10
    assert issubclass(genie.ConnectError, ConnectionError)


def test_addresses_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENIE_SERVER", raising=False)
    with pytest.raises(genie.BadInput, match="GENIE_SERVER"):
        genie.connect()
    for uri in ["somewhere", "http://a:1", "tcp://a:b"]:
        with pytest.raises(ValueError):
            genie.connect(uri)
    with pytest.raises(genie.BadInput, match="leave it out"):
        genie.connect("tcp://127.0.0.1:1", link="shm")
    with pytest.raises(genie.BadInput, match="seconds"):
        genie.connect("tcp://127.0.0.1:1", lease=-1)


def test_the_environment_names_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENIE_SERVER", server.uri)
    with genie.connect() as session:
        assert session.uri == server.uri and session.ping() > 0
        [device] = session.devices()
        assert device.name == "cpu:0" and device.free_bytes > 0
        assert session.stats()


def test_shared_memory(tmp_path: Path) -> None:
    server = Server("--listen", f"shm://{tmp_path}/socket")
    try:
        with genie.connect(f"shm://{tmp_path}/socket") as session:
            data = np.random.default_rng(6).standard_normal(1_000_000).astype(np.float32)
            tensor = session.put(data)
            array = session.get(tensor)
            # Over shared memory a tensor may lie in what was put: not in what can still be written here.
            copies, before = [session.put(array), session.put(array.numpy()), session.put(array.numpy()[5:])], data.copy()
            array.numpy()[:] = 0
            data[:] = 1
            for copy, first in zip(copies, (0, 0, 5)):
                np.testing.assert_array_equal(session.get(copy).numpy(), before[first:])
            np.testing.assert_array_equal(session.get(tensor).numpy(), before)
    finally:
        server.stop()


def test_tokens(tmp_path: Path) -> None:
    line = "alice " + "ab" * 32
    for name in ("tokens", "mine"):
        (tmp_path / name).write_text(line + "\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "open").write_text(line + "\n")
    (tmp_path / "open").chmod(0o644)
    server = Server("--tokens", str(tmp_path / "tokens"))
    try:
        for options in ({"token": line}, {"token_file": tmp_path / "mine"}):
            with genie.connect(server.uri, **options) as session:
                session.ping()
        with pytest.raises(genie.AuthError, match="token_file="):
            genie.connect(server.uri)
        with pytest.raises(genie.AuthError):
            genie.connect(server.uri, token="alice " + "cd" * 32)
        with pytest.raises(genie.AuthError, match="chmod"):
            genie.connect(server.uri, token_file=tmp_path / "open")
        with pytest.raises(genie.BadInput, match="hexadecimal"):
            genie.connect(server.uri, token="alice secret")
        assert issubclass(genie.AuthError, PermissionError)
    finally:
        server.stop()


def test_a_server_that_restarts_has_forgotten() -> None:
    server = Server()
    try:
        session = genie.connect(server.uri, reconnect=10)
        tensor = session.put([1.0, 2.0])
        server.stop()
        server = Server("--listen", server.uri)
        with pytest.raises(genie.SessionLost):
            session.get(tensor)
        # Another session took its place, where the old handle names nothing.
        again = session.put([3.0])
        with pytest.raises(genie.SessionLost, match="earlier session"):
            session.get(tensor)
        assert session.get(again).tolist() == [3.0] and session.lost == 1
    finally:
        server.stop()


def test_a_server_that_is_gone_is_given_up_on() -> None:
    server = Server()
    session = genie.connect(server.uri, reconnect=0.3, timeout=60)
    server.stop()
    with pytest.raises(genie.ConnectError):
        session.ping()


WAITS = """
import genie, signal, sys
# A shell that starts something in the background has it ignore interrupts, and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
session = genie.connect(sys.argv[1], reconnect=60)
path = sys.argv[2]
tensor = session.put([1.0])
for call in sys.argv[3:]:
    session.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print("calling", flush=True)
        eval(call)
        print("answered", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""

CALLS = [
    "session.get(tensor)",
    "session.lookup('a')",
    "session.devices()",
    "session.stats()",
    "session.copy(tensor, 0)",
    "session.load(path)",
]


def test_an_interrupt_ends_a_call(halted: Halted, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_safetensors(path, {"x": np.zeros(3, np.float32)})
    command = [sys.executable, "-c", WAITS, halted.uri, path, *CALLS]
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert waiting.stdin and waiting.stdout
    try:
        for call in CALLS:
            assert waiting.stdout.readline() == "ready\n", call
            halted.halt()
            waiting.stdin.write("\n")
            waiting.stdin.flush()
            assert waiting.stdout.readline() == "calling\n", call
            # Mostly it is in the call by then; where it is not, the interrupt ends it all the same.
            time.sleep(0.2)
            began = time.monotonic()
            waiting.send_signal(signal.SIGINT)
            assert waiting.stdout.readline() == "interrupted\n", call
            assert time.monotonic() - began < 30, call
            halted.go_on()
    finally:
        waiting.kill()
        waiting.wait()


def test_a_long_call_does_not_hold_up_another(session: genie.Session) -> None:
    g = genie.Graph("long")
    x = g.input("x", "f32", (1400, 1400))
    y = x
    for _ in range(4):
        y = g.op("tanh", g.op("matmul", y, x))
    g.output("y", g.op("reduce", y, kind="sum"))
    program = session.define(g)
    binding = session.bind(program, residents={"x": session.put(np.full((1400, 1400), 1e-3, np.float32))})

    def answered() -> bool:
        """Whether round trips go on beside a run that was under way before them."""
        done, before, count = threading.Event(), session.traffic()[0], 0

        def run() -> None:
            session.run(binding)
            done.set()

        thread = threading.Thread(target=run)
        thread.start()
        while session.traffic()[0] == before and not done.is_set():
            time.sleep(0.001)
        began = time.monotonic()
        while not done.is_set():
            session.traffic()
            session.ping()
            count += not done.is_set()
        took = time.monotonic() - began
        thread.join()
        # Where the run lets go of the session only to look at what Python wants, they are fewer than ten a second.
        return count >= max(5, took * 20)

    # On a busy machine a run may be over before others had a core: then another.
    assert any(answered() for _ in range(20))


def test_sessions_are_closed_when_the_interpreter_ends(server: Server) -> None:
    script = "import genie, sys; genie._session.AT_EXIT = 60; session = genie.connect(sys.argv[1]); kept = session.put(bytes(50_000_000))"
    with genie.connect(server.uri) as session:
        before = session.devices()[0].free_bytes
        subprocess.run([sys.executable, "-c", script, server.uri], check=True, timeout=120)
        assert session.devices()[0].free_bytes >= before - 10_000_000


FORKS = """
import genie, os, sys
session = genie.connect(sys.argv[1])
tensor = session.put([1.0, 2.0])
child = os.fork()
if child == 0:
    try:
        session.get(tensor)
    except genie.SessionLost as error:
        assert "fork" in str(error)
        with genie.connect(sys.argv[1]) as own:
            assert own.get(own.put([3.0])).tolist() == [3.0]
        del session, tensor
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.get(tensor).tolist() == [1.0, 2.0] and session.lost == 0
"""


def test_a_session_stays_with_the_process_that_opened_it(server: Server) -> None:
    subprocess.run([sys.executable, "-c", FORKS, server.uri], check=True, timeout=120)
