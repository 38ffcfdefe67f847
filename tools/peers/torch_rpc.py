"""PyTorch's RPC framework over TensorPipe: remote functions that take a tensor. Two transports: uv (tcp), and shm with cma (shared
memory for messages, process_vm_readv for tensors), which is what it chooses by itself on one host."""

import contextlib
import os

import harness

TENSORPIPE = {"tcp": (["uv"], ["basic"]), "shm": (["shm"], ["cma"])}
RENDEZVOUS = "tcp://127.0.0.1:29317"


def echoed(tensor):
    return tensor


def taken(tensor):
    return tensor.numel()


def measure(link):
    version = harness.version("torch")
    with harness.own_end(__file__, link):
        import torch
        from torch.distributed import rpc

        join("client", 0, link)
        message = torch.zeros(harness.ECHO_BYTES, dtype=torch.uint8)

        @contextlib.contextmanager
        def of_size(size, depth):
            sources = [torch.frombuffer(harness.pattern(size), dtype=torch.uint8) for _ in range(depth)]
            yield lambda slot: rpc.rpc_async("server", taken, args=(sources[slot],)), lambda future: future.wait()

        echo = harness.echo(lambda: rpc.rpc_sync("server", echoed, args=(message,)))
        puts = harness.puts(of_size)
        harness.say(version=f"torch {version}", echo=echo, puts=puts)
        # A shutdown would wait for the other end, which ends with this one.
        os._exit(0)


def serve(link):
    harness.say(ready=True)
    join("server", 1, link)
    harness.until_parent_ends()
    os._exit(0)


def join(name, rank, link):
    from torch.distributed import rpc

    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    transports, channels = TENSORPIPE[link]
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=RENDEZVOUS, _transports=transports, _channels=channels, num_worker_threads=4
    )
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


if __name__ == "__main__":
    # Functions travel by the name of their module: both ends have them in `torch_rpc`, not in `__main__`.
    import torch_rpc

    harness.run(torch_rpc.measure, torch_rpc.serve)
