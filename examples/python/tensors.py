"""A tensor there and back: python tensors.py [genie://HOST:PORT]"""

import array
import sys

import genie

with genie.connect(sys.argv[1] if len(sys.argv) > 1 else None) as session:
    for device in session.devices():
        print(f"{device.name}: {device.model}, {device.free_bytes / 1e9:.1f} GB free")

    # Anything with the buffer protocol or DLPack: a NumPy array, a PyTorch tensor, this.
    numbers = array.array("f", [-1.0, 0.5, 2.0])
    x = session.put(numbers)
    print(x)

    back = session.get(x)
    assert back.tolist() == numbers.tolist()

    # Others find it by its name, also when this session has ended.
    session.put(numbers, name="example")
    print(session.get(session.lookup("example")).tolist())
