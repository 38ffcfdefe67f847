"""A layer that runs on the server, again and again: python graph.py [genie://HOST:PORT]"""

import array
import sys

import genie

g = genie.Graph("layer")
x = g.input("x", "f32", ("batch", 3))
w = g.input("w", "f32", (2, 3), role="weight")
y = g.op("linear", x, w, layout="out_in")
y = g.op("softmax", y, axis=-1)
g.output("y", y)
print(g.dump())

with genie.connect(sys.argv[1] if len(sys.argv) > 1 else None) as session:
    # A weight is known by its content: what the server has is not sent.
    weights = genie.asarray(array.array("f", [1, 0, 0, 0, 1, 0]), shape=(2, 3))
    layer = session.bind(session.define(g), weights={"w": session.put(weights, weight=True)})

    up, down = session.traffic()
    for i in range(3):
        row = genie.asarray(array.array("f", [i, 1, 0]), shape=(1, 3))
        [out] = session.run(layer, {"x": row})
        print(out.tolist())
    now = session.traffic()
    print(f"{(now[0] - up) // 3} bytes up and {(now[1] - down) // 3} down a run")
