"""ONNX Runtime, fp32, on the encoder: exported from its safetensors by torch.onnx, held to torch's output."""

import os
import sys

import numpy as np
import onnxruntime

import peer

NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TOLERANCE = 1e-4
# (graph, chunks in a batch)
SETTINGS = [(graph, batch) for graph in ("plain", "fused") for batch in (8, 16, 32, 64)]


def padded(chunks):
    """Arrays `[chunks, longest]`: ids, mask, types."""
    longest = max(map(len, chunks))
    ids, mask = np.zeros((2, len(chunks), longest), dtype=np.int64)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk)], mask[row, : len(chunk)] = chunk, 1
    return dict(zip(NAMES, (ids, mask, np.zeros_like(ids))))


def export(encoder, path):
    """Writes the graph and holds it to torch on padded chunks of several lengths."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder, dtype=torch.float32, attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, **given).last_hidden_state

    draw = np.random.default_rng(1)
    batch = padded([[101, *draw.integers(1000, 20000, length), 102] for length in (14, 30, 6)])
    tensors = tuple(torch.from_numpy(batch[name]) for name in NAMES)
    free = {name: {0: "chunks", 1: "tokens"} for name in [*NAMES, "states"]}
    part, states = path + ".part", States().eval()
    wider = padded([[101, *draw.integers(1000, 20000, length), 102] for length in (120, 3, 77, 50)])
    with torch.inference_mode():
        expected = states(*(torch.from_numpy(wider[name]) for name in NAMES)).numpy()
        names = {"input_names": NAMES, "output_names": ["states"], "dynamic_axes": free}
        torch.onnx.export(states, tensors, part, opset_version=17, dynamo=False, **names)
    got = session(part, 1).run(None, wider)[0]
    apart = float(np.abs(np.where(wider["attention_mask"][..., None] == 1, got - expected, 0)).max())
    if apart > TOLERANCE:
        raise ValueError(f"the exported graph is {apart:.2g} from torch, {TOLERANCE} is allowed: delete {part}, other versions may export right")
    os.replace(part, path)


def fuse(plain, path):
    """Attention, GELU and skip-LayerNorm as single operators, by ONNX Runtime's own optimizer."""
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(plain, model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
    model.save_model_to_file(path)
    print("fused:", model.get_fused_operator_statistics(), file=sys.stderr)


def session(path, threads):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


class Encoder:
    def __init__(self, options):
        self.options, self.sessions = options, {}
        self.fastest = peer.Fastest(SETTINGS, attempts=1)

    def session(self, graph):
        if graph not in self.sessions:
            plain = os.path.join(self.options.cache, "encoder.onnx")
            path = {"plain": plain, "fused": os.path.join(self.options.cache, "encoder-fused.onnx")}[graph]
            if not os.path.exists(plain):
                export(self.options.encoder, plain)
            if not os.path.exists(path):
                fuse(plain, path)
            self.sessions[graph] = session(path, self.options.threads)
        return self.sessions[graph]

    def encode(self, request):
        chunks = peer.inputs(request)["chunks"]
        return self.fastest.run(request, lambda setting: self.with_setting(chunks, *setting))

    def with_setting(self, chunks, graph, batch):
        """Sorted by length, so that little is padded; padding and sorting count."""
        running, first = self.session(graph), []

        def run():
            order = sorted(range(len(chunks)), key=lambda index: -len(chunks[index]))
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                states = running.run(None, padded([chunks[row] for row in rows]))[0]
                if 0 in rows:
                    first[:] = states[rows.index(0), 0, :64].tolist()

        seconds, _ = peer.timed(run)
        return seconds, len(chunks), {"check": first}


if __name__ == "__main__":
    peer.serve("onnxruntime", onnxruntime.__version__, {"encode-": Encoder(peer.options()).encode})
