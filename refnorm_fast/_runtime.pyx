"""What the rooms share at run time: the instruction set level, the number of threads, memory."""

import importlib.util
import os

cdef extern from "dispatch.h":
    int rn_level_count()
    const char *rn_level_name(int level)
    int rn_level_supported(int level)
    int rn_level()
    int rn_use_level(int level)
    int rn_family_count()
    const char *rn_family_name(int family)
    void rn_set_thread_limit(int limit)
    int rn_thread_limit()
    int rn_has_openmp()
    void rn_block_trim(size_t keep_bytes) nogil
    size_t rn_block_kept()


def compiled_isas() -> list:
    """Names of the instruction set levels in this build, in ascending order."""
    return [rn_level_name(level).decode() for level in range(rn_level_count())]


def available_isas() -> list:
    """Names of the levels that were compiled and that this CPU can run, in ascending order."""
    return [rn_level_name(level).decode() for level in range(rn_level_count()) if rn_level_supported(level)]


def isa() -> str:
    """Name of the instruction set level in use.

    Examples
    --------
    >>> isa() in available_isas()
    True
    """
    return rn_level_name(rn_level()).decode()


def use_isa(name) -> str:
    """Switch all kernels to the level ``name``; return the name of the one before. Meant for tests.

    Raises
    ------
    ValueError
        If this build has no such level or the CPU cannot run it.
    """
    before = isa()
    _choose(name, "name")
    return before


cdef _choose(name, argument):
    names = compiled_isas()
    if name not in available_isas():
        reason = "which this CPU cannot run" if name in names else "which this build does not have"
        valid = ", ".join(repr(one) for one in available_isas())
        raise ValueError(f"{argument}: expected one of {valid}, got {name!r}, {reason}")
    rn_use_level(names.index(name))


def set_num_threads(count) -> None:
    """Set the largest number of threads that a kernel starts.

    Parameters
    ----------
    count : int or None
        At least 1. ``None`` restores the default: what OpenMP says, so that ``OMP_NUM_THREADS`` and
        ``threadpoolctl`` are honoured.

    Raises
    ------
    TypeError, ValueError
        If ``count`` is no integer, or less than 1.

    Examples
    --------
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(None)
    """
    if count is None:
        rn_set_thread_limit(0)
        return
    from refnorm import _checks

    rn_set_thread_limit(_checks.whole(count, "count", low=1, high=4096))


def get_num_threads() -> int:
    """Largest number of threads that a kernel starts: 1 without OpenMP and in a forked child."""
    return rn_thread_limit()


def release_memory() -> int:
    """Return the memory of freed large results, kept for reuse, to the system; return its size in bytes."""
    cdef size_t kept = rn_block_kept()
    with nogil:
        rn_block_trim(0)
    return kept


def _numpy_blas() -> str:
    import numpy

    try:
        blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
    except (KeyError, TypeError):
        return "unknown"


def _found(module) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def config() -> dict:
    """Describe this build and how it runs here; :func:`show_config` prints it."""
    from refnorm_fast.mojo._build import find_compiler

    return {
        "isa": isa(),
        "isas_available": available_isas(),
        "isas_compiled": compiled_isas(),
        "threads": get_num_threads(),
        "openmp": bool(rn_has_openmp()),
        "families": [rn_family_name(family).decode() for family in range(rn_family_count())],
        "blas": _numpy_blas(),
        "cuda": _found("cupy"),
        "mojo": find_compiler() is not None,
    }


def show_config(*, print_it=True) -> dict:
    """Print and return the instruction set, threads, BLAS and optional backends in use.

    Parameters
    ----------
    print_it : bool
        False returns the description without printing it.

    Returns
    -------
    dict
        ``isa``, ``isas_available``, ``isas_compiled``, ``threads``, ``openmp``, ``families``, ``blas`` (the one
        that NumPy uses), and whether the optional backends ``cuda`` (CuPy) and ``mojo`` (a Mojo
        compiler) are installed.

    Examples
    --------
    >>> show_config(print_it=False)["isa"] == isa()
    True
    """
    description = config()
    if print_it:
        for key, value in description.items():
            text = value
            if isinstance(value, list):
                text = ", ".join(value)
            elif isinstance(value, bool):
                text = "yes" if value else "no"
            print(f"{key:>15}: {text}")
    return description


cdef _choose_from_environment():
    wanted = os.environ.get("REFNORM_ISA", "")
    if wanted:
        _choose(wanted, "REFNORM_ISA")


_choose_from_environment()
