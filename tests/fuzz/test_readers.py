"""Damaged input is refused with one clear line: a few random ones of each kind, and those that once were not.

``tools/fuzz`` runs as many as there is time for.
"""

import io
import json
import time
import zipfile

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command needs the extra demo")
pytest.importorskip("rich", reason="the command needs the extra demo")
pytest.importorskip("safetensors", reason="the command needs the extra demo")
pytest.importorskip("tokenizers", reason="the command needs the extra demo")

from fuzz.targets import TARGETS, run_target
from tiny_model import CONFIG, tokenizer, write_model

from refnorm.conformance import GoldenCase, load_cases, load_exported, save_cases
from refnorm.models import ModelError, load_encoder


@pytest.mark.parametrize("first", [0, 10_000])
@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_is_refused_or_read(target, first):
    ends = [run_target(target, seed) for seed in range(first, first + 12)]
    assert all(ends)


def test_damage_is_found_at_all(monkeypatch):
    from fuzz import targets

    def careless(*_):
        raise KeyError("shape")

    monkeypatch.setattr(targets, "load_cases", careless)
    with pytest.raises(KeyError, match="shape"):
        _ = [run_target("golden_files", seed) for seed in range(20)]


def words(message, limit=400):
    assert "\n" not in message
    assert len(message) < limit, message
    return message


MODELS = [
    ({"config": {"hidden_act": ["gelu"]}}, "hidden_act: expected one of gelu, "),
    ({"config": {"layer_norm_eps": "x" * 5000}}, "layer_norm_eps: expected a number between 0 and 1, got 'xxx"),
    ({"config": {"model_type": {}}}, "model_type: expected one of bert, "),
    ({"config": {"hidden_size": 10**30}}, "num_attention_heads: expected a divisor|expected shape"),
    (
        {"files": {"modules.json": json.dumps([{"type": "x" * 5000}])}},
        "expected modules Transformer, Pooling and Normalize",
    ),
    (
        {"files": {"modules.json": json.dumps([{"type": "Pooling", "path": "x" * 5000}])}},
        "expected the name of a folder",
    ),
    ({"files": {"modules.json": json.dumps([{"type": "Pooling", "path": "../.."}])}}, "expected the name of a folder"),
    ({"files": {"config.json": "[" * 100_000}}, "config.json: expected JSON, got"),
]


@pytest.mark.parametrize(("change", "message"), MODELS, ids=[message for _, message in MODELS])
def test_a_damaged_model_directory_is_refused(tmp_path, change, message):
    config = change.get("config", {})
    folder = write_model(tmp_path / "model", files=change.get("files"))
    if config:
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(ModelError, match=message) as refused:
        load_encoder(folder)
    words(str(refused.value))


def test_an_absurd_number_of_layers_costs_nothing(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 10**12}))
    began = time.monotonic()
    with pytest.raises(ModelError, match="expected 1000000000000 layers as config.json says, got 2"):
        load_encoder(folder)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["model"]["vocab"].update(cat=2**31), "expected ids of tokens below vocab_size"),
        (lambda content: content["post_processor"]["special_tokens"].clear(), "expected ids of all special tokens"),
        (lambda content: content["model"]["vocab"].pop("[UNK]"), "expected a tokenizer, got"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, capfd, change, message):
    content = json.loads(tokenizer().to_str())
    change(content)
    folder = write_model(tmp_path / "model", files={"tokenizer.json": json.dumps(content)})
    with pytest.raises(ModelError, match=f"tokenizer.json: {message}") as refused:
        load_encoder(folder)
    words(str(refused.value))
    assert capfd.readouterr() == ("", ""), "the library prints nothing of its own"


@pytest.fixture
def golden(tmp_path):
    save_cases("room/f", [GoldenCase("room.f", "r", (np.ones(3), {"a": 1.5}), np.ones(1), "by hand")], tmp_path)
    return tmp_path


def member(header, content=b"\0" * 24):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


HEADERS = [
    ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,", "expected an array in NumPy's format, got"),
    (
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "expected a float, integer or boolean array, got dtype object",
    ),
    ("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}", "expected at most 16 sizes from 0 to"),
    ("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 10000000)}", "expected float64 of shape"),
    ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "expected at most 16 sizes from 0 to"),
    ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}", "expected a float, integer or boolean array"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_a_damaged_array_is_refused(golden, header, message):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("000.args.0.npy", member(header))
    (golden / "room" / "f.npz").write_bytes(target.getvalue())
    with pytest.raises(ValueError, match=message) as refused:
        load_cases("room/f", golden)
    words(str(refused.value))


def test_an_archive_that_unpacks_to_too_much_is_refused(golden, monkeypatch):
    monkeypatch.setattr("refnorm.conformance._files.LARGEST", 1000)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100_000))
    (golden / "room" / "f.npz").write_bytes(target.getvalue())
    with pytest.raises(
        ValueError, match=r"f\.npz: expected a whole \.npz file, got: 100000 bytes of arrays, more than 1000"
    ):
        load_cases("room/f", golden)


ENTRIES = [
    (lambda case: case["tolerance"].update(rule="x" * 5000), "case 0: rule: expected one of"),
    (lambda case: case["tolerance"].update(rule="ulp", limit=10**400), "case 0: tolerance: limit: expected a finite"),
    (lambda case: case.update(args=[{"array": "x" * 5000}]), "case 0: args.0: expected an array"),
    (lambda case: case.update(args=[{"float": "0x1p99999"}]), "case 0: args.0: expected a number as text"),
    (lambda case: case.update(args=[{"list": 3}]), "case 0: args.0: expected a value"),
    (lambda case: case.update(args=[{"record": "R"}]), "case 0: args.0: expected a value"),
    (lambda case: case.update(args=[1.5]), "case 0: args.0: expected a value"),
    (lambda case: case.update(args="x"), "case 0: args: expected list, got 'x'"),
    (lambda case: case.update(function="f"), "case 0: function: expected room.function, got 'f'"),
    (lambda case: case.pop("source"), "case 0: source: expected str, got None"),
]


@pytest.mark.parametrize(("change", "message"), ENTRIES, ids=[message for _, message in ENTRIES])
def test_a_damaged_manifest_is_refused(golden, change, message):
    path = golden / "room" / "f.json"
    content = json.loads(path.read_text())
    change(content["cases"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        load_cases("room/f", golden)
    words(str(refused.value))


def test_values_nested_without_end_are_refused(golden):
    path = golden / "room" / "f.json"
    content = json.loads(path.read_text())
    for _ in range(100):
        content["cases"][0]["args"] = [{"list": content["cases"][0]["args"]}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected at most 32 levels of nesting, got more"):
        load_cases("room/f", golden)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    index = {"format": "refnorm-golden", "format_version": 1, "methods": [{"method": "../secret", "cases": 1}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: method: expected room/method, got '\.\./secret'"):
        load_exported(tmp_path)
