#!/usr/bin/env python3
"""A bundle with fewer hidden units in the residual path over segments (`segment.*`), for its size; the others stay as they are.

    tests/quality/narrow.py compact/bundle shared/bundles/minilm-smollm2-compact 840

Kept are the units of largest |weights in| · |weights out|. Lossy: measure what comes out (`e2llm --bundle … train evaluate`).
Tensors are f16, as `e2llm train` writes them. Needs Python 3.10 and nothing else.
"""

import json
import math
import shutil
import struct
import sys
from pathlib import Path

UP, BIAS, DOWN = "segment.up.weight", "segment.up.bias", "segment.down.weight"
BYTES = 2


def read(path: Path) -> dict[str, tuple[list[int], bytes]]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    head, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    head.pop("__metadata__", None)
    return {name: (entry["shape"], values[slice(*entry["data_offsets"])]) for name, entry in head.items()}


def write(path: Path, tensors: dict[str, tuple[list[int], bytes]]) -> None:
    head, values = {}, b""
    for name, (shape, data) in sorted(tensors.items()):
        head[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(values), len(values) + len(data)]}
        values += data
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


def rows(tensor: tuple[list[int], bytes]) -> list[bytes]:
    (count, *_), data = tensor
    width = len(data) // count
    return [data[width * row : width * (row + 1)] for row in range(count)]


def floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // BYTES}e", data)


def picked(row: bytes, kept: list[int]) -> bytes:
    return b"".join(row[BYTES * unit : BYTES * (unit + 1)] for unit in kept)


def main() -> None:
    source, target, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    tensors = read(source / "adapter.safetensors")
    up, down = rows(tensors[UP]), rows(tensors[DOWN])
    into = [math.hypot(*floats(row)) for row in up]
    out = [math.hypot(*column) for column in zip(*map(floats, down), strict=True)]
    kept = sorted(sorted(range(len(up)), key=lambda unit: -into[unit] * out[unit])[:count])
    tensors[UP] = ([len(kept), tensors[UP][0][1]], b"".join(up[unit] for unit in kept))
    tensors[BIAS] = ([len(kept)], picked(tensors[BIAS][1], kept))
    tensors[DOWN] = ([len(down), len(kept)], b"".join(picked(row, kept) for row in down))
    target.mkdir(parents=True, exist_ok=True)
    write(target / "adapter.safetensors", tensors)
    shutil.copy(source / "lora.safetensors", target)
    head = json.loads((source / "bundle.json").read_text())
    head["adapter"]["segment_hidden"] = len(kept)
    (target / "bundle.json").write_text(json.dumps(head, indent=2) + "\n")
    print(f"{len(kept)} of {len(up)} hidden units kept")


main()
