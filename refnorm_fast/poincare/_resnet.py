"""The Poincaré residual network on kernels: the reference's network over other layers."""

from __future__ import annotations

from typing import Any

import refnorm.poincare as reference
import refnorm_fast.poincare as room
from refnorm._typing import Array, F, Pullback, Tree
from refnorm.poincare._batch_norm import DEFAULT_EPS
from refnorm.poincare._poincare_resnet import LAYERS
from refnorm_fast.poincare._image import add_images, normalize_images, normalize_images_vjp, relu_images


class _Inference:
    """The network's layers without pullbacks: ``f_vjp`` returns the value of ``f`` and ``None``."""

    def __getattr__(self, name: str) -> Any:
        plain = name.removesuffix("_vjp")
        f = getattr(room, plain, None) or getattr(reference, plain)
        return lambda *args, **options: (f(*args, **options), None)

    @staticmethod
    def relu_vjp(x: Any, curvature: Any, *, axis: int) -> tuple[Any, None]:
        assert axis == 1
        return relu_images(x, curvature), None

    @staticmethod
    def residual_add_vjp(f: Any, skip: Any, curvature: Any, *, order: str, axis: int) -> tuple[Any, None]:
        assert axis == 1
        return add_images(f, skip, curvature, order=order), None

    @staticmethod
    def normalize(*args: Any) -> tuple[Any, Any, None]:
        return *normalize_images(*args), None


class _Training:
    """The network's layers with pullbacks: this package's where it has them, else the reference's."""

    normalize = staticmethod(normalize_images_vjp)

    def __getattr__(self, name: str) -> Any:
        return getattr(room, name, None) or getattr(reference, name, None) or getattr(LAYERS, name)


INFERENCE, TRAINING = _Inference(), _Training()


def poincare_resnet(
    params: Tree,
    x: Array[F],
    curvature: float | Array[F],
    running: Tree = None,
    *,
    order: str = "fr",
    eps: float = DEFAULT_EPS,
    recompute: bool = False,
    ops: Any = INFERENCE,
) -> Array[F]:
    """Return the logits of a Poincaré residual network; see :func:`refnorm.poincare.poincare_resnet`.

    By default the layers are this package's kernels, and nothing is kept for a pullback: ``recompute`` changes nothing.

    Examples
    --------
    >>> network = reference.PoincareResNet(channels=(2, 2, 2), blocks=(1, 1, 1), channels_in=1, classes=2)
    >>> params = network.init(np.random.default_rng(0))
    >>> poincare_resnet(params, np.ones((3, 1, 8, 8)), 0.1).shape
    (3, 2)
    """
    return reference.poincare_resnet(params, x, curvature, running, order=order, eps=eps, recompute=recompute, ops=ops)


def poincare_resnet_vjp(
    params: Tree,
    x: Array[F],
    curvature: float | Array[F],
    running: Tree = None,
    *,
    order: str = "fr",
    eps: float = DEFAULT_EPS,
    recompute: bool = False,
    ops: Any = TRAINING,
) -> tuple[Array[F], Pullback]:
    """Return :func:`poincare_resnet` and its pullback; see :func:`refnorm.poincare.poincare_resnet_vjp`.

    All layers are this package's kernels, forwards and backwards.
    """
    return reference.poincare_resnet_vjp(
        params, x, curvature, running, order=order, eps=eps, recompute=recompute, ops=ops
    )
