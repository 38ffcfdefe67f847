"""Mooncake's transfer engine, Python API, tcp: one-sided writes into registered memory.

An echo is a write there and a write back; each end looks at the last byte of its own buffer for the other's. The engine moves bytes in threads
of its own, so whoever looks yields its core between two looks."""

import contextlib
import os
import threading

import harness

LARGEST = max(harness.PUT_BYTES)
DEPTH = max(harness.DEPTHS)


def measure(link):
    version = harness.version("mooncake-transfer-engine-non-cuda")
    engine, name = make_engine(link)
    with harness.own_end(__file__, link) as (process, server):
        back = harness.pattern(harness.ECHO_BYTES)
        register(engine, back)
        harness.tell(process, name=name, back=harness.address(back))
        message = harness.pattern(harness.ECHO_BYTES)
        register(engine, message)
        there = server["name"]

        def round_trip():
            turn = message[-1] = (message[-1] + 1) % 256
            write(engine, there, message, server["echo"])
            while back[-1] != turn:
                os.sched_yield()

        def submit(source, slot):
            size = len(source)
            batch = engine.transfer_submit_write(there, harness.address(source), server["slots"] + slot * LARGEST, size)
            if batch < 0:
                raise RuntimeError("a transfer was not accepted")
            return batch

        def finish(batch):
            # 1 when it is done, 0 while it is going on.
            while (state := engine.transfer_check_status(batch)) == 0:
                pass
            if state < 0:
                raise RuntimeError("a transfer failed")

        @contextlib.contextmanager
        def of_size(size, depth):
            sources = [harness.pattern(size) for _ in range(depth)]
            for source in sources:
                register(engine, source)
            yield lambda slot: submit(sources[slot], slot), finish
            for source in sources:
                engine.unregister_memory(harness.address(source))

        return {"version": version, "echo": harness.echo(round_trip), "puts": harness.puts(of_size)}


def serve(link):
    engine, name = make_engine(link)
    echo, slots = harness.pattern(harness.ECHO_BYTES), harness.pattern(LARGEST * DEPTH)
    register(engine, echo)
    register(engine, slots)
    turn = echo[-1]
    harness.say(name=name, echo=harness.address(echo), slots=harness.address(slots))
    client = harness.told()
    threading.Thread(target=lambda: (harness.until_parent_ends(), os._exit(0)), daemon=True).start()
    while True:
        while echo[-1] == turn:
            os.sched_yield()
        turn = echo[-1]
        write(engine, client["name"], echo, client["back"])


def make_engine(link):
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    # No metadata server: the ends ask each other.
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", link, "") != 0:
        raise RuntimeError("the transfer engine did not start")
    return engine, f"127.0.0.1:{engine.get_rpc_port()}"


def register(engine, buffer):
    if engine.register_memory(harness.address(buffer), len(buffer)) != 0:
        raise RuntimeError("memory was not registered")


def write(engine, there, source, target):
    if engine.transfer_sync_write(there, harness.address(source), target, len(source)) != 0:
        raise RuntimeError("a transfer failed")


if __name__ == "__main__":
    harness.run(measure, serve)
