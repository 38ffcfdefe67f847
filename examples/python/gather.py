"""Many transfers at a time: python gather.py [genie://HOST:PORT]"""

import asyncio
import sys

import genie


async def main(uri: str | None) -> None:
    async with await genie.aio.connect(uri) as session:
        payloads = [bytes([i]) * 1_000_000 for i in range(8)]
        tensors = await asyncio.gather(*(session.put(payload) for payload in payloads))
        arrays = await asyncio.gather(*(session.get(tensor) for tensor in tensors))
        assert [array.tobytes() for array in arrays] == payloads
        print(f"{len(tensors)} there and back, {await session.ping() * 1e6:.0f} us a round trip")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
