"""Vectors of all-MiniLM-L6-v2 through transformers' BertModel: `encoder.json`."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertModel

from common import numbers, write
from texts import ENCODER_TEXTS

DIMENSIONS = 8


def vectors(model_dir: Path) -> None:
    model = BertModel.from_pretrained(str(model_dir), dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [tokenizer.encode(text).ids for text in ENCODER_TEXTS]
    alone = [encode(model, [row]) for row in ids]
    batch = encode(model, ids)

    cases = []
    for n, (text, row) in enumerate(zip(ENCODER_TEXTS, ids)):
        drift = (alone[n]["unit"][0] - batch["unit"][n]).abs().max().item()
        if drift > 1e-5:
            raise ValueError(f"text {n}: padding moved its vector by {drift}")
        cases.append({"text": text, "ids": row, "vector": numbers(alone[n]["unit"][0])} | rows(alone[n], len(row)))
    write("encoder.json", {"dimensions": DIMENSIONS, "cases": cases})


def rows(encoded: dict, length: int) -> dict:
    """The first few dimensions at the first, second, middle and last position."""
    positions = sorted({0, 1, length // 2, length - 1})
    return {
        "positions": positions,
        "embeddings": [numbers(encoded["embeddings"][0, p, :DIMENSIONS]) for p in positions],
        "last_hidden": [numbers(encoded["last_hidden"][0, p, :DIMENSIONS]) for p in positions],
    }


@torch.no_grad()
def encode(model: BertModel, ids: list[list[int]]) -> dict:
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    output = model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return {
        "embeddings": output.hidden_states[0],
        "last_hidden": output.last_hidden_state,
        "unit": mean_unit(output.last_hidden_state, mask),
    }


def mean_unit(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens, then L2-normalised: sentence-transformers' pooling for this model."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)
