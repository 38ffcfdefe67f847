"""A language model of transformers, unmodified, with its KV cache on the server."""

from __future__ import annotations

import pytest
import torch
from genie.torch.run import Runner

transformers = pytest.importorskip("transformers")
DEVICE = "remote_accelerator:0"
NEW = 24


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=3, n_embd=48, n_head=3, vocab_size=120, n_positions=128, bos_token_id=0, eos_token_id=119)
    return transformers.GPT2LMHeadModel(config).eval()


def generate(model: torch.nn.Module, ids: torch.Tensor, **more: object) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=119, **{"do_sample": False, **more})


def test_a_token_is_one_small_request(runner: Runner) -> None:
    model, ids = gpt2(), torch.randint(1, 110, (1, 70))
    expected = generate(model, ids)
    model.to(DEVICE)
    there = ids.to(DEVICE)
    assert torch.equal(generate(model, there).cpu(), expected)
    counts = runner.counts
    defined, requests, bytes_before = counts.defined, counts.requests, runner.backend.traffic()
    assert torch.equal(generate(model, there).cpu(), expected)
    moved = [after - before for after, before in zip(runner.backend.traffic(), bytes_before)]
    assert counts.defined - defined <= 1, "equal graphs are defined once"
    assert counts.requests - requests <= NEW + 8, "a request a token"
    assert sum(moved) <= 1024 * (NEW + 8), f"{moved} bytes for {NEW} tokens"


def test_masks_and_batches_are_right_too(runner: Runner) -> None:
    model, ids = gpt2(), torch.randint(1, 110, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = generate(model, ids, attention_mask=mask)
    model.to(DEVICE)
    assert torch.equal(generate(model, ids.to(DEVICE), attention_mask=mask.to(DEVICE)).cpu(), expected)


def test_a_cache_can_be_read_and_gone_on_from_twice(runner: Runner) -> None:
    model, ids = gpt2(), torch.randint(1, 110, (1, 9))
    here, there = model, gpt2().to(DEVICE)
    with torch.no_grad():
        first = [m(x, use_cache=True) for m, x in ((here, ids), (there, ids.to(DEVICE)))]
        first[1].logits.cpu()
        keys = [out.past_key_values.layers[1].keys for out in first]
        # Joined with the next token's by hand, from the same nine, twice: the second goes on from where the first began.
        import copy

        for token in (5, 17):
            outs = []
            for m, out, device in ((here, first[0], "cpu"), (there, first[1], DEVICE)):
                past = copy.deepcopy(out.past_key_values)
                step = m(torch.tensor([[token]]).to(device), past_key_values=past, use_cache=True)
                outs.append((step.logits.cpu(), past.layers[2].values.cpu()))
            torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(keys[1].cpu(), keys[0], rtol=1e-4, atol=1e-5)


def test_sampling_is_the_same_for_a_seed(runner: Runner) -> None:
    model, ids = gpt2().to(DEVICE), torch.randint(1, 110, (1, 8)).to(DEVICE)
    torch.manual_seed(3)
    first = generate(model, ids, do_sample=True, top_k=20).cpu()
    torch.manual_seed(3)
    assert torch.equal(generate(model, ids, do_sample=True, top_k=20).cpu(), first)
