"""Commands on the pages of the book about the command line print what the pages say."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)


def commands(text):
    """Yield ``(arguments, what the page says it prints)`` of each command of this project."""
    for block in CONSOLE.findall(text):
        for sample in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, _, output = sample.partition("\n")
            words = shlex.split(line)
            if words[0] == "refnorm" or words[:3] == ["python", "-m", "refnorm.conformance"]:
                yield words, output


COMMANDS = [
    (page.name, *sample) for page in sorted((DOCS / "use").glob("*.md")) for sample in commands(page.read_text())
]


@pytest.mark.parametrize(
    ("page", "words", "output"), COMMANDS, ids=[f"{page}: {words[-1]}" for page, words, _ in COMMANDS]
)
def test_commands_print_what_the_page_says(page, words, output, tmp_path, monkeypatch, capsys):
    pytest.importorskip("typer", reason="the command needs the extra demo")
    from refnorm.cli import main
    from refnorm.conformance.__main__ import main as conformance

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    status = main(words[1:]) if words[0] == "refnorm" else conformance(words[3:])
    assert status == 0
    printed = capsys.readouterr().out
    assert doctest.OutputChecker().check_output(output, printed, FLAGS), printed
