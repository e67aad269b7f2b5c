"""Token ids of hard strings, and rendered chat templates."""

import json
import unicodedata
import urllib.request
from pathlib import Path

import regex
from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from common import write
from texts import ENCODER_TEXTS, HARD_STRINGS, TEMPLATE_CHATS

# GPT-2's split; what precedes it ("smollm") isolates every numeric character.
GPT2_SPLIT = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
CONTROL = 3


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + n) for n, byte in enumerate(rest)})
    return alphabet


class ByteBpe:
    """Byte-level BPE from GGUF metadata, in plain Python: slow, and nobody else's code."""

    def __init__(self, path: Path):
        fields = GGUFReader(path).fields
        pre = fields["tokenizer.ggml.pre"].contents()
        if pre != "smollm":
            raise ValueError(f"pre-tokenizer {pre!r}: this reference knows only 'smollm'")
        tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self.ids = {token: n for n, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): n for n, merge in enumerate(merges)}
        self.special = [token for token, kind in zip(tokens, types) if kind == CONTROL]
        self.alphabet = byte_alphabet()
        self.chat_template = fields["tokenizer.chat_template"].contents()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        if not parse_special:
            return self.encode_plain(text)
        ids = []
        pattern = "(" + "|".join(map(regex.escape, sorted(self.special, key=len, reverse=True))) + ")"
        for part in regex.split(pattern, text):
            ids += [self.ids[part]] if part in self.special else self.encode_plain(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        ids = []
        for part in regex.split(r"(\p{N})", text):
            for word in GPT2_SPLIT.findall(part):
                ids += self.merge([self.alphabet[byte] for byte in word.encode()])
        return ids

    def merge(self, parts: list[str]) -> list[int]:
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:])]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(self.ranks):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return [self.ids[part] for part in parts]


def decoder_tokens(gguf: Path) -> None:
    """`tokens_decoder.json`; checked against llama.cpp where it is installed."""
    bpe = ByteBpe(gguf)
    cases = [
        {
            "name": name,
            "text": text,
            "ids_plain": bpe.encode(text, parse_special=False),
            "ids_special": bpe.encode(text, parse_special=True),
        }
        for name, text in HARD_STRINGS.items()
    ]
    check_against_llama_cpp(gguf, cases)
    write("tokens_decoder.json", {"special_tokens": bpe.special, "cases": cases})


def check_against_llama_cpp(gguf: Path, cases: list[dict]) -> None:
    try:
        import xllamacpp
    except ImportError:
        print("xllamacpp is not installed: decoder tokens not checked against llama.cpp")
        return
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = 512
    params.warmup = False
    server = xllamacpp.Server(params)
    for case in cases:
        for key, special in (("ids_plain", False), ("ids_special", True)):
            request = {"content": case["text"], "add_special": False, "parse_special": special}
            theirs = post(server.listening_address + "/tokenize", request)["tokens"]
            if theirs != case[key]:
                print(f"llama.cpp differs on {case['name']} {key}:\n  ours   {case[key]}\n  theirs {theirs}")


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


