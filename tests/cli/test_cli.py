import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command needs the extra demo")
pytest.importorskip("rich", reason="the command needs the extra demo")
pytest.importorskip("safetensors", reason="the command needs the extra demo")
pytest.importorskip("tokenizers", reason="the command needs the extra demo")

from tiny_model import CONFIG, tensors, write_model

from refnorm import cli
from refnorm.cli import _writers
from refnorm.models import load_encoder

ROOT = Path(__file__).parents[2]
TEXT = """the cat sat on the mat.

the dog run fast on the mat. one two three and one.

hello world, blue sun!
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path


def run(model, *arguments, backend="reference"):
    """Run the command in this process with the tiny model."""
    return cli.main([*arguments, "--model", str(model), "--backend", backend])


def start(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "refnorm", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


def test_embed_prints_a_line_a_passage(model, here, capsys):
    assert run(model, "embed", "a.txt", "--passage-tokens", "10") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["a.txt:1", "a.txt:3", "a.txt:3", "a.txt:5"]
    assert lines[0].endswith("the cat sat on the mat.")
    assert err.startswith("4 passages, ")
    assert "tokens per second (reference)" in err


def test_quiet_says_nothing_on_stderr(model, here, capsys):
    assert run(model, "embed", "a.txt", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("target", ["out.npy", "out.jsonl"])
def test_written_embeddings_are_the_encoders(model, here, target):
    assert run(model, "embed", "a.txt", "a.txt", "--passage-tokens", "10", "--output", target) == 0
    texts = [
        "the cat sat on the mat.", "the dog run fast on the mat.", "one two three and one.", "hello world, blue sun!",
    ]  # fmt: skip
    if target == "out.npy":
        vectors = np.load(target)
        assert vectors.dtype == np.float32
    else:
        records = [json.loads(line) for line in Path(target).read_text().splitlines()]
        assert [record["first_line"] for record in records] == [1, 3, 3, 5] * 2
        assert {record["file"] for record in records} == {"a.txt"}
        assert [record["text"] for record in records] == texts * 2
        vectors = np.array([record["embedding"] for record in records], np.float32)
    assert vectors.shape == (8, 8)
    np.testing.assert_allclose(vectors, np.tile(load_encoder(model).embed(texts), (2, 1)), atol=1e-6)
    assert leftovers(here) == []


def test_jsonl_floats_come_back_exactly(model, here, capsys):
    assert run(model, "embed", "a.txt", "--format", "jsonl", "--quiet") == 0
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert run(model, "embed", "a.txt", "--output", "a.npy", "--quiet") == 0
    np.testing.assert_array_equal(np.array(record["embedding"], np.float32), np.load("a.npy")[0])


def test_search_ranks_passages(model, here, capsys):
    Path("b.txt").write_text("moon\n\n\nriver boat\n")
    assert run(model, "search", "the dog run fast on the mat", "a.txt", "b.txt", "--passage-tokens", "10", "--top", "2", "--format", "jsonl") == 0  # fmt: skip
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["score"] > hits[1]["score"]
    encoder = load_encoder(model)
    texts = [hit["text"] for hit in hits]
    expected = encoder.embed(texts) @ encoder.embed(["the dog run fast on the mat"])[0]
    np.testing.assert_allclose([hit["score"] for hit in hits], expected, atol=1e-6)


def test_search_finds_a_copy_of_the_query_first(model, here, capsys):
    assert run(model, "search", "hello world, blue sun!", "a.txt", "--passage-tokens", "10", "-k", "1", "-q") == 0
    out = capsys.readouterr().out
    assert out.splitlines() == ["  1  1.0000  a.txt:5", "     hello world, blue sun!"]


def test_search_for_more_than_there_is(model, here, capsys):
    assert run(model, "search", "cat", "a.txt", "--top", "99", "--format", "jsonl") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_file_names_are_not_taken_for_markup(model, here, capsys):
    Path("[red]x.txt").write_text("the [bold]cat")
    assert run(model, "search", "cat", "[red]x.txt", "-q") == 0
    out = capsys.readouterr().out
    assert "[red]x.txt:1" in out
    assert "[bold]" in out


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are no text")
@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_a_file_whose_name_is_no_text_is_read_and_named(model, here, form):
    with open(b"caf\xe9.txt", "w") as stream:
        stream.write("hello world\n")
    process = start(
        "embed", b"caf\xe9.txt", "--format", form, "--model", str(model), "--backend", "reference", "-q", cwd=here
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "caf\ufffd.txt" in out


def test_a_name_that_no_file_can_have_is_refused(model, here, capsys):
    assert run(model, "embed", "a\0b") == 2
    assert "expected a file name, got: embedded null byte" in capsys.readouterr().err


def test_standard_input_is_a_file_called_minus(model, here):
    process = start("embed", "-", "--model", str(model), "--backend", "reference", stdin=subprocess.PIPE)
    out, _ = process.communicate("hello world\n", timeout=60)
    assert process.returncode == 0
    assert out.startswith("standard input:1  [")


def test_a_byte_order_mark_is_no_word(model, here, capsys):
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfhello world")
    assert run(model, "embed", "bom.txt", "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["text"] == "hello world"


BAD_INPUT = [
    (["embed", "missing.txt"], "missing.txt: no such file"),
    (["embed", "."], ".: expected a file, got a directory"),
    (["embed", "zero.bin"], "zero.bin: expected UTF-8 text, got binary data (a zero byte at 3)"),
    (["embed", "latin.txt"], "latin.txt: expected UTF-8 text, got other bytes"),
    (["embed", "cut.txt"], "cut.txt: expected UTF-8 text, got an unfinished character at the end"),
    (["embed", "empty.txt"], "empty.txt: expected text, got an empty file"),
    (["embed", "blank.txt"], "blank.txt: expected text, got nothing but white space"),
    (["embed", "a.txt", "missing.txt", "--output", "out.npy"], "missing.txt: no such file"),
    (["embed", "a.txt", "empty.txt", "--output", "out.npy"], "empty.txt: expected text, got an empty file"),
    (["search", "cat", "missing.txt"], "missing.txt: no such file"),
    (["search", " ", "a.txt"], "QUERY: expected words, got none"),
    (["search", "cat", "a.txt", "--top", "0"], "--top: expected an integer >= 1, got 0"),
    (["embed", "a.txt", "--threads", "0"], "--threads: expected an integer >= 1, got 0"),
    (["embed", "a.txt", "--threads", "two"], "'--threads'"),
    (["embed", "a.txt", "--backend", "gpu"], "--backend: expected one of reference, fast, fast-int8, got 'gpu'"),
    (["embed", "a.txt", "--passage-tokens", "7"], "--passage-tokens: expected an integer from 8 to 32, got 7"),
    (["embed", "a.txt", "--passage-tokens", "33"], "--passage-tokens: expected an integer from 8 to 32, got 33"),
    (["embed", "a.txt", "--output", "none/out.npy"], "--output: no such directory: "),
    (["embed", "a.txt", "--output", "."], "--output: expected a file, got a directory: ."),
    (["embed", "a.txt", "--output", "out.zip"], "--output: expected --format or a name that ends in one of .txt, "),
    (["embed", "a.txt", "--format", "npy"], "--format npy: expected --output with it, got none"),
    (["embed", "a.txt", "--format", "xml"], "--format: expected one of text, jsonl, npy, got 'xml'"),
    (["search", "cat", "a.txt", "--output", "out.npy"], "--output: expected --format or a name that ends in one of "),
    (["embed", "a.txt", "--model", "nowhere"], "model: expected a directory, got nothing of that name: nowhere"),
    (["embed", "a.txt", "--model", "a.txt"], "model: expected a directory, got a file: a.txt"),
    (["embed", "a.txt", "--model", "folder"], "model: folder holds no model: no config.json, "),
    (["embed", "a.txt", "--model", "truncated"], "expected a whole safetensors file, got: "),
    (["embed", "a.txt", "--model", "mismatched"], "embeddings.word_embeddings.weight: expected shape ("),
    (["embed", "a.txt", "--model", "incomplete"], "expected a tensor embeddings.LayerNorm.bias, got none of that name"),
    (["embed"], "Missing argument"),
    (["embed", "a.txt", "--nonsense"], "--nonsense"),
    (["nonsense"], "nonsense"),
    (["show", "nonsense"], "METHOD: expected a method such as norms/layer_norm or a function of one, got 'nonsense'"),
    (["show", "layernorm"], "got 'layernorm' (nearest: norms/layer_norm, "),
    (["show", "batch_norm"], "METHOD: expected one of "),
    (["claims", "layernorm"], "METHOD: expected a method "),
    (["list", "zzz"], "WORD: expected words of a method's name, title or functions, got 'zzz'"),
    (["list", "--room", "kitchen"], "--room: expected one of attention, models, "),
    (["race", "--rounds", "0"], "--rounds: expected an integer >= 1, got 0"),
    (["race", "--budget", "nan"], "--budget: expected a number > 0, got nan"),
    (["conformance", "run", "no_such_module"], "No module named 'no_such_module'"),
    (["conformance", "run", "refnorm", "--method", "layernorm"], "--method: expected a method such as "),
    (["conformance", "run", "refnorm:nothing"], "implementation: expected a name in refnorm, got 'nothing'"),
    (["conformance", "run", "refnorm:ROOMS"], "implementation: expected a mapping of names to functions, got tuple"),
    (["conformance", "run", ":x"], "implementation: expected MODULE or MODULE:MAPPING, got ':x'"),
    (["conformance", "run", "refnorm", "--vectors", "folder"], "index.json: No such file or directory"),
    (["conformance", "export", "folder/../a.txt"], "DIR: expected a folder or a name that is free, got a file: "),
    (["conformance", "export", "."], "DIR: expected an empty folder or an earlier export, got other files: "),
    (["conformance", "compare", "nowhere"], "index.json: No such file or directory"),
]


@pytest.fixture
def traps(here):
    """Everything that can be wrong, by name."""
    (here / "zero.bin").write_bytes(b"abc\0def")
    (here / "latin.txt").write_bytes("café au lait".encode("latin-1"))
    (here / "cut.txt").write_bytes("10 €".encode()[:-1])
    (here / "empty.txt").write_bytes(b"")
    (here / "blank.txt").write_text(" \n\t\n")
    (here / "folder").mkdir()
    whole = write_model(here / "truncated") / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])
    write_model(here / "mismatched", config={"hidden_size": 16}, arrays=tensors(CONFIG))
    arrays = tensors(CONFIG)
    del arrays["embeddings.LayerNorm.bias"]
    write_model(here / "incomplete", arrays=arrays)
    return here


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(a) for a, _ in BAD_INPUT])
def test_bad_input_gets_one_line_and_status_2(model, traps, capsys, arguments, message):
    if arguments[0] in ("embed", "search"):
        arguments = [*arguments, "--quiet"]
        arguments += [] if "--model" in arguments else ["--model", str(model)]
        arguments += [] if "--backend" in arguments else ["--backend", "reference"]
    before = sorted(path.name for path in traps.iterdir())
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refnorm: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in traps.iterdir()) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_an_unwritable_directory_is_named(model, here, capsys):
    folder = here / "locked"
    folder.mkdir(mode=0o500)
    assert run(model, "embed", "a.txt", "--output", "locked/out.npy") == 2
    assert capsys.readouterr().err.startswith("refnorm: --output: no permission to write locked/out.npy")


def test_a_write_that_fails_leaves_the_old_file(model, here, capsys, monkeypatch):
    Path("out.npy").write_bytes(b"old")

    def full(self, passage, vector):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_writers.NpyWriter, "write", full)
    assert run(model, "embed", "a.txt", "--output", "out.npy", "-q") == 2
    assert capsys.readouterr().err == "refnorm: --output: out.npy: no space left on device\n"
    assert Path("out.npy").read_bytes() == b"old"
    assert leftovers(here) == []


def test_an_existing_file_is_replaced_through_a_link(model, here):
    Path("real.npy").write_bytes(b"old")
    Path("link.npy").symlink_to("real.npy")
    assert run(model, "embed", "a.txt", "--output", "link.npy") == 0
    assert Path("link.npy").is_symlink()
    assert np.load("real.npy").shape == (1, 8)


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/null")
def test_a_device_is_written_to_and_stays_a_device(model, here):
    assert run(model, "embed", "a.txt", "--output", os.devnull, "--format", "jsonl") == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_interrupt_ends_at_once_without_a_trace(model, here):
    Path("big.txt").write_text("the cat sat on the mat. one two three and four.\n\n" * 400_000)
    process = start(
        "embed", "big.txt", "--model", str(model), "--backend", "reference", "--output", "out.npy",
        "--passage-tokens", "8", cwd=here,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not leftovers(here):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 130, err
    assert (out, err) == ("", "refnorm: interrupted\n")
    assert leftovers(here) == []
    assert not Path("out.npy").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe that closes")
def test_a_reader_that_leaves_early_is_no_error(model, here):
    Path("long.txt").write_text("the cat sat on the mat. one two three and four.\n\n" * 5000)
    process = start("embed", "long.txt", "--model", str(model), "--backend", "reference", "-q", cwd=here)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    with process.stderr:
        assert process.stderr.read() == ""


def test_a_missing_package_is_named(here):
    code = (
        "import sys; sys.modules['typer'] = None; sys.path.insert(0, sys.argv[1]);"
        "from refnorm.cli import main; sys.exit(main(['embed', 'a.txt']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == ('refnorm: typer is not installed; `pip install "refnorm[demo]"` installs what this needs\n')


def test_threads_are_set_before_numpy_is_loaded(model, here):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from refnorm.cli import main; assert 'numpy' not in sys.modules;"
        "assert main(['embed', 'a.txt', '-q', '--threads', '1', '--backend', 'reference', '--model', sys.argv[2]]) == 0;"
        "import threadpoolctl; print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})"
    )
    pytest.importorskip("threadpoolctl")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(model)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{1}"


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_progress_is_shown_on_a_terminal_only(model, here):
    import pty

    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "refnorm", "embed", "a.txt", "--model", str(model), "--backend", "reference"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.PIPE, stderr=terminal,
    )  # fmt: skip
    process.communicate(timeout=60)
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert process.returncode == 0
    assert "embedding" in shown
    piped = start("embed", "a.txt", "--model", str(model), "--backend", "reference", cwd=here)
    assert "embedding" not in piped.communicate(timeout=60)[1]


def test_help_is_shown_without_arguments(capsys):
    assert cli.main([]) == 0
    assert "Usage: refnorm" in capsys.readouterr().out
