"""Makes the inputs of all works, once for all contestants: token ids, texts and prompts, the same bytes for the same arguments."""

import argparse
import json
import os
import random
import sys

import gguf
import jinja2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WINDOW = 8192
# Left of the window for what is written after a question; only its first token is.
ROOM = 16
SUMMARY_TOKENS = 64
# Of one text that is summarised; the longest RFC has 1.4 MB.
MOST_CHARACTERS = 2_000_000
QUESTION = "Answer the question using the text above.\n\nQuestion: {}"
QUESTIONS = ["What is the text about?", "Which problem does the author want to solve, and how?"]
SUMMARIZE = "Summarize the text above in a few sentences."


def decoder_tokenizer(path):
    """From the GGUF: transformers' own conversion does not know the pre-tokenizer `smollm`."""
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    kinds = fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ", 1)) for merge in merges]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    # 3: control tokens
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in zip(tokens, kinds) if kind == 3])
    expected = [19556, 905, 216, 33, 34, 35, 36]
    if tokenizer.encode("Hello world 1234").ids != expected:
        print("warning: this decoder's tokenizer is not SmolLM2's; its pre-tokenizer is assumed", file=sys.stderr)
    return tokenizer, fields["tokenizer.chat_template"].contents()


class Prompts:
    """Prompts as the decoder's template has them, with the document cut so that the prompt fits."""

    def __init__(self, path):
        self.tokenizer, template = decoder_tokenizer(path)
        content = "\0content\0"
        rendered = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
        before, after = rendered.split(content)
        self.before, self.after = self.ids(before), self.ids(after)

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def cut(self, text, tokens):
        """The beginning of a text that has so many tokens."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) < tokens:
            raise SystemExit(f"error: the texts have {len(encoded.ids)} tokens, {tokens} are needed: give --corpus a larger file")
        return text[: encoded.offsets[tokens - 1][1]]

    def about(self, document, instruction, window):
        after = self.ids("\n\n" + QUESTION.format(instruction)) + self.after
        room = window - len(self.before) - len(after)
        return self.before + self.ids(document)[:room] + after


def texts(path):
    """Of JSON Lines, or of a directory of text files."""
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".txt"))
        return [open(file, encoding="utf-8").read() for file in files]
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file if line.strip()]


def long_text(documents, bytes_):
    """The first document that is long enough, or several after each other."""
    longest = next((text for text in documents if len(text) >= bytes_), None)
    if longest is not None:
        return longest
    joined = ""
    for text in documents:
        if len(joined) >= bytes_:
            break
        joined += text + "\n\n"
    return joined


def encoder_chunks(tokenizer, documents, lengths):
    """Word pieces of consecutive text, with CLS and SEP in the length."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    first, last = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    pieces, chunks, remaining = [], [], iter(documents)
    for length in lengths:
        while len(pieces) < length - 2:
            text = next(remaining, None)
            if text is None:
                raise SystemExit("error: the texts are too short for the chunks of encode-*: give --corpus a larger file")
            pieces += tokenizer.encode(text, add_special_tokens=False).ids
        chunks.append([first, *pieces[: length - 2], last])
        pieces = pieces[length - 2 :]
    return chunks


def summaries(prompts, documents, arguments):
    """A part of the documents for each round, and short ones to warm up with."""
    count = min(arguments.documents, len(documents))
    if count < arguments.documents:
        print(f"summaries: {count} documents are there, {arguments.documents} were asked for", file=sys.stderr)
    chosen, rounds = documents[:count], min(arguments.rounds, count)
    parts = [[text[: 6000 // arguments.shrink] for text in chosen[:8]]] + [chosen[part::rounds] for part in range(rounds)]
    for part, of_part in enumerate(parts):
        of_part = [text[: MOST_CHARACTERS // arguments.shrink] for text in of_part]
        cut = [{"text": text, "ids": prompts.about(text, SUMMARIZE, WINDOW - SUMMARY_TOKENS)} for text in of_part]
        yield f"summarize-{part}", {"request": SUMMARIZE, "documents": cut, "tokens": SUMMARY_TOKENS}


def works(arguments):
    """Pairs of file name and content."""
    draw = random.Random(arguments.seed)
    documents = [text for text in texts(arguments.corpus) if len(text) > 200]
    draw.shuffle(documents)
    prompts = Prompts(arguments.decoder)
    tokenizer = Tokenizer.from_file(os.path.join(arguments.encoder, "tokenizer.json"))
    part = arguments.shrink
    yield "encode-512", {"chunks": encoder_chunks(tokenizer, documents, [128] * (512 // part))}
    mixed = [draw.randint(16, 256) for _ in range(512 // part)]
    yield "encode-mixed", {"chunks": encoder_chunks(tokenizer, documents, mixed)}
    long = prompts.ids(long_text(documents, 200_000)[:200_000])
    yield "prefill-1024", {"ids": long[: 1024 // part]}
    yield "decode-short", {"prompts": [long[:32]], "tokens": 128 // part}
    yield "decode-1024", {"prompts": [long[: 1024 // part]], "tokens": 64 // part}
    yield "decode-16", {"prompts": [long[32 * slot : 32 * (slot + 1)] for slot in range(16)], "tokens": 64 // part}
    for name, tokens in ("question-6k", 6_000 // part), ("question-60k", 60_000 // part):
        text = prompts.cut(long_text(documents, 8 * tokens)[: 12 * tokens], tokens)
        questions = [{"text": asked, "ids": prompts.about(text, asked, WINDOW - ROOM)} for asked in QUESTIONS]
        yield name, {"document": text, "questions": questions}
    yield from summaries(prompts, documents, arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True, help="directory with tokenizer.json")
    parser.add_argument("--decoder", required=True, help="the GGUF")
    parser.add_argument("--corpus", required=True, help='JSON Lines of {"id","text"}, or a directory of .txt files')
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shrink", type=int, default=1, help="sizes are divided by this, up to 32")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="directory")
    arguments = parser.parse_args()
    os.makedirs(arguments.output, exist_ok=True)
    for name, content in works(arguments):
        with open(os.path.join(arguments.output, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(content, file)


if __name__ == "__main__":
    main()