class WordPiece:
    """BERT's uncased tokenizer as the original Python code defines it, from vocab.txt."""

    def __init__(self, vocab: Path):
        self.ids = {line.rstrip("\n"): n for n, line in enumerate(vocab.open(encoding="utf-8"))}
        self.special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

    def encode(self, text: str) -> list[int]:
        ids = [self.ids["[CLS]"]]
        for part in regex.split("(" + "|".join(map(regex.escape, self.special)) + ")", text):
            if part in self.special:
                ids.append(self.ids[part])
            else:
                ids += [n for word in self.words(part) for n in self.pieces(word)]
        return ids + [self.ids["[SEP]"]]

    def words(self, text: str) -> list[str]:
        clean = "".join(" " if whitespace(c) else c for c in text if not dropped(c))
        spaced = "".join(f" {c} " if chinese(c) else c for c in clean)
        bare = "".join(c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn")
        split = "".join(f" {c} " if punctuation(c) else c for c in bare.lower())
        return split.split()

    def pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        if len(word) > 100:
            return [self.ids["[UNK]"]]
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.ids:
                    ids.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return ids


def whitespace(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def dropped(char: str) -> bool:
    return char in "\0\ufffd" or (char not in "\t\n\r" and unicodedata.category(char).startswith("C"))


def chinese(char: str) -> bool:
    ranges = (
        (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
    )
    return any(low <= ord(char) <= high for low, high in ranges)


def punctuation(char: str) -> bool:
    code = ord(char)
    ascii_marks = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_marks or unicodedata.category(char).startswith("P")


def encoder_tokens(model_dir: Path) -> None:
    """`tokens_encoder.json`: the model's own tokenizer.json, checked against plain Python.

    The few strings on which they differ keep tokenizer.json's ids, which is what the model is shipped with.
    """
    fast = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    plain = WordPiece(model_dir / "vocab.txt")
    cases = []
    texts = HARD_STRINGS | {f"encoder_text_{n}": text for n, text in enumerate(ENCODER_TEXTS)}
    for name, text in texts.items():
        ids = fast.encode(text).ids
        if ids != plain.encode(text):
            print(f"plain WordPiece differs on {name}:\n  file  {ids}\n  plain {plain.encode(text)}")
        cases.append({"name": name, "text": text, "ids": ids, "plain_agrees": ids == plain.encode(text)})
    write("tokens_encoder.json", {"cases": cases})


# Written here: each uses what real models' templates use, and nothing of theirs. None changes a content beyond trimming.
TEMPLATES = {
    "trim_blocks": (
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system = messages[0]['content'] | trim %}\n"
        "    {%- set rest = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system = 'none' %}\n"
        "    {%- set rest = messages %}\n"
        "{%- endif %}\n"
        "{{- bos_token + '[S]' + system + '[/S]\\n' }}\n"
        "{%- for message in rest %}\n"
        "    {%- if message.role == 'user' and not loop.last %}\n"
        "U{{ loop.index0 }}:{{ message.content.strip() }}\n"
        "    {%- elif message['role'] == 'assistant' %}\n"
        "A{{ loop.index }}:{{ message['content'] }}{{ eos_token }}\n"
        "    {% else %}\n"
        "    L:{{ {'role': message.role, 'of': loop.length, 'tag': '<&>'} | tojson }}{{ message.content }}\n"
        "    {% endif %}\n"
        "{%- endfor %}\n"
        "{% if add_generation_prompt is defined and add_generation_prompt %}>>{% endif %}"
    ),
    "namespace_and_macro": (
        "{% macro turn(role, text) %}<{{ role }}>{{ text }}</{{ role.replace('s', '5').rstrip('M') }}>{% endmacro %}"
        "{% set ns = namespace(turns=0, last='') %}"
        "{% for m in messages %}"
        "{% set ns.turns = ns.turns + 1 %}{% set ns.last = m['role'] %}"
        "{{ turn(m.role | upper, m.content) }}{% if loop.index0 % 2 == 1 %}|{% endif %}"
        "{% endfor %}"
        "#{{ ns.turns }}{{ ns.last }}{{ '<go>' if add_generation_prompt else '' }}"
        "{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role[0] }}{% break %}{% endfor %}"
        "{{ undefined_name is defined }}{{ 'sys,tem'.split(',')[0] }}"
        "{{ messages | map(attribute='role') | join(',') }}"
        "{{ messages[-1].role.startswith('us') }}{{ messages[::-1][0].role }}{{ messages | length }}"
    ),
    "raises": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{{ m.content }}{% endfor %}"
    ),
}


def templates(gguf: Path) -> None:
    """`templates.json`: each template applied to each chat, with and without the generation prompt."""
    sources = {"smollm2": None} | TEMPLATES
    shipped = ByteBpe(gguf).chat_template
    cases = []
    for template, source in sources.items():
        for chat, messages in TEMPLATE_CHATS.items():
            for generation in (True, False):
                case = {"template": template, "chat": chat, "add_generation_prompt": generation}
                cases.append(case | render(source or shipped, messages, generation))
    write("templates.json", {"templates": TEMPLATES, "chats": TEMPLATE_CHATS, "cases": cases})


def render(source: str, messages: list[dict], generation: bool) -> dict:
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            add_generation_prompt=generation,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
        )
    except Exception as error:  # jinja2's TemplateError, raised by the template itself
        return {"error": str(error)}
    return {"text": rendered[0]}
