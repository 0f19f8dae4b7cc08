"""The models of this library and of Hugging Face, compacted."""

import pytest
import torch
from torch import nn

from compactable import assert_same, drawn, thinned, units, without_rows
from shrinkage.deploy.compact import compact
from shrinkage.deploy.surgery import reshape_like
from shrinkage.models import MODELS

transformers = pytest.importorskip("transformers")
DEEP = {"vgg-16", "resnet-32", "resnet-50", "resnet-56"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DEEP)) for name in MODELS])
def test_our_models(name):
    torch.manual_seed(0)
    make = MODELS[name]
    model = thinned(drawn(make((3, 32, 32), 10)), 0.99).double()
    x = torch.randn(1, 3, 32, 32).double()
    result = compact(model, x)
    assert result.left == ()
    assert result.total.after.parameters < result.total.before.parameters
    assert_same(result, model, torch.randn(2, 3, 32, 32).double())
    fresh = reshape_like(make((3, 32, 32), 10).double(), result.model.state_dict())
    fresh.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(fresh.eval()(x), result.model.eval()(x))


def logits(result, model, example):
    with torch.no_grad():
        return result.model.eval()(**example).logits, model.eval()(**example).logits


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def tokens(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def test_bert_loses_neurons_and_dead_heads():
    torch.manual_seed(0)
    model = without_rows(bert(), 0.5, skip=("embed", "attention", "classifier")).double()
    value = model.bert.encoder.layer[1].attention.self.value
    nn.init.zeros_(value.weight[8:16].data)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    result = compact(model, {"input_ids": tokens(2, 7), "attention_mask": mask})
    left = units(result)
    assert left["bert.encoder.layer.1.attention.self.query"] == left["bert.encoder.layer.1.attention.self.value"] == 24
    assert all(left[f"bert.encoder.layer.{i}.intermediate.dense"] < 40 for i in range(2))
    assert left["bert.pooler.dense"] < 20
    assert result.left == ()
    for example in ({"input_ids": tokens(3, 11)}, {"input_ids": tokens(2, 7), "attention_mask": mask}):
        torch.testing.assert_close(*logits(result, model, example), rtol=1e-9, atol=1e-9)
    fresh = reshape_like(bert().double(), result.model.state_dict())
    fresh.load_state_dict(result.model.state_dict())
    example = {"input_ids": tokens(2, 9)}
    torch.testing.assert_close(fresh.eval()(**example).logits, result.model.eval()(**example).logits)


def test_vit_loses_neurons():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4
    )
    model = thinned(transformers.ViTForImageClassification(config), 0.95).double()
    result = compact(model, {"pixel_values": torch.randn(1, 3, 16, 16).double()})
    assert result.total.after.parameters < 0.9 * result.total.before.parameters
    example = {"pixel_values": torch.randn(2, 3, 16, 16).double()}
    torch.testing.assert_close(*logits(result, model, example), rtol=1e-9, atol=1e-9)


def test_gpt2_with_its_transposed_weights_and_its_cache():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
    )
    model = drawn(transformers.GPT2LMHeadModel(config)).double()
    for block in model.transformer.h:
        nn.init.zeros_(block.mlp.c_fc.weight[:, :20].data)  # constants
        nn.init.zeros_(block.mlp.c_proj.weight[20:30].data)  # and neurons that nobody reads
    result = compact(model, {"input_ids": tokens(2, 6)})
    assert units(result)["transformer.h.0.mlp.c_fc"] == 18
    assert (result.model.transformer.h[0].mlp.c_proj.nx, result.model.transformer.h[0].mlp.c_proj.nf) == (18, 12)
    torch.testing.assert_close(*logits(result, model, {"input_ids": tokens(3, 9)}), rtol=1e-9, atol=1e-9)
