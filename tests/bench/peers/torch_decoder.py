"""torch f32 on the decoder, read from the GGUF by transformers: prefill and greedy decoding."""

import os

import torch
from transformers import AutoModelForCausalLM

import peer

SETTINGS = ["sdpa", "eager"]


class Decoder:
    def __init__(self, options):
        torch.set_num_threads(options.threads)
        directory, name = os.path.split(os.path.abspath(options.decoder))
        self.model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32).eval()
        self.fastest = peer.Fastest(SETTINGS)

    def read(self, ids, cache=None):
        """The next token of each row, and the KV cache; logits of the last position only."""
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    @torch.inference_mode()
    def prefill(self, request):
        ids = torch.tensor([peer.inputs(request)["ids"]])

        def with_setting(attention):
            self.model.set_attn_implementation(attention)
            seconds, (token, _) = peer.timed(lambda: self.read(ids))
            return seconds, ids.shape[1], {"check": token[0].tolist()}

        return self.fastest.run(request, with_setting)

    @torch.inference_mode()
    def decode(self, request):
        given = peer.inputs(request)
        prompts, tokens = given["prompts"], given["tokens"]
        if len({len(prompt) for prompt in prompts}) > 1:
            raise peer.Unsupported("prompts of different lengths")
        ids = torch.tensor(prompts)

        def with_setting(attention):
            self.model.set_attn_implementation(attention)
            token, cache = self.read(ids)
            written = [token]

            def write():
                nonlocal cache
                for _ in range(tokens):
                    token, cache = self.read(written[-1], cache)
                    written.append(token)

            seconds, _ = peer.timed(write)
            return seconds, len(prompts) * tokens, {"check": torch.cat(written, 1)[0, :8].tolist()}

        return self.fastest.run(request, with_setting)


if __name__ == "__main__":
    decoder = Decoder(peer.options())
    peer.serve("torch", torch.__version__, {"prefill-": decoder.prefill, "decode-": decoder.decode})
