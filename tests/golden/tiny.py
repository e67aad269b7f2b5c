"""Tiny checkpoints of every supported family, their outputs and their gradients: `tiny.json`.

Weights are not stored: both sides compute them from each tensor's name (`common.formula_tensor`), so a test can write
the same safetensors file bit for bit.
"""

import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

from common import formula_rows, formula_tensor, numbers, uniform, write
from decoder import greedy
from encoder import mean_unit

PROMPT = [(7 * n * n + 3 * n + 11) % 96 for n in range(24)]
SOFT = (6, 14)
LORA_RANK, LORA_SCALE = 2, 2.0
CLOSE_CALL = 1e-3

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 95,
}
LLAMA = BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MISTRAL = BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}
QWEN3 = BASE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6, "head_dim": 16}
# With theta 10,000 and heads of 8, one frequency falls in each of the three bands and one in the blend.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

DECODERS = {
    "llama": LLAMA,
    "llama_tied": LLAMA | {"tie_word_embeddings": True},
    "llama_one_kv_head": LLAMA | {"num_key_value_heads": 1, "head_dim": 12},
    "llama3_rope": LLAMA | {"rope_scaling": LLAMA3_ROPE},
    "llama_linear_rope": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral_window": MISTRAL | {"sliding_window": 8},
    "mistral_no_window": MISTRAL | {"sliding_window": None, "head_dim": 16},
    # A window that is named but switched off, as the published configurations have it.
    "qwen2_untied": QWEN2 | {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    "qwen2_tied": QWEN2 | {"tie_word_embeddings": True, "rope_theta": 1000000.0},
    "qwen3_untied": QWEN3,
    # The newer spelling of rope_theta.
    "qwen3_tied": {key: value for key, value in QWEN3.items() if key != "rope_theta"}
    | {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
}
WITH_GRADIENTS = ["llama", "mistral_window", "qwen2_tied", "qwen3_untied"]

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
ENCODERS = {
    "bert": (BERT, ""),
    # The tanh form of GELU, a large epsilon, and names as a checkpoint with a head has them.
    "bert_tanh_prefixed": (BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2}, "bert."),
    "bert_relu": (BERT | {"hidden_act": "relu", "layer_norm_eps": 1e-5, "type_vocab_size": 1}, ""),
}
BERT_GRADIENTS = [
    "embeddings.word_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.0.attention.self.value.bias",
    "encoder.layer.1.attention.output.LayerNorm.weight",
    "encoder.layer.1.output.dense.weight",
]


def checkpoints() -> None:
    value = {
        "formula": [{"name": n, "index": i, "value": uniform(n, i)} for n, i in (("", 0), ("a", 1), ("model.norm.weight", 31))],
        "prompt": PROMPT,
        "soft": {"start": SOFT[0], "end": SOFT[1]},
        "decoders": [decoder(name, config) for name, config in DECODERS.items()],
        "encoders": [encoder(name, config, prefix) for name, (config, prefix) in ENCODERS.items()],
    }
    write("tiny.json", value)


def spread(name: str) -> tuple[float, float]:
    """`(scale, offset)` of the formula for a tensor, chosen so that logits are far from flat."""
    if "norm" in name.lower():
        return (0.5, 1.0) if name.endswith("weight") else (0.5, 0.0)
    if "embed" in name:
        return 2.0, 0.0
    return 1.0, 0.0


def fill(model: torch.nn.Module, prefix: str = "") -> list[dict]:
    """Overwrites every parameter with its formula and returns the list of tensors for the JSON."""
    tensors = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # tied parameters appear once
            scale, offset = spread(name)
            parameter.copy_(formula_tensor(prefix + name, parameter.shape, scale, offset))
            tensors.append(
                {"name": prefix + name, "shape": list(parameter.shape), "scale": scale, "offset": offset}
            )
    return tensors


def load_decoder(config: dict) -> tuple[torch.nn.Module, list[dict]]:
    """Through a real config.json and safetensors, as a user's directory would be loaded."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        tensors = fill(model)
        by_name = dict(model.named_parameters())
        save_file({t["name"]: by_name[t["name"]].detach().clone() for t in tensors}, path / "model.safetensors")
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return loaded, tensors


def decoder(name: str, config: dict) -> dict:
    model, tensors = load_decoder(config)
    with torch.no_grad():
        rows = model(torch.tensor([PROMPT])).logits[0]
        embeddings = model.get_input_embeddings()(torch.tensor([PROMPT])).clone()
        embeddings[0, SOFT[0] : SOFT[1]] = formula_rows(SOFT[1] - SOFT[0], embeddings.shape[-1])
        mixed = model(inputs_embeds=embeddings).logits[0]
    continued = greedy(model, PROMPT, 16, None)
    if min(continued["margins"]) < CLOSE_CALL:
        raise ValueError(f"{name}: a greedy step is decided by {min(continued['margins'])}; change the prompt")
    case = {
        "name": name,
        "config": config,
        "tensors": tensors,
        "first": numbers(rows[0]),
        "middle": numbers(rows[11]),
        "last": numbers(rows[-1]),
        "mixed_last": numbers(mixed[-1]),
        "continuation": continued["continuation"],
        "margins": continued["margins"],
    }
    return case | ({"gradients": gradients(model)} if name in WITH_GRADIENTS else {})


class Lora(torch.nn.Module):
    """`W x + scale * B A x`, with A `[rank, in]` and B `[out, rank]` from the formula."""

    def __init__(self, name: str, base: torch.nn.Linear):
        super().__init__()
        self.base = base
        self.a = torch.nn.Parameter(formula_tensor(f"{name}.lora_A.weight", (LORA_RANK, base.in_features), 0.5))
        self.b = torch.nn.Parameter(formula_tensor(f"{name}.lora_B.weight", (base.out_features, LORA_RANK), 0.5))

    def forward(self, x):
        return self.base(x) + LORA_SCALE * (x @ self.a.T @ self.b.T)


def add_lora(model: torch.nn.Module) -> dict[str, Lora]:
    layers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.endswith("_proj"):
            layers[name] = Lora(name, module)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layers[name])
    return layers


def gradients(model: torch.nn.Module) -> dict:
    """Mean cross-entropy of the last ten ids, each predicted from the position before it, after the soft stretch."""
    layers = add_lora(model)
    embeddings = model.get_input_embeddings()(torch.tensor([PROMPT])).detach().clone()
    embeddings[0, SOFT[0] : SOFT[1]] = formula_rows(SOFT[1] - SOFT[0], embeddings.shape[-1])
    embeddings.requires_grad_()
    first = len(PROMPT) - 10
    rows = model(inputs_embeds=embeddings).logits[0, first - 1 : -1]
    loss = torch.nn.functional.cross_entropy(rows, torch.tensor(PROMPT[first:]))
    loss.backward()
    lora = [
        {"name": name, "a": numbers(layer.a.grad), "b": numbers(layer.b.grad)} for name, layer in layers.items()
    ]
    return {
        "lora_rank": LORA_RANK,
        "lora_scale": LORA_SCALE,
        "lora_spread": 0.5,
        "first_target": first,
        "loss": float(f"{loss.item():.8g}"),
        "inputs_embeds": numbers(embeddings.grad),
        "lora": lora,
    }


def encoder(name: str, config: dict, prefix: str) -> dict:
    model = BertModel(BertConfig(**config, attn_implementation="eager"), add_pooling_layer=False).eval()
    tensors = fill(model, prefix)
    short = PROMPT[:9]
    padded = torch.tensor([PROMPT, short + [0] * (len(PROMPT) - len(short))])
    mask = torch.tensor([[1] * len(PROMPT), [1] * len(short) + [0] * (len(PROMPT) - len(short))])
    output = model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    hidden = output.last_hidden_state
    unit = mean_unit(hidden, mask)
    weights = formula_rows(len(PROMPT), hidden.shape[-1])
    loss = (hidden[0] * weights).sum()
    loss.backward()
    by_name = dict(model.named_parameters())
    if not math.isfinite(loss.item()):
        raise ValueError(f"{name}: loss {loss.item()}")
    return {
        "name": name,
        "config": config,
        "tensors": tensors,
        "ids": [PROMPT, short],
        "embeddings": numbers(output.hidden_states[0][0]),
        "last_hidden": [numbers(hidden[0]), numbers(hidden[1, : len(short)])],
        "vectors": [numbers(unit[0]), numbers(unit[1])],
        "loss": float(f"{loss.item():.8g}"),
        "gradients": [{"name": prefix + key, "grad": numbers(by_name[key].grad)} for key in BERT_GRADIENTS],
    }
