"""Next-token logits and greedy continuations of SmolLM2-135M-Instruct, dequantised to f32: `decoder.json`."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from common import formula_rows, number, numbers, top, write
from texts import CHATS, PROMPTS
from tokens import ByteBpe

NEW_TOKENS = 32
CONFIG_KEYS = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "eos_token_id",
]
END_OF_TURN = "<|im_end|>"


def logits(gguf: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = ByteBpe(gguf)
    value = {
        "config": {key: model.config.to_dict()[key] for key in CONFIG_KEYS},
        "prompts": [prompt(model, tokenizer, name, text) for name, text in PROMPTS.items()],
        "chats": [chat(model, tokenizer, name, messages) for name, messages in CHATS.items()],
        "mixed": [
            mixed(model, tokenizer, "paragraph", 5, 17),
            mixed(model, tokenizer, "paragraph", 0, 8),
            mixed(model, tokenizer, "ledger", 300, 428),
            mixed(model, tokenizer, "short", 1, 5),
        ],
    }
    write("decoder.json", value)


@torch.no_grad()
def prompt(model, tokenizer: ByteBpe, name: str, text: str) -> dict:
    ids = tokenizer.encode(text, parse_special=True)
    rows = model(torch.tensor([ids])).logits[0]
    return {"name": name, "text": text, "ids": ids, "next": top(rows[-1]), "log_likelihood": likelihood(rows, ids)}


def likelihood(rows: torch.Tensor, ids: list[int]) -> list[float]:
    """Natural-log probability of each id given those before it; one fewer than ids."""
    log_probabilities = torch.log_softmax(rows[:-1].double(), dim=-1)
    return numbers(log_probabilities[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)])


def chat(model, tokenizer: ByteBpe, name: str, messages: list[dict]) -> dict:
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=tokenizer.chat_template, add_generation_prompt=True
    )
    ids = tokenizer.encode(rendered[0], parse_special=True)
    return {"name": name, "messages": messages, "rendered": rendered[0], "ids": ids} | greedy(
        model, ids, NEW_TOKENS, tokenizer.ids[END_OF_TURN]
    )


@torch.no_grad()
def greedy(model, ids: list[int], count: int, stop: int | None) -> dict:
    """Each step recomputes the whole prefix, so that no cache can be wrong. `margins`: best minus second logit."""
    continuation, margins = [], []
    while len(continuation) < count:
        row = model(torch.tensor([ids + continuation]), use_cache=False).logits[0, -1]
        (best, second), (token, _) = (side.tolist() for side in torch.topk(row, 2))
        margins.append(number(best - second))
        if token == stop:
            return {"continuation": continuation, "margins": margins, "stopped": True}
        continuation.append(token)
    return {"continuation": continuation, "margins": margins, "stopped": False}


@torch.no_grad()
def mixed(model, tokenizer: ByteBpe, name: str, start: int, end: int) -> dict:
    """The prompt with the embeddings of `start..end` replaced by `formula_rows`."""
    ids = tokenizer.encode(PROMPTS[name], parse_special=True)
    embeddings = model.get_input_embeddings()(torch.tensor([ids])).clone()
    embeddings[0, start:end] = formula_rows(end - start, embeddings.shape[-1])
    row = model(inputs_embeds=embeddings).logits[0, -1]
    return {"prompt": name, "start": start, "end": end, "next": top(row)}
