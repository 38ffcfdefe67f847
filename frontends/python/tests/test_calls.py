"""Calls that callbacks, other threads and interrupts meet."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from unittest import mock

import genie
import numpy as np
import pytest
from conftest import Halted
from genie import _native


def beside(work: Callable[[], object]) -> threading.Thread:
    """Does something that may never end on a thread that nothing waits for."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def comes_true(what: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# A put that was answered while its own callback was running was waited for, by the callback's calls, too: for ever.
def test_a_callback_may_make_calls(halted: Halted) -> None:
    session = genie.connect(halted.uri)
    answers: list[float] = []

    def told(done: int, total: int) -> None:
        halted.go_on()
        answers.extend(session.ping() for _ in range(5))

    halted.halt()
    putting = beside(lambda: session.put(np.ones(10, np.float32), progress=told))
    putting.join(60)
    assert not putting.is_alive() and len(answers) >= 5


# While one thread's callback ran, nobody took its answer, and nobody else's bytes were moved.
def test_a_slow_callback_holds_up_nobody_else(halted: Halted) -> None:
    session = genie.connect(halted.uri)
    inside, leave = threading.Event(), threading.Event()

    def told(done: int, total: int) -> None:
        if not inside.is_set():
            halted.go_on()
            session.ping()
            inside.set()
            leave.wait(60)

    halted.halt()
    putting = beside(lambda: session.put(np.ones(10, np.float32), progress=told))
    assert inside.wait(30)
    pings = beside(lambda: [session.ping() for _ in range(5)])
    pings.join(30)
    held_up = pings.is_alive()
    leave.set()
    putting.join(60)
    assert not held_up and not putting.is_alive()


# Who had looked took the lock from the thread that moved the bytes, and did not tell it when it was free: that one slept its tenth of a second.
def test_a_look_at_closed_costs_others_nothing(session: genie.Session) -> None:
    g = genie.Graph()
    x = g.input("x", "f32", (400, 400))
    g.output("y", g.op("reduce", g.op("tanh", g.op("matmul", x, x)), kind="sum"))
    binding = session.bind(session.define(g), residents={"x": session.put(np.zeros((400, 400), np.float32))})
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            session.closed

    def median() -> float:
        times = []
        for _ in range(20):
            began = time.monotonic()
            session.run(binding)
            times.append(time.monotonic() - began)
        return statistics.median(times)

    looking = beside(look)
    quick = any(median() < 0.09 for _ in range(10))
    over.set()
    looking.join()
    assert quick, "each short run waited for its tenth of a second"


