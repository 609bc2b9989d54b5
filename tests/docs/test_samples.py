"""Every Python sample of the book runs, and prints what the page says."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<language>python|pycon)[ \t]*\n(?P<code>.*?)^(?P=ticks)[ \t]*$", re.M | re.S)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def pages():
    found = [path for path in DOCS.glob("**/*.md") if path.relative_to(DOCS).parts[0] not in ("_build", "_generated")]
    return sorted(path.relative_to(DOCS).as_posix() for path in found if FENCE.search(path.read_text()))


def run_samples(text, name):
    """Run all samples of a page in one namespace; return what failed."""
    namespace, problems = {"__name__": "__sample__"}, []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for found in FENCE.finditer(text):
        code, line = found["code"], text[: found.start("code")].count("\n")
        if found["language"] == "pycon" or code.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
            runner.run(test, out=problems.append, clear_globs=False)
            namespace.update(test.globs)
        else:
            # The line numbers of an error are those of the page.
            exec(compile("\n" * line + code, name, "exec"), namespace)
    return problems


@pytest.mark.parametrize("page", pages())
def test_samples_run_and_print_what_the_page_says(page):
    assert not (problems := run_samples((DOCS / page).read_text(), page)), "\n".join(problems)


def test_a_wrong_sample_is_found():
    assert run_samples("text\n\n```pycon\n>>> 1 + 1\n3\n```\n", "page")
    assert not run_samples(
        "```pycon\n>>> a = 1\n```\n\n````python\nb = a + 1\n````\n\n```pycon\n>>> b\n2\n```\n", "page"
    )
    with pytest.raises(NameError):
        run_samples("```python\nmissing\n```\n", "page")


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
