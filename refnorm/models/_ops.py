"""The contract between a model and the operations that it is made of."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray

BACKENDS = ("reference", "fast", "fast-int8")


class Ops(Protocol):
    """What :mod:`refnorm.models.reference_ops` offers, and every replacement has to offer.

    Texts lie end to end in arrays of T rows; text ``i`` is rows ``offsets[i]`` to ``offsets[i + 1]``. A
    given ``out`` receives the result and overlaps no argument. See the reference for the formulas.
    """

    ACTIVATIONS: tuple[str, ...]

    def prepare_linear(self, weight: AnyArray, bias: AnyArray, /) -> Any: ...

    def linear(
        self, x: AnyArray, handle: Any, /, *, activation: str | None = None, out: AnyArray | None = None
    ) -> AnyArray: ...

    def linear_residual_norm(
        self,
        x: AnyArray,
        handle: Any,
        residual: AnyArray,
        gain: AnyArray,
        bias: AnyArray,
        /,
        *,
        eps: float,
        out: AnyArray | None = None,
    ) -> AnyArray: ...

    def embed(
        self,
        token_ids: IntArray,
        position_ids: IntArray,
        type_ids: IntArray,
        token_table: AnyArray,
        position_table: AnyArray,
        type_table: AnyArray,
        gain: AnyArray,
        bias: AnyArray,
        /,
        *,
        eps: float,
    ) -> AnyArray: ...

    def attention(
        self,
        query: AnyArray,
        key: AnyArray,
        value: AnyArray,
        offsets: IntArray,
        heads: int,
        /,
        *,
        scale: float,
        out: AnyArray | None = None,
    ) -> AnyArray: ...

    def mean_pool_normalize(self, x: AnyArray, offsets: IntArray, /) -> AnyArray: ...


def ops_named(backend: str) -> Ops:
    """Return the operations called ``"reference"``, ``"fast"`` or ``"fast-int8"``.

    Parameters
    ----------
    backend : one of :data:`BACKENDS`
        The last two are kernels of :mod:`refnorm_fast`, which is imported only then.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError
        If the kernels are not installed; the message says how to get them.

    Examples
    --------
    >>> ops_named("reference").__name__
    'refnorm.models.reference_ops'
    """
    _checks.one_of(backend, "backend", BACKENDS)
    if backend == "reference":
        return cast(Ops, importlib.import_module("refnorm.models.reference_ops"))
    return cast(Ops, importlib.import_module("refnorm_fast.models").ops(backend))
