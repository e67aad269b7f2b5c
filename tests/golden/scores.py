"""Writes scores.json: what reference implementations say of pairs of texts, for the Rust tests of `shared/data`.

ROUGE is the PyPI package rouge-score's; exact match and F1 are SQuAD's, from torchmetrics. RULER's string match, of which there is
no package, is written here a second time as its paper describes it (appendix B).

Run by hand when a case is added; the output is committed:

    pip install rouge-score==0.1.2 torchmetrics==1.9.0
    python tests/golden/scores.py
"""

import json
import random
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import squad

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
WORDS = ("a an the A The pigeon Pigeon pigeons waits wait on roof queue memo RFC 9999 7681 it's don't well-known "
         "(see) “quoted” naïve über – — ... and, of; to: -- a–b the/an U.S. e.g. 3.5 ß Ω").split()
RANDOM = 200
NEAR = 60


def pairs() -> list[tuple[str, str]]:
    """The cases, and random ones in which the reference shares words with the prediction."""
    rng = random.Random(9675)
    made = []
    for _ in range(RANDOM):
        prediction = rng.choices(WORDS, k=rng.randint(0, 14))
        own = [word for word in prediction if rng.random() < 0.5] + rng.choices(WORDS, k=rng.randint(0, 6))
        if rng.random() < 0.5:
            rng.shuffle(own)
        separator = rng.choice([" ", " ", "  ", "\n", "\t"])
        made.append((separator.join(prediction), " ".join(own)))
    return CASES + made + [near(rng) for _ in range(NEAR)]


def near(rng: random.Random) -> tuple[str, str]:
    """A text, and the same but for what exact match may overlook, and now and then a word that it may not."""
    prediction = rng.choices(WORDS, k=rng.randint(1, 8))
    changes = [str.upper, str.lower, str.title, lambda word: word + ".", lambda word: f"({word})", lambda word: "the " + word, lambda word: word]
    reference = [rng.choice(changes)(word) for word in prediction if word.lower() not in ("a", "an", "the") or rng.random() < 0.5]
    if rng.random() < 0.25:
        reference.insert(rng.randint(0, len(reference)), rng.choice(WORDS))
    return " ".join(prediction), " ".join(reference)


def squad_scores(prediction: str, reference: str) -> tuple[float, float]:
    scores = squad([{"prediction_text": prediction, "id": "1"}], [{"answers": {"answer_start": [0], "text": [reference]}, "id": "1"}])
    return float(scores["exact_match"]) / 100, round(float(scores["f1"]) / 100, 6)


def string_match_all(prediction: str, references: list[str]) -> float:
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_part(prediction: str, references: list[str]) -> float:
    return max(float(reference.lower() in prediction.lower()) for reference in references)


def main() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    rng = random.Random(1)
    cases = []
    for prediction, reference in pairs():
        scores = scorer.score(reference, prediction)
        case = {"prediction": prediction, "reference": reference}
        case |= {name: [round(v, 9) for v in (s.precision, s.recall, s.fmeasure)] for name, s in scores.items()}
        exact, f1 = squad_scores(prediction, reference)
        case |= {"exact": exact, "f1": f1}
        parts = rng.sample(WORDS, 3)
        case |= {"parts": parts, "all": string_match_all(prediction, parts), "part": string_match_part(prediction, parts)}
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).resolve().parent / "scores.json"
    path.write_text('{"cases":[\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
