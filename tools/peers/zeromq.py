"""ZeroMQ through pyzmq: a pair of sockets; every message is answered, a put with an empty one."""

import contextlib
import os
import threading

import harness


def measure(link):
    version = harness.version("pyzmq")
    import zmq

    with harness.own_end(__file__, link) as (_, server), zmq.Context() as context:
        socket = context.socket(zmq.PAIR)
        socket.connect(server["address"])
        message = bytes(harness.ECHO_BYTES)

        def round_trip():
            socket.send(message)
            socket.recv()

        @contextlib.contextmanager
        def of_size(size, depth):
            sources = [harness.pattern(size) for _ in range(depth)]
            yield lambda slot: socket.send(sources[slot], copy=False), lambda _: socket.recv()

        echo = harness.echo(round_trip)
        puts = harness.puts(of_size)
        socket.close(linger=0)
    return {"version": f"pyzmq {version}, libzmq {zmq.zmq_version()}", "echo": echo, "puts": puts}


def serve(_link):
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    harness.say(address=f"tcp://127.0.0.1:{port}")

    def answer():
        while True:
            frame = socket.recv(copy=False)
            socket.send(frame.bytes if len(frame) <= harness.ECHO_BYTES else b"")

    threading.Thread(target=answer, daemon=True).start()
    harness.until_parent_ends()
    # The context would wait for the thread that still has the socket.
    os._exit(0)


if __name__ == "__main__":
    harness.run(measure, serve)
