from collections.abc import Sequence

from refnorm._typing import Array, F, Tree
from refnorm.solvers import Kappa

def lion_update(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    form: str = "mul_add",
    out: Sequence[Array[F]] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def sign_momentum(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    out: Sequence[Array[F]] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def lion_kappa_update(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 1.0,
    kappa: str | Kappa = "l1",
    decay: str = "explicit",
    out: Sequence[Array[F]] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def ema_update(ema: Tree, target: Tree, *, momentum: float = 0.999, out: Tree | None = None) -> Tree: ...
def adamp_update(
    param: Array[F],
    grad: Array[F],
    first_moment: Array[F],
    second_moment: Array[F],
    *,
    step: int,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    nesterov: bool = False,
    out: Sequence[Array[F]] | None = None,
) -> tuple[Array[F], Array[F], Array[F]]: ...
def sgdp_update(
    param: Array[F],
    grad: Array[F],
    buffer: Array[F],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    eps: float = 1e-8,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    project_buffer: bool = False,
    out: Sequence[Array[F]] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def lion_trees(
    params: Tree,
    grads: Tree,
    momentum: Tree,
    into: tuple[Tree, ...] | None,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    form: str,
) -> tuple[Tree, Tree] | None: ...
def lion_kappa_trees(
    params: Tree,
    grads: Tree,
    momentum: Tree,
    into: tuple[Tree, ...] | None,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    kappa: str | Kappa,
    decay: str,
) -> tuple[Tree, Tree] | None: ...
def adamp_trees(
    params: Tree,
    grads: Tree,
    first_moment: Tree,
    second_moment: Tree,
    into: tuple[Tree, ...] | None,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    delta: float,
    weight_decay_ratio: float,
    nesterov: bool,
) -> tuple[Tree, Tree, Tree] | None: ...
def sgdp_trees(
    params: Tree,
    grads: Tree,
    buffer: Tree,
    into: tuple[Tree, ...] | None,
    *,
    learning_rate: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    eps: float,
    delta: float,
    weight_decay_ratio: float,
    project_buffer: bool,
) -> tuple[Tree, Tree] | None: ...
def adagrad_trees(
    params: Tree,
    grads: Tree,
    accumulator: Tree,
    into: tuple[Tree, ...] | None,
    *,
    rate: float,
    weight_decay: float,
    eps: float,
) -> tuple[Tree, Tree] | None: ...
def adagrad_norm_trees(
    params: Tree, grads: Tree, into: tuple[Tree, ...] | None, *, learning_rate: float, accumulator: float
) -> tuple[Tree, float] | None: ...
