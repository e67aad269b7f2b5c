"""What is trained beside the decoder's LoRA, by torch's autograd: `training.json`.

Encoder LoRA on the tiny encoders of `tiny.json`, the paper's attention pooling, and the divergence from a teacher.
Parameters are not stored: both sides compute them from their names, as in `tiny.py`.
"""

import torch
from transformers import BertConfig, BertModel

import tiny
from common import formula_rows, formula_tensor, numbers, write

RANK, SCALE, SPREAD = 2, 2.0, 0.5
WITH_LORA = ["bert", "bert_tanh_prefixed"]
D_ENC, D_MODEL, HIDDEN, QUERIES, HEADS = 4, 16, 10, 3, 4
PIECES = [5, 2]
OUTPUT_SCALE, EMBEDDING_RMS, RMS_EPS = 1.3, 0.7, 1e-6


def values() -> None:
    write(
        "training.json",
        {
            "encoder_lora": [encoder_lora(name) for name in WITH_LORA],
            "attention_pooling": attention_pooling(),
            "divergences": divergences(),
        },
    )


class Adapted(torch.nn.Module):
    """`W x + b + scale * B A x`; `rows` picks a part of a B that several linears share."""

    def __init__(self, base: torch.nn.Linear, a: torch.nn.Parameter, b: torch.nn.Parameter, rows: slice):
        super().__init__()
        self.base, self.a, self.b, self.rows = base, a, b, rows

    def forward(self, x):
        return self.base(x) + SCALE * (x @ self.a.T @ self.b[self.rows].T)


def encoder_lora(name: str) -> dict:
    config, prefix = tiny.ENCODERS[name]
    model = BertModel(BertConfig(**config, attn_implementation="eager"), add_pooling_layer=False).eval()
    tiny.fill(model, prefix)
    width, inner = config["hidden_size"], config["intermediate_size"]
    trained = {}

    def parameter(key: str, shape: tuple) -> torch.nn.Parameter:
        trained[key] = torch.nn.Parameter(formula_tensor(key, shape, SPREAD))
        return trained[key]

    for index, layer in enumerate(model.encoder.layer):
        at = f"layers.{index}"
        shapes = {"qkv": (width, 3 * width), "output": (width, width), "up": (width, inner), "down": (inner, width)}
        pairs = {
            key: (parameter(f"{at}.{key}.a", (RANK, i)), parameter(f"{at}.{key}.b", (o, RANK)))
            for key, (i, o) in shapes.items()
        }
        attention = layer.attention.self
        for part, leaf in enumerate(["query", "key", "value"]):
            rows = slice(part * width, (part + 1) * width)
            setattr(attention, leaf, Adapted(getattr(attention, leaf), *pairs["qkv"], rows))
        for owner, key in ((layer.attention.output, "output"), (layer.intermediate, "up"), (layer.output, "down")):
            owner.dense = Adapted(owner.dense, *pairs[key], slice(None))
    hidden = model(input_ids=torch.tensor([tiny.PROMPT])).last_hidden_state[0]
    (hidden * formula_rows(len(tiny.PROMPT), width)).sum().backward()
    return {
        "name": name,
        "rank": RANK,
        "scale": SCALE,
        "spread": SPREAD,
        "last_hidden": numbers(hidden),
        "gradients": [{"name": key, "grad": numbers(value.grad)} for key, value in trained.items()],
    }


def attention_pooling() -> dict:
    features = 2 * D_ENC
    shapes = {
        "queries": (QUERIES, D_MODEL),
        "attend.q.weight": (D_MODEL, D_MODEL),
        "attend.k.weight": (D_MODEL, features),
        "attend.v.weight": (D_MODEL, features),
        "attend.v.bias": (D_MODEL,),
        "attend.o.weight": (D_MODEL, D_MODEL),
        "norm1.weight": (D_MODEL,),
        "norm1.bias": (D_MODEL,),
        "ffn.up.weight": (HIDDEN, D_MODEL),
        "ffn.up.bias": (HIDDEN,),
        "ffn.down.weight": (D_MODEL, HIDDEN),
        "ffn.down.bias": (D_MODEL,),
        "norm2.weight": (D_MODEL,),
        "norm2.bias": (D_MODEL,),
    }
    offset = lambda name: 1.0 if name.startswith("norm") and name.endswith("weight") else 0.0
    p = {n: torch.nn.Parameter(formula_tensor(n, shape, 1.0, offset(n))) for n, shape in shapes.items()}
    p["scale"] = torch.nn.Parameter(torch.tensor([OUTPUT_SCALE]))
    x = formula_tensor("features", (sum(PIECES), features), 2.0).requires_grad_()
    soft = torch.cat([pooled(p, chunk) for chunk in x.split(PIECES)])
    (soft * formula_rows(soft.shape[0], D_MODEL)).sum().backward()
    return {
        "d_enc": D_ENC,
        "d_model": D_MODEL,
        "value_hidden": HIDDEN,
        "queries": QUERIES,
        "heads": HEADS,
        "embedding_rms": EMBEDDING_RMS,
        "pieces": PIECES,
        "parameters": [
            {"name": n, "shape": list(v.shape), "scale": 0.0 if n == "scale" else 1.0,
             "offset": OUTPUT_SCALE if n == "scale" else offset(n), "grad": numbers(v.grad)}
            for n, v in p.items()
        ],
        "soft": numbers(soft),
        "features_grad": numbers(x.grad),
    }


def pooled(p: dict, x: torch.Tensor) -> torch.Tensor:
    """h = LN(MHA(q, K, V) + q), c = LN(h + FFN(h)), brought to the embeddings' RMS."""
    zeros = torch.zeros(D_MODEL)
    functional = torch.nn.functional
    mixed, _ = functional.multi_head_attention_forward(
        p["queries"].unsqueeze(1),
        x.unsqueeze(1),
        x.unsqueeze(1),
        D_MODEL,
        HEADS,
        in_proj_weight=None,
        in_proj_bias=torch.cat([zeros, zeros, p["attend.v.bias"]]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=p["attend.o.weight"],
        out_proj_bias=zeros,
        use_separate_proj_weight=True,
        q_proj_weight=p["attend.q.weight"],
        k_proj_weight=p["attend.k.weight"],
        v_proj_weight=p["attend.v.weight"],
    )
    norm = lambda value, name: functional.layer_norm(value, (D_MODEL,), p[f"{name}.weight"], p[f"{name}.bias"])
    h = norm(mixed.squeeze(1) + p["queries"], "norm1")
    inner = functional.gelu(functional.linear(h, p["ffn.up.weight"], p["ffn.up.bias"]))
    c = norm(h + functional.linear(inner, p["ffn.down.weight"], p["ffn.down.bias"]), "norm2")
    return functional.rms_norm(c, (D_MODEL,), eps=RMS_EPS) * EMBEDDING_RMS * p["scale"]


def divergences() -> dict:
    shape = (4, 7)
    student = formula_tensor("student", shape, 6.0).requires_grad_()
    teacher = formula_tensor("teacher", shape, 6.0)
    functional = torch.nn.functional
    each = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25])
    (each * weights).sum().backward()
    return {
        "shape": list(shape),
        "spread": 6.0,
        "weights": weights.tolist(),
        "divergences": numbers(each),
        "grad": numbers(student.grad),
    }
