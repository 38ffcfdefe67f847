"""A model on the server goes on with a text: python generate.py MODEL "The capital of France is" [genie://HOST:PORT]"""

import sys

import genie

path, prompt = sys.argv[1:3]
with genie.connect(sys.argv[3] if len(sys.argv) > 3 else None) as session:
    # The weights are sent once; the next program that wants them finds them there.
    model = session.load(path)
    assert isinstance(model, genie.Model), "a file of tensors, not a model"
    with model:
        print(prompt, end="", flush=True)
        for piece in model.generate(prompt, max_new_tokens=20):
            print(piece, end="", flush=True)
        print()
