import numpy as np
import pytest

pytest.importorskip("typer", reason="the command needs the extra demo")
pytest.importorskip("rich", reason="the command needs the extra demo")
pytest.importorskip("safetensors", reason="the command needs the extra demo")
pytest.importorskip("tokenizers", reason="the command needs the extra demo")

from tiny_model import write_model

from refnorm import cli
from refnorm.models import QUANTIZATIONS, load_encoder, quantize_encoder

TEXT = "the cat sat on the mat.\n\nthe dog run fast on the mat.\n\nhello world, blue sun!\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "held_out.txt").write_text(
        "is it not that blue house of the moon?\n\na tree by the river, in the sun\n"
    )
    return tmp_path


def run(model, *arguments):
    return cli.main([*arguments, "--model", str(model)])


@pytest.mark.parametrize("method", sorted(QUANTIZATIONS))
def test_embed_with_every_method(model, here, capsys, method):
    bits = str(QUANTIZATIONS[method][0])
    assert (
        run(model, "embed", "a.txt", "-o", "a.npy", "--passage-tokens", "12", "--quantize", method, "--bits", bits) == 0
    )
    encoder = quantize_encoder(load_encoder(model), method, bits=int(bits))
    expected = encoder.embed(["the cat sat on the mat.", "the dog run fast on the mat.", "hello world, blue sun!"])
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-6)
    err = capsys.readouterr().err
    assert err.startswith(f"quantized with {method} in ")
    assert "matrices of 4.5 kB in " in err
    assert f"(reference, {method}, {bits} bits)" in err


def test_bits_default_to_eight_or_the_most(model, here, capsys):
    for method in ("rep_quant", "joint_codebook"):
        assert run(model, "embed", "a.txt", "--quantize", method) == 0
        assert f"{method}, {8 if method == 'rep_quant' else 4} bits)" in capsys.readouterr().err


def test_calibration_text_is_used_and_not_embedded(model, here, capsys):
    arguments = ("embed", "a.txt", "--quantize", "rep_quant", "--bits", "3", "--passage-tokens", "12", "-q", "-o")
    assert run(model, *arguments, "plain.npy") == 0
    assert run(model, *arguments, "held.npy", "--calibration", "held_out.txt") == 0
    plain, held = np.load("plain.npy"), np.load("held.npy")
    assert plain.shape == held.shape == (3, 8)
    assert not np.array_equal(plain, held)
    texts = ["is it not that blue house of the moon?", "a tree by the river, in the sun"]
    expected = quantize_encoder(load_encoder(model), "rep_quant", bits=3, texts=texts)
    np.testing.assert_allclose(held[0], expected.embed(["the cat sat on the mat."])[0], atol=1e-6)
    assert capsys.readouterr().err == ""


def test_search_with_a_quantized_model(model, here, capsys):
    assert run(model, "search", "hello world, blue sun!", "a.txt", "--passage-tokens", "12", "-k", "1", "--quantize", "llm_int8") == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert out.splitlines()[1].strip() == "hello world, blue sun!"
    assert "quantized with llm_int8" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "--quantize: expected one of affine, affine_quant, gradient_ptq, joint_codebook, layerwise_calibration, llm_int8, rep_quant, shift_uniform_log2, got 'int4'"),
        (["--quantize", "rep_quant", "--bits", "9"], "--bits: expected an integer from 2 to 8 for rep_quant, got 9"),
        (["--quantize", "joint_codebook", "--bits", "5"], "--bits: expected an integer from 2 to 4 for joint_codebook, got 5"),
        (["--quantize", "llm_int8", "--bits", "4"], "--bits: expected 8 for llm_int8, got 4"),
        (["--bits", "4"], "--bits: expected --quantize with it, got none"),
        (["--calibration", "held_out.txt"], "--calibration: expected --quantize with it, got none"),
        (["--quantize", "rep_quant", "--backend", "fast"], "--quantize: expected --backend reference with it, got 'fast'"),
        (["--quantize", "rep_quant", "--calibration", "none.txt"], "none.txt: no such file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["embed", "a.txt"], ["search", "sun", "a.txt"]])
def test_bad_options_are_one_line_and_status_two(model, here, capsys, command, options, message):
    assert run(model, *command, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"refnorm: {message}"]


def test_bits_that_are_no_number(model, here, capsys):
    assert run(model, "embed", "a.txt", "--quantize", "rep_quant", "--bits", "four") == 2
    assert "--bits" in capsys.readouterr().err
