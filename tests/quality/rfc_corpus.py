#!/usr/bin/env python3
"""Turns Debian's doc-rfc-* packages into JSONL corpora: train.jsonl, validate.jsonl, test.jsonl.

Each line is {"id", "text", "abstract"}: page headers and footers removed, the Abstract cut out of the body.
Split by RFC number: >= 9000 is test, 8500-8999 validates, the rest trains, less the RFCs that a test RFC
obsoletes or updates, and less every paragraph that shares 13 consecutive words with a test RFC. Needs
dpkg-deb, and the packages already downloaded (component non-free):

    apt-get download doc-rfc-std doc-rfc-std-proposed doc-rfc-informational doc-rfc-experimental \\
        doc-rfc-fyi-bcp doc-rfc-others doc-rfc-misc doc-rfc-old-std
    tests/quality/rfc_corpus.py --debs . --output corpus/

The texts may be copied verbatim only: never commit them or what is derived from them as text.
"""

import argparse
import gzip
import io
import json
import pathlib
import re
import subprocess
import tarfile

NUMBER = re.compile(r"rfc(\d+)\.txt(\.gz)?$")
FOOTER = re.compile(r"^.*\[Page\s+\w+\]\s*$")
HEADER = re.compile(r"^RFC \d+ .*\d{4}\s*$")
ABSTRACT = re.compile(r"^Abstract\s*$", re.M)
WORD = re.compile(r"[a-z0-9]+")
SHARED_WORDS = 13
HEADING = re.compile(r"^(?:\d+\.?|[A-Z])[^\n]*$", re.M)


def clean(raw: str) -> str:
    """Removes form feeds, page headers and footers, and the blank lines they leave."""
    lines = [line.rstrip() for line in raw.replace("\r\n", "\n").replace("\f", "\n").split("\n")]
    kept = [line for line in lines if not FOOTER.match(line) and not HEADER.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip() + "\n"


def cut_abstract(text: str) -> tuple[str, str | None]:
    """The body without its Abstract, and the Abstract as one paragraph per paragraph."""
    start = ABSTRACT.search(text)
    if not start:
        return text, None
    end = HEADING.search(text, start.end())
    if not end or end.start() - start.end() > 6000:
        return text, None
    paragraphs = re.split(r"\n\s*\n", text[start.end():end.start()].strip())
    abstract = "\n\n".join(" ".join(p.split()) for p in paragraphs)
    return text[:start.start()] + text[end.start():], abstract or None


def related(text: str) -> set[int]:
    """RFC numbers the front matter obsoletes or updates."""
    return {
        int(n)
        for m in re.finditer(r"^(?:Obsoletes|Updates):([^A-Z]*)", text[:3000], re.M)
        for n in re.findall(r"\d+", m.group(1))
    }


def grams(words: list[str]):
    return (hash(tuple(words[i:i + SHARED_WORDS])) for i in range(len(words) - SHARED_WORDS + 1))


def without_shared(text: str, shared: set[int]) -> str:
    """`text` less the paragraphs that any 13 consecutive words known from `shared` touch, across paragraphs too."""
    paragraphs = re.split(r"\n\s*\n", text)
    words = [(word, at) for at, p in enumerate(paragraphs) for word in WORD.findall(p.lower())]
    hit = set()
    for i, gram in enumerate(grams([word for word, _ in words])):
        if gram in shared:
            hit.update(range(words[i][1], words[i + SHARED_WORDS - 1][1] + 1))
    return "\n\n".join(p for at, p in enumerate(paragraphs) if at not in hit).strip() + "\n"


def texts(debs: pathlib.Path):
    for deb in sorted(debs.glob("doc-rfc-*.deb")):
        stream = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
            for member in tar:
                found = NUMBER.search(member.name)
                if found and member.isfile():
                    data = tar.extractfile(member).read()
                    data = gzip.decompress(data) if found.group(2) else data
                    try:
                        yield int(found.group(1)), data.decode("utf-8-sig")
                    except UnicodeDecodeError:
                        yield int(found.group(1)), data.decode("latin-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--debs", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    documents = {number: clean(text) for number, text in texts(arguments.debs)}
    dropped = set().union(*(related(t) for n, t in documents.items() if n >= 9000))
    test_words = (WORD.findall(t.lower()) for n, t in documents.items() if n >= 9000)
    shared = {gram for words in test_words for gram in grams(words)}
    whole = left = 0
    arguments.output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, keep in {
        "train": lambda n: n < 8500 and n not in dropped,
        "validate": lambda n: 8500 <= n < 9000 and n not in dropped,
        "test": lambda n: n >= 9000,
    }.items():
        with open(arguments.output / f"{name}.jsonl", "w", encoding="utf-8") as out:
            numbers = sorted(n for n in documents if keep(n))
            counts[name] = len(numbers)
            for number in numbers:
                body, abstract = cut_abstract(documents[number])
                if name == "train":
                    whole += len(body)
                    body = without_shared(body, shared)
                    abstract = without_shared(abstract, shared).strip() or None if abstract else None
                    left += len(body)
                json.dump({"id": f"rfc{number}", "text": body, "abstract": abstract}, out, ensure_ascii=False)
                out.write("\n")
    print(json.dumps({**counts, "dropped": len(dropped), "train_kept": round(left / whole, 3)}))


if __name__ == "__main__":
    main()
