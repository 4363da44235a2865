import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from copra.models.anatomy import attention_output, blocks, ffn_output
from copra.models.per_layer import (
    CopraGPT2Config,
    CopraGPT2LMHeadModel,
    CopraLlamaConfig,
    CopraLlamaForCausalLM,
)
from copra.utils.errors import CopraError

LLAMA_SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 20,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2_SIZES = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 20, "n_positions": 32}
GPT2_SIZES |= {"bos_token_id": None, "eos_token_id": None}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**LLAMA_SIZES)),
        (MistralForCausalLM, MistralConfig(**LLAMA_SIZES)),
        (Qwen2ForCausalLM, Qwen2Config(**LLAMA_SIZES)),
        (Qwen3ForCausalLM, Qwen3Config(**LLAMA_SIZES)),
        (CopraLlamaForCausalLM, CopraLlamaConfig(**LLAMA_SIZES)),
        (GPT2LMHeadModel, GPT2Config(**GPT2_SIZES)),
        (CopraGPT2LMHeadModel, CopraGPT2Config(**{**GPT2_SIZES, "n_embd": 32, "head_dim": 6})),
    ],
)
def test_the_inputs_of_the_parts_have_the_widths_of_heads_and_neurons(model_class, config):
    model = model_class(config).eval()
    widths = []
    assert len(blocks(model)) == 2
    assert blocks(model) is blocks(model.base_model)
    for block in blocks(model):
        for part in (attention_output(block), ffn_output(block)):
            part.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[-1]))
    model(input_ids=torch.arange(5)[None])
    assert widths == [24, 20, 24, 20]


def test_another_family_is_refused_by_name():
    model = BertModel(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    with pytest.raises(CopraError, match="'bert'"):
        blocks(model)
    with pytest.raises(CopraError, match=r"BertLayer.*o_proj"):
        attention_output(model.encoder.layer[0])
