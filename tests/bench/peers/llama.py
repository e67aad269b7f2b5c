"""llama.cpp as xllamacpp ships it: its server, asked over HTTP on the loopback; times are the server's own where it gives them."""

import http.client
import importlib.metadata
import json
from concurrent.futures import ThreadPoolExecutor

import gguf
import xllamacpp

import peer

WINDOW = 8192
FLASH = {"flash": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED}
FLASH["plain"] = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
TYPES = {"f16": xllamacpp.ggml_type.GGML_TYPE_F16, "q8_0": xllamacpp.ggml_type.GGML_TYPE_Q8_0}
# (attention, KV cache, its layout); a quantised KV cache needs flash attention.
ONE = [("flash", "f16", "split"), ("plain", "f16", "split"), ("flash", "q8_0", "split")]
MANY = [*ONE, ("flash", "f16", "unified"), ("plain", "f16", "unified")]
# The same and slots.
BULK = [(*setting, slots) for setting in ONE[:2] for slots in (2, 4, 8)]


def bytes_per_position(path, kind):
    """Of keys and values of all layers."""
    fields = gguf.GGUFReader(path).fields
    layers, heads, kv_heads, width = (
        int(fields[f"llama.{name}"].contents())
        for name in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
    )
    return 2 * layers * kv_heads * (width // heads) * {"f16": 2, "q8_0": 34 / 32}[kind]


class Server:
    """One server; its slots are its parallel sequences."""

    def __init__(self, options, slots, window, attention, kind, layout):
        params = xllamacpp.CommonParams()
        params.model.path = options.decoder
        params.n_parallel, params.n_ctx = slots, slots * window
        params.n_batch, params.n_ubatch = 2048, 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.flash_attn_type = FLASH[attention]
        params.cache_type_k = params.cache_type_v = TYPES[kind]
        params.kv_unified = layout == "unified"
        # A second cache, of whole slots in memory: it would only copy.
        params.cache_ram_mib = 0
        params.fit_params = False
        self.server = xllamacpp.Server(params)
        self.address = self.server.listening_address.removeprefix("http://")

    def complete(self, ids, tokens, slot=-1, keep=False):
        """Greedy; EOS is a token like others."""
        body = {"prompt": ids, "n_predict": tokens, "id_slot": slot, "cache_prompt": keep}
        body |= {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "return_tokens": True}
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        reply = json.load(connection.getresponse())
        connection.close()
        if "error" in reply:
            raise ValueError(reply["error"].get("message", reply["error"]))
        return reply


class Llama:
    def __init__(self, options):
        self.options, self.held, self.fastest = options, (None, None), {}

    def server(self, *shape):
        """One is held at a time: another shape takes its place."""
        if self.held[0] != shape:
            self.held = (None, None)
            self.held = (shape, Server(self.options, *shape))
        return self.held[1]

    def tuned(self, request, settings, work, attempts=2):
        fastest = self.fastest.setdefault(request["work"], peer.Fastest(settings, attempts))
        return fastest.run(request, work)

    def prefill(self, request):
        ids = peer.inputs(request)["ids"]

        def read(setting):
            reply = self.server(1, rounded(len(ids) + 8), *setting).complete(ids, 1)
            return reply["timings"]["prompt_ms"] / 1e3, reply["timings"]["prompt_n"], {"check": reply["tokens"][:1]}

        return self.tuned(request, ONE, read)

    def decode(self, request):
        """Each prompt is read into its slot first; then all slots write from their caches together."""
        given = peer.inputs(request)
        prompts, tokens = given["prompts"], given["tokens"]
        window = rounded(max(map(len, prompts)) + tokens + 8)

        def write(setting):
            server = self.server(len(prompts), window, *setting)
            for slot, prompt in enumerate(prompts):
                server.complete(prompt, 1, slot, keep=True)
            # The first token comes of a prompt's last position, the others are what is measured.
            with ThreadPoolExecutor(len(prompts)) as pool:
                slots = range(len(prompts))
                replies = list(pool.map(lambda slot: server.complete(prompts[slot], tokens + 1, slot, keep=True), slots))
            seconds = max(reply["timings"]["predicted_ms"] for reply in replies) / 1e3
            return seconds, len(prompts) * tokens, {"check": replies[0]["tokens"][:8]}

        return self.tuned(request, ONE if len(prompts) == 1 else MANY, write)

    def first_question(self, request):
        """Reads document and question as text, cut to the window when the inputs were made."""
        ids = peer.inputs(request)["questions"][0]["ids"]

        def read(setting):
            timings = self.server(1, WINDOW, *setting).complete(ids, 1)["timings"]
            return timings["prompt_ms"] / 1e3, 1, {"positions": timings["prompt_n"]}

        return self.tuned(request, ONE, read, attempts=1)

    def second_question(self, request):
        """The slot keeps what it read for the first question; that it was read again would show in `reused`."""
        first, second = (question["ids"] for question in peer.inputs(request)["questions"][:2])

        def read(setting):
            server = self.server(1, WINDOW, *setting)
            server.complete(first, 1, 0, keep=True)
            timings = server.complete(second, 1, 0, keep=True)["timings"]
            kept = timings["cache_n"] * bytes_per_position(self.options.decoder, setting[1])
            note = {"positions": timings["cache_n"] + timings["prompt_n"], "reused": timings["cache_n"], "kept_bytes": int(kept)}
            return timings["prompt_ms"] / 1e3, 1, note

        return self.tuned(request, ONE, read, attempts=1)

    def summarize(self, request):
        given = peer.inputs(request)
        prompts, tokens = [document["ids"] for document in given["documents"]], given["tokens"]

        def write(setting):
            *kind, slots = setting
            server = self.server(slots, WINDOW, *kind)
            with ThreadPoolExecutor(slots) as pool:
                run = lambda: list(pool.map(lambda prompt: server.complete(prompt, tokens), prompts))
                seconds, replies = peer.timed(run)
            written = sum(reply["timings"]["predicted_n"] for reply in replies)
            return seconds, len(prompts), {"positions": sum(map(len, prompts)), "written": written}

        return self.tuned(request, BULK, write, attempts=1)


def rounded(positions):
    return -(-positions // 256) * 256


if __name__ == "__main__":
    llama = Llama(peer.options())
    works = {"prefill-": llama.prefill, "decode-": llama.decode, "first-question-": llama.first_question}
    works |= {"second-question": llama.second_question, "summarize-": llama.summarize}
    features = "AVX-512" if "AVX512 = 1" in xllamacpp.get_system_info() else "AVX2" if "AVX2 = 1" in xllamacpp.get_system_info() else "no AVX2"
    peer.serve("llama.cpp", f"xllamacpp {importlib.metadata.version('xllamacpp')}, built for {features}", works)
