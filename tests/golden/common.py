"""What every golden file shares: rounding, the weight formula, writing JSON."""

import json
import math
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
MASK64 = (1 << 64) - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15


def number(value) -> float:
    """Seven significant digits: enough for f32, small in a diff."""
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a golden file")
    return float(f"{value:.7g}")


def numbers(values) -> list[float]:
    """A tensor of any shape, flattened row by row."""
    return [number(v) for v in torch.as_tensor(values).detach().reshape(-1).tolist()]


def top(logits: torch.Tensor, count: int = 20) -> dict:
    """The `count` largest entries of one row of logits, ids beside values."""
    values, ids = torch.topk(logits, count)
    return {"ids": ids.tolist(), "logits": numbers(values)}


def fnv1a(name: str) -> int:
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK64
    return state


def uniform(name: str, index: int) -> float:
    """In [-0.5, 0.5), exact in f32: SplitMix64 of (FNV-1a of the name, index), top 24 bits."""
    z = (fnv1a(name) + index * GOLDEN_RATIO) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    z ^= z >> 31
    return (z >> 40) / 2**24 - 0.5


def formula_tensor(name: str, shape, scale: float, offset: float = 0.0) -> torch.Tensor:
    """`offset + scale * uniform(name, row-major index)`, computed in f32."""
    count = math.prod(shape)
    base = torch.tensor([uniform(name, i) for i in range(count)], dtype=torch.float32)
    return (base * scale + offset).reshape(shape)


def formula_rows(rows: int, width: int) -> torch.Tensor:
    """Deterministic stand-ins for soft tokens: `0.1 * sin(0.37 i + 0.11 j)`, f64 rounded to f32."""
    values = [[0.1 * math.sin(i * 0.37 + j * 0.11) for j in range(width)] for i in range(rows)]
    return torch.tensor(values, dtype=torch.float32)


def write(name: str, value: dict) -> None:
    path = HERE / name
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    # One case a line keeps diffs readable without spending megabytes on indents.
    text = text.replace("},{", "},\n{")
    path.write_text(text + "\n")
    print(f"{name}: {path.stat().st_size / 1024:.0f} KiB")
