"""NIXL's Python API over its UCX backend: one-sided writes into registered memory, with a notification where the other end must
know. Both ends poll from their main thread; NIXL's own progress thread would take a core from one of them."""

import base64
import contextlib
import os
import threading

import harness

# What UCX may use; its own default would take shared memory where it can.
UCX = {
    "tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"},
    # Its endpoints want a transport that reports failures, which shared memory does not: tcp stands beside it, and moves nothing.
    "shm": {"UCX_TLS": "shm,tcp", "UCX_NET_DEVICES": "lo"},
}
LARGEST = max(harness.PUT_BYTES)
DEPTH = max(harness.DEPTHS)


def measure(link):
    version = harness.version("nixl")
    os.environ |= UCX[link]
    agent = make_agent("client")
    with harness.own_end(__file__, link, UCX[link]) as (process, server):
        back = harness.pattern(harness.ECHO_BYTES)
        register(agent, back)
        harness.tell(process, metadata=encoded(agent), back=harness.address(back))
        there = acquainted(agent, server["metadata"])
        message = harness.pattern(harness.ECHO_BYTES)
        register(agent, message)
        ask = prepared(agent, message, server["echo"], there)

        def round_trip():
            # The notification follows when the write is seen to be done.
            finish(agent, start(agent, ask, b"echo"))
            wait_for_notification(agent)

        @contextlib.contextmanager
        def of_size(size, depth):
            sources = [harness.pattern(size) for _ in range(depth)]
            registered = [register(agent, source) for source in sources]
            transfers = [
                prepared(agent, source, server["slots"] + slot * LARGEST, there) for slot, source in enumerate(sources)
            ]
            yield lambda slot: start(agent, transfers[slot]), lambda transfer: finish(agent, transfer)
            for transfer, one in zip(transfers, registered):
                agent.release_xfer_handle(transfer)
                agent.deregister_memory(one)

        return {"version": f"nixl {version}", "echo": harness.echo(round_trip), "puts": harness.puts(of_size)}


def serve(link):
    agent = make_agent("server")
    echo, slots = harness.pattern(harness.ECHO_BYTES), harness.pattern(LARGEST * DEPTH)
    register(agent, echo)
    register(agent, slots)
    harness.say(metadata=encoded(agent), echo=harness.address(echo), slots=harness.address(slots))
    client = harness.told()
    there = acquainted(agent, client["metadata"])
    threading.Thread(target=lambda: (harness.until_parent_ends(), os._exit(0)), daemon=True).start()
    answer = prepared(agent, echo, client["back"], there)
    while True:
        # Looking for notifications is also what lets puts arrive.
        wait_for_notification(agent)
        finish(agent, start(agent, answer, b"echo"))


def make_agent(name):
    # It logs to standard output.
    from nixl._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))


def register(agent, buffer):
    return agent.register_memory([(harness.address(buffer), len(buffer), 0, "")], "DRAM")


def prepared(agent, source, target, there):
    here = agent.get_xfer_descs([(harness.address(source), len(source), 0)], "DRAM")
    remote = agent.get_xfer_descs([(target, len(source), 0)], "DRAM")
    return agent.initialize_xfer("WRITE", here, remote, there)


def start(agent, transfer, notification=b""):
    if agent.transfer(transfer, notification) == "ERR":
        raise RuntimeError("a transfer was not accepted")
    return transfer


def finish(agent, transfer):
    while (state := agent.check_xfer_state(transfer)) == "PROC":
        pass
    if state == "ERR":
        raise RuntimeError("a transfer failed")


def wait_for_notification(agent):
    while not agent.get_new_notifs():
        pass


def acquainted(agent, metadata):
    name = agent.add_remote_agent(base64.b64decode(metadata))
    return name.decode() if isinstance(name, bytes) else name


def encoded(agent):
    return base64.b64encode(agent.get_agent_metadata()).decode()


if __name__ == "__main__":
    harness.run(measure, serve)
