"""Writes the golden values that the Rust tests compare against, from independent implementations.

Run by hand when a case is added; the output is committed:

    pip install torch transformers==5.23 gguf tokenizers safetensors regex jinja2 xllamacpp
    python tests/golden/generate.py --encoder DIR --decoder FILE.gguf [part ...]

DIR holds all-MiniLM-L6-v2 (model.safetensors, tokenizer.json, vocab.txt), FILE.gguf is SmolLM2-135M-Instruct in
Q4_1: the two that `e2llm models pull` fetches. Parts: tokens templates encoder decoder tiny training (all without an argument).
xllamacpp (llama.cpp) is optional: it only checks the decoder's token ids a second time.
README.md in this directory describes the files.
"""

import argparse
from pathlib import Path

PARTS = ["tokens", "templates", "encoder", "decoder", "tiny", "training"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--decoder", type=Path, required=True)
    parser.add_argument("parts", nargs="*", metavar="part", default=PARTS)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)}; parts are {PARTS}")

    if "tokens" in arguments.parts:
        import tokens

        tokens.encoder_tokens(arguments.encoder)
        tokens.decoder_tokens(arguments.decoder)
    if "templates" in arguments.parts:
        import tokens

        tokens.templates(arguments.decoder)
    if "encoder" in arguments.parts:
        import encoder

        encoder.vectors(arguments.encoder)
    if "decoder" in arguments.parts:
        import decoder

        decoder.logits(arguments.decoder)
    if "tiny" in arguments.parts:
        import tiny

        tiny.checkpoints()
    if "training" in arguments.parts:
        import training

        training.values()


if __name__ == "__main__":
    main()
