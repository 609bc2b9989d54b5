"""Measure what each method does to a sentence encoder's embeddings; writes ``docs/_data/quantized_encoder.csv``.

    python docs/quantizers/measure_encoder.py                         every row, some minutes each for the slow ones
    python docs/quantizers/measure_encoder.py rep_quant:4 affine:3    these rows; the others stay

The model is all-MiniLM-L6-v2. It is calibrated with the sentences of the package and measured on text that they do not
contain: passages of the language reference that Python has on board (``pydoc_data.topics``).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from pydoc_data import topics

from refnorm.models import load_encoder, matrix_bytes, quantize_encoder

TARGET = Path(__file__).resolve().parents[1] / "_data" / "quantized_encoder.csv"
ROWS = (
    "affine:8", "affine:6", "affine:4", "affine:3", "affine:2",
    "gradient_ptq:4", "gradient_ptq:3", "gradient_ptq:2",
    "joint_codebook:4", "joint_codebook:3", "joint_codebook:2",
    "llm_int8:8",
    "layerwise_calibration:8", "layerwise_calibration:6", "layerwise_calibration:4",
    "rep_quant:8", "rep_quant:6", "rep_quant:4",
    "shift_uniform_log2:8", "shift_uniform_log2:6", "shift_uniform_log2:4",
    "affine_quant:8", "affine_quant:6", "affine_quant:4",
)  # fmt: skip
WEIGHTS_ONLY = ("affine", "gradient_ptq", "joint_codebook")
HEADER = ("method", "weights, bits", "activations, bits", "matrices, MB", "mean cosine", "smallest cosine")
PASSAGES = 100


def held_out() -> list[str]:
    """Passages of 80 to 400 characters, in the order of their topics."""
    found = [part for _, text in sorted(topics.topics.items()) for part in text.split("\n\n") if 80 < len(part) < 400]
    return found[:: len(found) // PASSAGES][:PASSAGES]


def main(wanted: list[str]) -> None:
    encoder, texts = load_encoder(), held_out()
    expected = encoder.embed(texts)
    stored = {}
    if TARGET.is_file():
        with TARGET.open() as stream:
            stored = {(row[0], row[1]): row for row in csv.reader(stream)}
    rows = {("float32", "32"): ["float32", "32", "32", f"{matrix_bytes(encoder) / 1e6:.1f}", "1.0000", "1.0000"]}
    for name in ROWS:
        method, bits = name.split(":")
        key = (method, bits)
        if name in (wanted or ROWS):
            made = quantize_encoder(encoder, method, bits=int(bits))
            cosine = (made.embed(texts) * expected).sum(axis=1)
            activations = "32" if method in WEIGHTS_ONLY else bits
            size = f"{matrix_bytes(made) / 1e6:.1f}"
            rows[key] = [method, bits, activations, size, f"{cosine.mean():.4f}", f"{cosine.min():.4f}"]
            print(*rows[key], flush=True)
        elif key in stored:
            rows[key] = stored[key]
    with TARGET.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([HEADER, *rows.values()])


if __name__ == "__main__":
    main(sys.argv[1:])
