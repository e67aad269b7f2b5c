"""Writes rouge.json: values of the PyPI package rouge-score for the Rust tests of `shared/data`.

Run by hand when a case is added; the output is committed:

    pip install rouge-score==0.1.2
    python tests/golden/rouge.py
"""

import json
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

CASES = [
    ("The pigeon waits on the roof.", "The pigeon waits on the roof."),
    ("A pigeon sat on a roof and waited.", "The pigeon waits on the roof until it is called."),
    ("roof the on waits pigeon the", "The pigeon waits on the roof."),
    ("the the the the", "the cat and the dog"),
    ("", "The pigeon waits."),
    ("The pigeon waits.", ""),
    ("pigeon", "Pigeon!"),
    ("Nothing in common here", "Pigeons wait silently, always"),
    ("IPv6's 128-bit addresses; RFC 9999 (2042).", "ipv6 s 128 bit: addresses of rfc9999 in 2042"),
    ("Ünïcode façade über naïve", "Unicode facade uber naive"),
    ("First line.\nSecond line.", "Second line.\n\nFirst line."),
    ("one two three four five six seven eight nine ten", "ten nine eight one two three seven six five four"),
    ("This memo describes a queue in which pigeons wait. It obsoletes the earlier memo on doves.",
     "This document specifies the queue that carrier pigeons wait in, and obsoletes the memo on doves."),
]


def main() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    cases = []
    for prediction, reference in CASES:
        scores = scorer.score(reference, prediction)
        values = {name: [round(v, 9) for v in (s.precision, s.recall, s.fmeasure)] for name, s in scores.items()}
        cases.append({"prediction": prediction, "reference": reference, **values})
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).resolve().parent / "rouge.json"
    path.write_text('{"cases":[\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