# The last reference went under the session's lock, which what ran then wanted, too.
def test_what_was_sent_may_use_the_session_when_it_goes(halted: Halted) -> None:
    session = genie.connect(halted.uri)
    gone = threading.Event()

    class Array(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            if self.base is not None:
                session.ping()
                gone.set()

    def told(done: int, total: int) -> None:
        raise RuntimeError("enough")

    def work() -> None:
        with pytest.raises(RuntimeError, match="enough"):
            session.put(np.ones(1_000_000, np.float32).view(Array), progress=told)
        gc.collect()
        halted.go_on()
        comes_true(lambda: session.ping() < 0 or gone.is_set())

    halted.halt()
    working = beside(work)
    working.join(60)
    assert not working.is_alive() and gone.is_set()


def test_what_a_failed_callback_leaves_is_freed(halted: Halted) -> None:
    def told(done: int, total: int) -> None:
        if done == total:
            raise RuntimeError("enough")

    with genie.connect(halted.uri) as session:
        with pytest.raises(RuntimeError, match="enough"):
            session.put(np.zeros(1000, np.float32), progress=told)
        assert comes_true(lambda: session.stats()["genie_handles"] == 0)


# The server heard of it with the next call, or after five idle seconds.
def test_a_call_that_is_left_is_cancelled_at_once(halted: Halted) -> None:
    def graph(name: str, steps: int) -> genie.Graph:
        g = genie.Graph(name)
        x = g.input("x", "f32", (1400, 1400))
        y = x
        for _ in range(steps):
            y = g.op("tanh", g.op("matmul", y, x))
        g.output("y", g.op("reduce", y, kind="sum"))
        return g

    def left() -> None:
        with pytest.raises(asyncio.CancelledError):
            cancel.run(lambda: session.run(short))

    def asked(of: genie.Session, run: Callable[[], object]) -> threading.Thread:
        """Begins a run on a thread of its own. The server has it in its queue when this returns."""
        before = of.traffic()[0]
        thread = beside(run)
        assert comes_true(lambda: of.traffic()[0] > before)
        of.ping()
        return thread

    data = np.full((1400, 1400), 1e-3, np.float32)
    with genie.connect(halted.uri) as session, genie.connect(halted.uri) as other:
        short = session.bind(session.define(graph("short", 1)), residents={"x": session.put(data)})
        long = other.bind(other.define(graph("long", 30)), residents={"x": other.put(data)})
        last = other.bind(other.define(graph("last", 1)), residents={"x": other.put(data)})
        runs = other.stats()["genie_runs_total"]
        first = asked(other, lambda: other.run(long))
        # It waits for the first, and is cancelled meanwhile; nobody uses the session then.
        cancel = _native.Cancel()
        second = asked(session, left)
        cancel.set()
        second.join(30)
        assert not second.is_alive() and first.is_alive()
        first.join(300)
        # Were the second still in line, it would run before this.
        other.run(last)
        assert other.stats()["genie_runs_total"] == runs + 2


class Fake:
    """Where an array has its memory's address, this has something else."""

    __slots__ = ("held",)
    __class__ = property(lambda self: genie.Array)  # type: ignore[assignment]

    def __init__(self) -> None:
        self.held = "no address"


# `isinstance` was asked, which believes what an object says of itself; and what lay in it was read: the interpreter crashed.
def test_what_only_says_that_it_is_an_array_is_none(session: genie.Session) -> None:
    for fake in (mock.Mock(spec=genie.Array), mock.Mock(spec=_native.Memory), Fake()):
        assert isinstance(fake, _native.Memory)
        with pytest.raises(genie.BadInput):
            _native.describe(fake)
        with pytest.raises(genie.BadInput):
            genie.asarray(fake)


def test_numbers_that_cannot_be_are_bad_input(session: genie.Session) -> None:
    data = np.zeros(4, np.float32)
    tensor = session.put(data)
    g = genie.Graph()
    x = g.input("x", "f32", (4,))
    g.output("y", g.op("neg", x))
    program = session.define(g)
    binding = session.bind(program, residents={"x": tensor})
    for call in [
        lambda: session.put(data, device=-1),
        lambda: session.put(data, device=70000),
        lambda: session.put(data, shape=[-1]),
        lambda: genie.asarray(data, shape=[1 << 70]),
        lambda: genie.asarray([1 << 70]),
        lambda: genie.asarray([0.5, 10**400]),
        lambda: session.define(g, -1),
        lambda: session.run(binding, wanted=-1),
        lambda: session.run(program, {"x": tensor}, keep=1 << 64),
        lambda: session.run(binding, position=-1),
        lambda: session.create_cache(program, "x", -1),
        lambda: session.copy(tensor, 1 << 16),
        lambda: session.load("none.safetensors", device=-1),
        lambda: g.input("z", "f32", (1 << 70,)),
        lambda: g.cost(batch=-1),
        lambda: genie.connect(session.uri, quota=-1),
    ]:
        with pytest.raises(genie.BadInput):
            call()


class View(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def test_buffers_are_as_they_are_asked_for() -> None:
    any_order, columns, rows, full = 0x98, 0x58, 0x38, 0x11C
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release

    def shown(array: genie.Array, flags: int) -> tuple[bool, bool]:
        view = View()
        get(ctypes.py_object(array), ctypes.byref(view), ctypes.c_int(flags))
        shape, strides = view.shape is not None, view.strides is not None
        release(ctypes.byref(view))
        return shape, strides

    for shape, in_columns in [((2, 3), False), ((2, 1), True), ((6,), True), ((), True)]:
        array = genie.asarray(np.zeros(shape, np.float32))
        dimensions = (bool(shape), bool(shape))
        assert shown(array, any_order) == shown(array, rows) == shown(array, full) == dimensions
        assert shown(array, columns | rows) == dimensions
        if in_columns:
            assert shown(array, columns) == dimensions
        else:
            with pytest.raises(BufferError, match="row-major"):
                shown(array, columns)


# The interpreter got a panic instead.
def test_a_graph_that_is_being_written_cannot_be_defined(session: genie.Session) -> None:
    g = genie.Graph()

    def dims() -> Iterator[int]:
        session.define(g)
        yield 2

    with pytest.raises(genie.BadInput, match="when it is whole"):
        g.op("zeros", dtype="f32", dims=dims())
    g.output("y", g.op("zeros", dtype="f32", dims=[2]))
    assert session.run(g)[0].tolist() == [0.0, 0.0]
