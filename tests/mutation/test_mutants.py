import ast
from pathlib import Path

from mutation.mutants import mutants_of

SOURCE = '''\
"""Größe, 1 + 1."""

LIMIT = 2.0
METHOD = Method(year=2017)


def scaled(x: Array["1 + 1"], low, *, axis: int = -1) -> int:
    """Return 1 + 1."""
    if low < 0:
        _checks.fail("low", f"at least {0 + 1}", low - 1)
    check(x,
          low)
    largest = np.max(x, axis=axis)  # ± 1

    def pullback(dy):
        return dy * largest, dy if low and x else None

    return power(x, low), pullback
'''.encode()


def found():
    return {(mutant.function, mutant.place, mutant.label) for mutant in mutants_of("_module", SOURCE)}


def test_behaviour_is_changed_and_what_is_said_about_it_is_not():
    body = {
        "if [low < 0 -> True]:",
        "if [low < 0 -> False]:",
        "if low [< -> <=] 0:",
        "if low < [0 -> 1]:",
        "[check(x, low) -> pass]",
        "check([x, low -> low, x])",
        "largest = np.[max -> min](x, axis=axis)",
        "largest = np.max(x[, axis=axis -> nothing])",
        "return [dy * largest -> 0 * (dy * largest)], dy if low and x else None",
        "return dy [* -> /] largest, dy if low and x else None",
        "return dy * largest, [dy if low and x else None -> 0 * (dy if low and x else None)]",
        "return dy * largest, dy if [low and x -> True] else None",
        "return dy * largest, dy if [low and x -> False] else None",
        "return dy * largest, dy if low [and -> or] x else None",
        "return [power(x, low) -> 0 * (power(x, low))], pullback",
        "return power([x, low -> low, x]), pullback",
    }
    signature = 'def scaled(x: Array["1 + 1"], low, *, axis: int = {}) -> int:'
    expected = {("scaled", "body", label) for label in body}
    expected |= {("scaled", "default", signature.format(change)) for change in ("[-1 -> 1]", "-[1 -> 2]")}
    assert found() == expected | {("", "top", "LIMIT = [2.0 -> 4.0]")}


def test_each_change_is_one_other_program_of_the_same_lines():
    source = Path(__file__).read_bytes()
    mutants = mutants_of("_test", source)
    changed = [mutant.source(source) for mutant in mutants]
    assert len(mutants) > 20
    assert len({*changed, source}) == len(mutants) + 1
    assert len({(mutant.function, mutant.label) for mutant in mutants}) == len(mutants)
    for mutant, program in zip(mutants, changed, strict=True):
        ast.parse(program)
        assert program.count(b"\n") == source.count(b"\n")
        assert mutant.first_line <= source.count(b"\n", 0, mutant.start) + 1 <= mutant.last_line
