"""Evidence for RMSNorm and CRMSNorm: the identities with layer norm, and what they need."""

import numpy as np

from refnorm.claims import Claim
from refnorm.norms import compress, compressed_rms_norm, decompress, layer_norm, rms_norm, zero_mean_linear


def claims() -> list[Claim]:
    return [identities(), float32_sum()]


def identities() -> Claim:
    rng = np.random.default_rng(0)
    worst = {"LN(x) - RMS(x - mean)": 0.0, "RMS - CRMS, decompressed": 0.0}
    offset = np.inf
    for size in (2, 3, 17, 64, 768):
        x = 1 + rng.standard_normal((50, size))
        expected = layer_norm(x, np.ones(size), np.zeros(size))
        centred = zero_mean_linear(x, np.eye(size), np.zeros(size))
        rms = rms_norm(centred)
        compressed = decompress(compressed_rms_norm(compress(centred)))
        worst["LN(x) - RMS(x - mean)"] = max(worst["LN(x) - RMS(x - mean)"], float(np.abs(expected - rms).max()))
        worst["RMS - CRMS, decompressed"] = max(
            worst["RMS - CRMS, decompressed"], float(np.abs(rms - compressed).max())
        )
        offset = min(offset, float(np.abs(expected - rms_norm(x)).max()))
    return Claim(
        statement="On vectors that sum to zero, layer norm, RMSNorm and CRMSNorm are the same function; on others "
        "RMSNorm is a different one (2 to 768 units).",
        expected="largest difference below 1e-12 for centred vectors, above 0.1 for vectors with mean near 1",
        holds=max(worst.values()) < 1e-12 and offset > 0.1,
        figures=worst | {"RMSNorm without centring: smallest largest difference": offset},
    )


def float32_sum() -> Claim:
    rng = np.random.default_rng(1)
    x = (10 * rng.standard_normal((4, 20_000)) + 5).astype(np.float32)
    truth = -x.astype(np.longdouble).sum(axis=-1)
    ours = float(np.abs(decompress(x)[:, -1] / truth - 1).max())
    running = float(np.abs(-np.cumsum(x, axis=-1, dtype=np.float32)[:, -1] / truth - 1).max())
    return Claim(
        statement="The implied last entry is as good as the sum: float64 accumulation keeps it to the last digit of "
        "float32, a running float32 sum of 20 000 entries does not.",
        expected="relative error below 1e-7 against more than 1e-6",
        holds=ours < 1e-7 and running > 1e-6,
        figures={"float64 sum": ours, "running float32 sum": running},
    )
