"""The choice of the instruction set, the number of threads, memory, and how a missing build is reported."""

from __future__ import annotations

import ctypes
import doctest
import multiprocessing
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import refnorm_fast
from refnorm_fast import _runtime
from refnorm_fast.norms import layer_norm
from refnorm_fast.softmax import softmax
from tests.fast import support


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    site = str(pathlib.Path(refnorm_fast.__file__).parents[1])
    path = os.pathsep.join([site, *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_levels() -> None:
    compiled, available = _runtime.compiled_isas(), _runtime.available_isas()
    assert compiled[0] in ("baseline", "neon")
    assert available == [name for name in compiled if name in available]
    assert refnorm_fast.isa() in available
    if not os.environ.get("REFNORM_ISA"):
        assert refnorm_fast.isa() == available[-1]


@pytest.mark.parametrize("name", support.ISAS)
def test_environment_forces_a_level(name: str) -> None:
    done = run("import refnorm_fast; print(refnorm_fast.isa())", REFNORM_ISA=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_level_is_an_error_at_import() -> None:
    done = run("import refnorm_fast", REFNORM_ISA="avx3")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: REFNORM_ISA: expected one of 'baseline'")
    assert "which this build does not have" in done.stderr


def test_level_that_the_cpu_lacks() -> None:
    missing = sorted(set(_runtime.compiled_isas()) - set(support.ISAS))
    if not missing:
        pytest.skip("this CPU runs every compiled level")
    with pytest.raises(ValueError, match="which this CPU cannot run"):
        _runtime.use_isa(missing[0])
    assert refnorm_fast.isa() not in missing


def test_use_isa_returns_the_one_before() -> None:
    before = refnorm_fast.isa()
    assert _runtime.use_isa(support.ISAS[0]) == before
    assert refnorm_fast.isa() == support.ISAS[0]
    assert _runtime.use_isa(before) == support.ISAS[0]


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    description = refnorm_fast.show_config()
    printed = capsys.readouterr().out
    for key in ("isa", "isas_available", "isas_compiled", "threads", "openmp", "blas", "cuda", "mojo"):
        assert key in description
        assert key in printed
    assert description["isa"] == refnorm_fast.isa()
    assert {"softmax", "norm"} <= set(description["families"])
    refnorm_fast.show_config(print_it=False)
    assert capsys.readouterr().out == ""


def test_pure_installation_says_why_in_one_line(tmp_path: pathlib.Path) -> None:
    package = tmp_path / "refnorm_fast"
    package.mkdir()
    source = pathlib.Path(refnorm_fast.__file__).read_text()
    (package / "__init__.py").write_text(source)
    done = subprocess.run(
        # -S: an editable installation would put its own finder in front.
        [sys.executable, "-S", "-P", "-c", "import refnorm_fast"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: refnorm_fast: this installation has no compiled kernels")
    assert "pip install" in last


def test_rooms_load_when_used() -> None:
    done = run("import sys, refnorm_fast; print('refnorm_fast.norms' in sys.modules); refnorm_fast.norms.layer_norm")
    assert done.stdout.strip() == "False", done.stderr
    with pytest.raises(AttributeError, match="no_such_room"):
        refnorm_fast.no_such_room  # noqa: B018


def test_number_of_threads() -> None:
    default = refnorm_fast.get_num_threads()
    with support.threads(3):
        assert refnorm_fast.get_num_threads() == (3 if refnorm_fast.show_config(print_it=False)["openmp"] else 1)
    assert refnorm_fast.get_num_threads() == default
    with pytest.raises(ValueError, match="count: expected an integer >= 1"):
        refnorm_fast.set_num_threads(0)
    with pytest.raises(TypeError, match="count: expected an integer"):
        refnorm_fast.set_num_threads(2.0)  # type: ignore[arg-type]


def test_omp_num_threads_and_threadpoolctl_are_honoured() -> None:
    if not refnorm_fast.show_config(print_it=False)["openmp"]:
        pytest.skip("built without OpenMP")
    done = run("import refnorm_fast; print(refnorm_fast.get_num_threads())", OMP_NUM_THREADS="3")
    assert done.stdout.strip() == "3", done.stderr
    with threadpool_limits(limits=1):
        assert refnorm_fast.get_num_threads() == 1


def test_eight_python_threads_at_once() -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(300, 1000 + 17 * i)).astype(np.float32) for i in range(8)]
    expected = [softmax(x) for x in inputs]

    def work(i: int) -> bool:
        return all(np.array_equal(softmax(inputs[i]), expected[i]) for _ in range(20))

    with support.threads(2), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def _in_child(queue: multiprocessing.Queue[tuple[int, bytes]]) -> None:
    x = np.random.default_rng(1).normal(size=(512, 4096)).astype(np.float32)
    queue.put((refnorm_fast.get_num_threads(), softmax(x)[::100, ::100].tobytes()))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_kernels_run_serially_after_fork() -> None:
    x = np.random.default_rng(1).normal(size=(512, 4096)).astype(np.float32)
    with support.threads(2):
        expected = softmax(x)[::100, ::100].tobytes()  # the pool of threads exists from here on
        context = multiprocessing.get_context("fork")
        queue: multiprocessing.Queue[tuple[int, bytes]] = context.Queue()
        child = context.Process(target=_in_child, args=(queue,))
        child.start()
        try:
            count, result = queue.get(timeout=60)
        finally:
            child.join(60)
    assert count == 1
    assert result == expected
    assert child.exitcode == 0


def test_large_results_own_writable_reused_memory() -> None:
    _runtime.release_memory()
    x = np.zeros((512, 2048), np.float32)
    y = softmax(x)
    address = y.ctypes.data
    assert y.flags.owndata
    assert y.flags.writeable
    del y
    z = softmax(x)
    assert z.ctypes.data == address
    view = z[3:5]
    del z
    w = softmax(x)  # the block is still in use through the view
    assert not np.shares_memory(w, view)
    np.testing.assert_array_equal(view, np.float32(1 / 2048))
    resized = w.copy()
    w.resize((1024, 2048), refcheck=False)
    np.testing.assert_array_equal(w[:512], resized)
    np.testing.assert_array_equal(w[512:], 0)
    del w, view
    assert _runtime.release_memory() > 0
    assert _runtime.release_memory() == 0


def test_large_results_after_many_sizes() -> None:
    kept = []
    for rows in (300, 500, 700, 900, 1100, 1300, 1500, 1700, 1900, 2100, 2300):
        y = softmax(np.zeros((rows, 1024), np.float32))
        y[...] = rows
        kept.append(y)
    for y in kept[::2]:
        assert (y == y.shape[0]).all()
    del kept[::2]
    z = softmax(np.zeros((900, 1024), np.float32))
    assert (z == np.float32(1 / 1024)).all()
    for y in kept:
        assert (y == y.shape[0]).all()
    _runtime.release_memory()


def test_kernel_library_stands_beside_the_package() -> None:
    # threadpoolctl and debuggers find the kernels as one shared library.
    folder = pathlib.Path(_runtime.__file__).parent
    (library,) = [*folder.glob("librefnorm_kernels.*")]
    assert ctypes.CDLL(str(library)).rn_level_count() == len(_runtime.compiled_isas())


def test_examples() -> None:
    assert doctest.testmod(_runtime).failed == 0
    assert doctest.testmod(_runtime).attempted > 0


def test_layer_norm_is_reachable_from_the_package() -> None:
    assert refnorm_fast.norms.layer_norm is layer_norm
