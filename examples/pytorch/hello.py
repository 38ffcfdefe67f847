"""A tensor and a model on another machine: the programs of docs/guide/pytorch.md. GENIE_SERVER names the server."""

import genie
import torch

x = torch.randn(1000, 1000, device="remote_accelerator:0")
y = x.relu().sigmoid().tanh()
print(f"{y.mean().item():.2f}")

model = torch.nn.Sequential(torch.nn.Linear(1000, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).eval()
with torch.no_grad():
    here = model(x.cpu())
    there = model.to("remote_accelerator:0")(x)
print(torch.allclose(here, there.cpu(), atol=1e-4))

with genie.phase("prefill"):
    z = x @ x
print(genie.explain(z).phase)
