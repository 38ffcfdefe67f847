"""The PyTorch device `remote_accelerator`: tensors and modules that live on a Genie server.

Importing this (torch does it by itself where Genie is installed) makes `torch.device("remote_accelerator:0")` a device like any other.
Operations are captured, and run on the server when their values are asked for.
"""

from . import device as _device

_device.register()

from . import ops  # noqa: E402, F401: its modules register what they answer
from .meaning import Explanation, annotate, explain, phase  # noqa: E402
from .run import use  # noqa: E402
from .tensor import RemoteTensor  # noqa: E402

__all__ = ["Explanation", "RemoteTensor", "annotate", "explain", "phase", "use"]
