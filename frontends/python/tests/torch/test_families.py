"""Models of transformers and torchvision, as they are, against the same model on the CPU. Configurations are small, weights random."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

DEVICE = "remote_accelerator:0"
transformers = pytest.importorskip("transformers")


def there(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to(DEVICE)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.device.type == "remote_accelerator"
    torch.testing.assert_close(found.cpu(), wanted, rtol=2e-4, atol=2e-4)


def language_model(family: str) -> Any:
    torch.manual_seed(1)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=211, n_positions=64, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=1)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


PROMPT = torch.tensor([[5, 17, 99, 42, 3, 120, 77], [8, 150, 7, 31, 64, 200, 12]])
#: The second row is shorter: its first two tokens are padding.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_of_language_models(family: str, masked: bool) -> None:
    model = language_model(family)
    mask = MASK if masked else None
    with torch.no_grad():
        wanted = model(PROMPT, attention_mask=mask).logits
        found = there(model)(PROMPT.to(DEVICE), attention_mask=None if mask is None else mask.to(DEVICE)).logits
    if mask is not None:
        # What padding gives is nobody's business.
        real = mask.bool()
        close(found[real.to(DEVICE)], wanted[real])
    else:
        close(found, wanted)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("masked", [False, True])
def test_greedy_generation_gives_the_same_tokens(family: str, masked: bool) -> None:
    model = language_model(family)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 2}
    prompt, mask = (PROMPT, MASK) if masked else (PROMPT[:1], torch.ones_like(PROMPT[:1]))
    wanted = model.generate(prompt, attention_mask=mask, **options)
    given = {"attention_mask": mask.to(DEVICE)} if masked else {}
    found = there(model).generate(prompt.to(DEVICE), **given, **options)
    assert found.device.type == "remote_accelerator"
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampling_follows_the_seed(family: str) -> None:
    model = there(language_model(family))
    options = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8, "max_new_tokens": 10, "min_new_tokens": 10, "pad_token_id": 2}

    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return model.generate(PROMPT.to(DEVICE), attention_mask=MASK.to(DEVICE), **options).tolist()

    first = drawn(3)
    assert drawn(3) == first
    assert any(drawn(seed) != first for seed in (4, 5, 6))
    assert all(0 <= token < 211 for row in first for token in row)


def test_half_precision_language_model() -> None:
    model = language_model("llama").to(torch.bfloat16)
    with torch.no_grad():
        wanted = model(PROMPT).logits.float()
        found = there(model)(PROMPT.to(DEVICE)).logits
    assert found.dtype == torch.bfloat16
    assert (found.float().cpu() - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_bert() -> None:
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=211, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=32
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        wanted = model(PROMPT, attention_mask=MASK)
        found = there(model)(PROMPT.to(DEVICE), attention_mask=MASK.to(DEVICE))
    close(found.pooler_output, wanted.pooler_output)
    close(found.last_hidden_state[0], wanted.last_hidden_state[0])


def test_vit() -> None:
    torch.manual_seed(3)
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8, num_labels=10
    )
    model = transformers.ViTForImageClassification(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(there(model)(pixels.to(DEVICE)).logits, model(pixels).logits)
        # Another size than it was made for: positions are interpolated.
        wide = torch.randn(1, 3, 48, 48)
        wanted = model(wide, interpolate_pos_encoding=True).logits
        close(there(model)(wide.to(DEVICE), interpolate_pos_encoding=True).logits, wanted)


def test_clip() -> None:
    torch.manual_seed(4)
    text = {"vocab_size": 211, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 210}
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    pixels, tokens = torch.randn(3, 3, 32, 32), PROMPT.clone()
    tokens[:, -1] = 210
    with torch.no_grad():
        wanted = model(input_ids=tokens, pixel_values=pixels, attention_mask=MASK)
        found = there(model)(input_ids=tokens.to(DEVICE), pixel_values=pixels.to(DEVICE), attention_mask=MASK.to(DEVICE))
    close(found.logits_per_image, wanted.logits_per_image)
    close(found.text_embeds, wanted.text_embeds)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v2", "convnext_tiny"])
def test_torchvision(name: str) -> None:
    vision = pytest.importorskip("torchvision")
    torch.manual_seed(5)
    model = getattr(vision.models, name)(weights=None, num_classes=10).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(pixels)
        found = there(model)(pixels.to(DEVICE))
    scale = wanted.abs().max().item()
    assert (found.cpu() - wanted).abs().max().item() <= 1e-3 * scale
