"""Ray, one node: an actor's methods. A put is `ray.put` into the object store (shared memory) and a method of the actor that looks
at the array, so that the actor's process has mapped it."""

import contextlib
import os
import time

import harness


def measure(_link):
    version = harness.version("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import numpy
    import ray

    store = (max(harness.DEPTHS) + 2) * max(harness.PUT_BYTES)
    # Its log goes to the driver's standard output otherwise.
    ray.init(
        num_cpus=os.cpu_count(),
        object_store_memory=2 * store,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        actor = ray.remote(Actor).remote()
        message = bytes(harness.ECHO_BYTES)
        ray.get(actor.echo.remote(message))

        @contextlib.contextmanager
        def of_size(size, depth):
            sources = [numpy.frombuffer(harness.pattern(size), dtype=numpy.uint8) for _ in range(depth)]
            yield lambda slot: actor.taken.remote(ray.put(sources[slot])), ray.get
            # The store frees behind the caller's back: the next size begins with an empty one.
            time.sleep(0.5)

        echo = harness.echo(lambda: ray.get(actor.echo.remote(message)))
        return {"version": f"ray {version}", "echo": echo, "puts": harness.puts(of_size)}
    finally:
        ray.shutdown()


class Actor:
    def echo(self, message):
        return message

    def taken(self, array):
        return array.size + int(array[-1])


if __name__ == "__main__":
    harness.run(measure)
