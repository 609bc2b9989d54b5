"""Optimizer updates of one array and of trees: checks and layout; the arithmetic is in _kernels/optimizer.c."""

import numpy

from refnorm.solvers import _lion_kappa, _momentum_auxiliary
from refnorm.solvers._protocol import _rebuild
from refnorm.tree import children, tree_map

cimport numpy as np
from libc.math cimport isfinite, sqrt
from libc.stdlib cimport free, malloc, qsort

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "optimizer.h":
    int RN_KAPPA_L1, RN_KAPPA_SQ, RN_KAPPA_HUBER, RN_KAPPA_SOFTL1, RN_KAPPA_RELU, RN_KAPPA_L2
    int RN_MUL_ADD, RN_LERP, RN_ADAM, RN_ADAM_NESTEROV, RN_SGD, RN_SGD_NESTEROV
    ctypedef struct rn_projected_step:
        int kind
        int project_buffer
        double keep1, take1, keep2, take2, inv_root, eps, rate, shrink, shrink_projected, delta
    ctypedef struct rn_lion_step:
        double shrink, rate, beta1, beta2
        int form
    ctypedef struct rn_lion_kappa_step:
        int kappa
        double shrink, rate, beta1, beta2, parameter
    ctypedef struct rn_adagrad_step:
        double rate, decay, eps
    ctypedef struct rn_optimizer_array:
        const void *p
        const void *g
        const void *m
        const void *v
        void *p_out
        void *m_out
        void *v_out
        size_t rows, columns
    ctypedef struct rn_optimizer_table:
        void (*lion_f32)(const rn_optimizer_array *, size_t, const rn_lion_step *) nogil
        void (*lion_f64)(const rn_optimizer_array *, size_t, const rn_lion_step *) nogil
        int (*lion_kappa_f32)(const rn_optimizer_array *, size_t, const rn_lion_kappa_step *) nogil
        int (*lion_kappa_f64)(const rn_optimizer_array *, size_t, const rn_lion_kappa_step *) nogil
        void (*average_f32)(const rn_optimizer_array *, size_t, const double *) nogil
        void (*average_f64)(const rn_optimizer_array *, size_t, const double *) nogil
        void (*adagrad_f32)(const rn_optimizer_array *, size_t, const rn_adagrad_step *) nogil
        void (*adagrad_f64)(const rn_optimizer_array *, size_t, const rn_adagrad_step *) nogil
        void (*descend_f32)(const rn_optimizer_array *, size_t, const double *) nogil
        void (*descend_f64)(const rn_optimizer_array *, size_t, const double *) nogil
        int (*squares_f32)(const rn_optimizer_array *, size_t, double *) nogil
        int (*squares_f64)(const rn_optimizer_array *, size_t, double *) nogil
        int (*projected_step_f32)(const rn_optimizer_array *, size_t, const rn_projected_step *) nogil
        int (*projected_step_f64)(const rn_optimizer_array *, size_t, const rn_projected_step *) nogil
    const rn_optimizer_table *rn_optimizer() nogil


cdef np.ndarray _input(x, name, np.ndarray like):
    """`x` as a C-contiguous array with the shape and dtype of `like`, itself if it is one."""
    cdef np.ndarray array = _float_array(x, name)
    if like is not None:
        if np.PyArray_TYPE(array) != np.PyArray_TYPE(like):
            _checks.same_dtype("param", like, **{name: array})
        if not _same_shape(array, like):
            _checks.shape(array, name, (<object> like).shape)
    if not np.PyArray_IS_C_CONTIGUOUS(array):
        array = _in_order(array)
    return array


cdef list _results(out, list inputs, int count):
    """`count` arrays to write to: those of `out`, or scratch in place of one that overlaps."""
    cdef np.ndarray array, other
    cdef list targets = []
    cdef int i, j
    cdef bint fits
    if out is None:
        return [_fresh(<np.ndarray> inputs[0]) for i in range(count)]
    if not isinstance(out, (tuple, list)) or len(out) != count:
        _checks.fail("out", f"{count} arrays", f"{len(out) if isinstance(out, (tuple, list)) else type(out).__name__}")
    for i in range(count):
        _check_out(out[i], <np.ndarray> inputs[0])
    for i in range(count):
        array = <np.ndarray> out[i]
        fits = np.PyArray_IS_C_CONTIGUOUS(array) and np.PyArray_ISALIGNED(array)
        # inputs: param, grad, then the state; result i belongs to param or to a part of the state.
        for j in range(len(inputs)):
            other = <np.ndarray> inputs[j]
            fits = fits and (_apart(array, other) or (j == (0 if i == 0 else i + 1) and _identical(array, other)))
        for j in range(count):
            fits = fits and (i == j or _apart(array, <np.ndarray> out[j]))
        targets.append(array if fits else _fresh(<np.ndarray> inputs[0]))
    return targets


cdef tuple _deliver(out, list targets):
    if out is None:
        return tuple(targets)
    for given, target in zip(out, targets):
        if given is not target:
            given[...] = target
    return tuple(out)


cdef _check_positive(double value, name):
    if not (isfinite(value) and value > 0):
        _checks.positive(value, name)


cdef _check_non_negative(double value, name):
    if not (isfinite(value) and value >= 0):
        _checks.non_negative(value, name)


# ---- arrays for the kernels ----------------------------------------------------------------------------------------

cdef enum:
    LION, LION_KAPPA, PROJECTED, ADAGRAD, DESCEND, AVERAGE


cdef int _run(int kind, const rn_optimizer_array *arrays, size_t count, bint single, const void *options) noexcept nogil:
    """Step `count` arrays of one dtype; -1: no memory."""
    cdef const rn_optimizer_table *table = rn_optimizer()
    if count == 0:
        return 0
    if kind == LION:
        (table.lion_f32 if single else table.lion_f64)(arrays, count, <const rn_lion_step *> options)
    elif kind == LION_KAPPA:
        return (table.lion_kappa_f32 if single else table.lion_kappa_f64)(
            arrays, count, <const rn_lion_kappa_step *> options)
    elif kind == AVERAGE:
        (table.average_f32 if single else table.average_f64)(arrays, count, <const double *> options)
    elif kind == ADAGRAD:
        (table.adagrad_f32 if single else table.adagrad_f64)(arrays, count, <const rn_adagrad_step *> options)
    elif kind == DESCEND:
        (table.descend_f32 if single else table.descend_f64)(arrays, count, <const double *> options)
    else:
        return (table.projected_step_f32 if single else table.projected_step_f64)(
            arrays, count, <const rn_projected_step *> options)
    return 0


cdef void _describe(rn_optimizer_array *array, tuple inputs, tuple targets):
    """`inputs`: parameter, gradient, state; `targets`: parameter, state. All are C-contiguous and of one shape."""
    cdef np.ndarray p = <np.ndarray> inputs[0]
    array.p = np.PyArray_DATA(p)
    array.g = np.PyArray_DATA(<np.ndarray> inputs[1])
    array.m = np.PyArray_DATA(<np.ndarray> inputs[2]) if len(inputs) > 2 else NULL
    array.v = np.PyArray_DATA(<np.ndarray> inputs[3]) if len(inputs) > 3 else NULL
    array.p_out = np.PyArray_DATA(<np.ndarray> targets[0]) if len(targets) > 0 else NULL
    array.m_out = np.PyArray_DATA(<np.ndarray> targets[1]) if len(targets) > 1 else NULL
    array.v_out = np.PyArray_DATA(<np.ndarray> targets[2]) if len(targets) > 2 else NULL
    array.columns = np.PyArray_SIZE(p)
    array.rows = 0
    if np.PyArray_NDIM(p) > 1 and array.columns:
        array.rows = np.PyArray_DIM(p, 0)
        array.columns //= array.rows


cdef _run_one(int kind, list inputs, list targets, const void *options):
    cdef rn_optimizer_array array
    cdef bint single = np.PyArray_TYPE(<np.ndarray> inputs[0]) == np.NPY_FLOAT
    cdef int failed
    _describe(&array, tuple(inputs), tuple(targets))
    if array.columns == 0:
        return
    with nogil:
        failed = _run(kind, &array, 1, single, options)
    if failed:
        raise MemoryError


# ---- trees: all arrays of a network in one call --------------------------------------------------------------------

cdef bint _collect(tree, other, list leaves) except -1:
    """Append the leaves of `other` in the order of `tree`'s; False where their structures differ."""
    cdef Py_ssize_t i
    if tree is None or type(tree) is np.ndarray:
        leaves.append(other)
        return other is None or isinstance(other, np.ndarray)
    if type(tree) is not type(other):
        return False
    if type(tree) is dict:
        if len(<dict> tree) != len(<dict> other):
            return False
        for (key, child), (other_key, other_child) in zip((<dict> tree).items(), (<dict> other).items()):
            if key != other_key or not _collect(child, other_child, leaves):
                return False
        return True
    if type(tree) is list or type(tree) is tuple:
        if len(tree) != len(other):
            return False
        for i in range(len(tree)):
            if not _collect(tree[i], other[i], leaves):
                return False
        return True
    nodes = children(tree)
    if nodes is None:
        return False
    others = children(other)
    if len(nodes) != len(others):
        return False
    for (name, child), (other_name, other_child) in zip(nodes, others):
        if name != other_name or not _collect(child, other_child, leaves):
            return False
    return True


cdef _with_leaves(tree, list leaves, Py_ssize_t *at):
    """`tree` with the next of `leaves` in the places of its own."""
    if tree is None or type(tree) is np.ndarray:
        at[0] += 1
        return leaves[at[0] - 1]
    if type(tree) is dict:
        return {key: _with_leaves(child, leaves, at) for key, child in (<dict> tree).items()}
    if type(tree) is list:
        return [_with_leaves(child, leaves, at) for child in <list> tree]
    if type(tree) is tuple:
        return tuple([_with_leaves(child, leaves, at) for child in <tuple> tree])
    cdef list own = []
    _collect(tree, tree, own)
    at[0] += len(own)
    return _rebuild(tree, leaves[at[0] - len(own) : at[0]])


cdef bint _suits(array, np.ndarray like) noexcept:
    """Whether the kernels can take `array`, of the shape and dtype of `like`, as it is."""
    return (type(array) is np.ndarray and np.PyArray_ISCARRAY_RO(<np.ndarray> array)
            and np.PyArray_TYPE(<np.ndarray> array) == np.PyArray_TYPE(like) and _same_shape(<np.ndarray> array, like))


cdef struct interval:
    size_t begin, end
    bint written


cdef int _by_begin(const void *a, const void *b) noexcept nogil:
    cdef size_t one = (<const interval *> a).begin, other = (<const interval *> b).begin
    return (one > other) - (one < other)


cdef size_t _note(interval *into, size_t count, const void *data, size_t bytes, bint written) noexcept:
    if data == NULL or bytes == 0:
        return count
    into[count] = interval(<size_t> data, <size_t> data + bytes, written)
    return count + 1


cdef bint _results_apart(const rn_optimizer_array *arrays, size_t count, size_t item) except -1:
    """Whether every result is its own input or shares no memory with anything."""
    cdef interval *all = <interval *> malloc((7 * count + 1) * sizeof(interval))
    cdef size_t n = 0, i, bytes, end = 0, written_end = 0
    cdef const rn_optimizer_array *a
    cdef bint apart = True
    if all == NULL:
        raise MemoryError
    for i in range(count):
        a = arrays + i
        bytes = item * a.columns * (a.rows if a.rows else 1)
        n = _note(all, n, a.g, bytes, False)
        n = _note(all, n, a.p if a.p != a.p_out else NULL, bytes, False)
        n = _note(all, n, a.m if a.m != a.m_out else NULL, bytes, False)
        n = _note(all, n, a.v if a.v != a.v_out else NULL, bytes, False)
        n = _note(all, n, a.p_out, bytes, True)
        n = _note(all, n, a.m_out, bytes, True)
        n = _note(all, n, a.v_out, bytes, True)
    qsort(all, n, sizeof(interval), _by_begin)
    for i in range(n):
        if all[i].begin < written_end or (all[i].written and all[i].begin < end):
            apart = False
            break
        end = max(end, all[i].end)
        if all[i].written:
            written_end = max(written_end, all[i].end)
    free(all)
    return apart


cdef class _Arrays:
    """The arrays of several trees of one structure, described for the kernels: float32 from the front, float64 from
    the back."""
    cdef rn_optimizer_array *arrays
    cdef size_t room, single, double
    cdef list results  # one list of leaves for each result tree
    cdef object params

    def __dealloc__(self):
        free(self.arrays)

    cdef int step(self, int kind, const void *options) except -1:
        cdef int failed
        with nogil:
            failed = _run(kind, self.arrays, self.single, True, options)
            failed |= _run(kind, self.arrays + (self.room - self.double), self.double, False, options)
        if failed:
            raise MemoryError
        return 0

    cdef double squares(self) except *:
        """The sum of squares of the gradients."""
        cdef double narrow = 0, wide = 0
        cdef int failed = 0
        with nogil:
            if self.single:
                failed = rn_optimizer().squares_f32(self.arrays, self.single, &narrow)
            if self.double and failed == 0:
                failed = rn_optimizer().squares_f64(self.arrays + (self.room - self.double), self.double, &wide)
        if failed:
            raise MemoryError
        return narrow + wide

    cdef tuple trees(self):
        cdef Py_ssize_t at
        cdef list found = []
        for leaves in self.results:
            at = 0
            found.append(_with_leaves(self.params, leaves, &at))
        return tuple(found)


cdef _Arrays _arrays(params, grads, tuple states, into):
    """The arrays of the trees, with results for the parameters and the states: fresh ones, or those of the trees
    `into`. None where a kernel cannot take all of them as they are, which includes all that is an error."""
    cdef _Arrays work = _Arrays()
    cdef list columns = [], targets = [], leaves
    cdef Py_ssize_t count, i, j
    cdef int results = 1 + len(states)
    cdef np.ndarray p
    cdef tuple inputs, places
    cdef rn_optimizer_array *array
    for tree in (params, grads, *states):
        leaves = []
        if not _collect(params, tree, leaves):
            return None
        columns.append(leaves)
    if into is not None:
        if len(into) != results:
            return None
        for tree in into:
            leaves = []
            if not _collect(params, tree, leaves):
                return None
            targets.append(leaves)
    count = len(<list> columns[0])
    work.params, work.room = params, count
    work.results = [[] for j in range(results)]
    work.arrays = <rn_optimizer_array *> malloc((count + 1) * sizeof(rn_optimizer_array))
    if work.arrays == NULL:
        raise MemoryError
    for i in range(count):
        inputs = tuple([(<list> column)[i] for column in columns])
        if inputs[0] is None or inputs[1] is None:
            if len(states) == 0 and inputs[1] is not None:
                return None  # a gradient without a parameter counts in a norm
            for j in range(results):
                (<list> work.results[j]).append(inputs[0] if j == 0 else inputs[1 + j])
            continue
        if type(inputs[0]) is not np.ndarray:
            return None
        p = <np.ndarray> inputs[0]
        if np.PyArray_TYPE(p) != np.NPY_FLOAT and np.PyArray_TYPE(p) != np.NPY_DOUBLE:
            return None
        for other in inputs:
            if not _suits(other, p):
                return None
        if into is None:
            places = tuple([_fresh(p) for j in range(results)])
        else:
            places = tuple([(<list> column)[i] for column in targets])
            for other in places:
                if not _suits(other, p) or not np.PyArray_ISWRITEABLE(<np.ndarray> other):
                    return None
        for j in range(results):
            (<list> work.results[j]).append(places[j])
        if np.PyArray_SIZE(p) == 0:
            continue
        if np.PyArray_TYPE(p) == np.NPY_FLOAT:
            array = work.arrays + work.single
            work.single += 1
        else:
            work.double += 1
            array = work.arrays + (work.room - work.double)
        _describe(array, inputs, places)
    if into is not None and not (_results_apart(work.arrays, work.single, sizeof(float))
                                 and _results_apart(work.arrays + (work.room - work.double), work.double, sizeof(double))):
        return None
    return work


# ---- Lion ----------------------------------------------------------------------------------------------------------

cdef rn_lion_step _lion_options(learning_rate, beta1, beta2, weight_decay, form) except *:
    cdef double rate = learning_rate, keep1 = beta1, keep2 = beta2, decay = weight_decay
    cdef rn_lion_step options
    _check_positive(rate, "learning_rate")
    if not 0 <= keep1 <= 1:
        _checks.in_range(beta1, "beta1", 0.0, 1.0)
    if not 0 <= keep2 <= 1:
        _checks.in_range(beta2, "beta2", 0.0, 1.0)
    _check_non_negative(decay, "weight_decay")
    if form != "mul_add":
        _checks.one_of(form, "form", ("mul_add", "lerp"))
    options.shrink, options.rate, options.beta1, options.beta2 = 1 - rate * decay, rate, keep1, keep2
    options.form = RN_MUL_ADD if form == "mul_add" else RN_LERP
    return options


def lion_trees(params, grads, momentum, into, *, learning_rate, beta1, beta2, weight_decay, form):
    """Step every array of the trees in one call: the trees of :func:`lion_update`'s results, or None where an
    array has to be looked at by itself. ``into`` is None or the trees of arrays to write to."""
    cdef _Arrays work = _arrays(params, grads, (momentum,), into)
    if work is None:
        return None
    cdef rn_lion_step options = _lion_options(learning_rate, beta1, beta2, weight_decay, form)
    work.step(LION, &options)
    return work.trees()


def lion_update(param, grad, momentum, *, learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0, form="mul_add", out=None):
    """Take one Lion step on one array.

    Parameters
    ----------
    param, grad, momentum, learning_rate, beta1, beta2, weight_decay, form
        As in :func:`refnorm.solvers.lion_update`.
    out : pair of arrays, optional
        Take parameter and momentum; ``(param, momentum)`` steps in place.

    Returns
    -------
    param, momentum : arrays of the shape and dtype of ``param``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.solvers.lion_update`; also if ``out`` does not fit.

    Notes
    -----
    One pass. The same bits as the reference: no product is fused into a sum.

    References
    ----------
    Chen et al. (2023), arXiv 2302.06675, algorithm 2.

    Examples
    --------
    >>> lion_update(np.array([1.0]), np.array([-3.0]), np.array([0.1]), learning_rate=0.25)[0]
    array([1.25])
    """
    if _on_gpu(param):
        return _dispatch.call("solvers.lion_update", out, param, grad, momentum, learning_rate=learning_rate,
                              beta1=beta1, beta2=beta2, weight_decay=weight_decay, form=form)
    cdef np.ndarray p = _input(param, "param", None)
    cdef np.ndarray g = _input(grad, "grad", p)
    cdef np.ndarray m = _input(momentum, "momentum", p)
    cdef rn_lion_step options = _lion_options(learning_rate, beta1, beta2, weight_decay, form)
    cdef list targets = _results(out, [p, g, m], 2)
    _run_one(LION, [p, g, m], targets, &options)
    return _deliver(out, targets)


def sign_momentum(param, grad, momentum, *, learning_rate=1e-4, beta=0.9, weight_decay=0.0, out=None):
    """Take one step of signSGD with momentum: :func:`lion_update` with ``beta`` for both betas.

    Examples
    --------
    >>> sign_momentum(np.array([1.0]), np.array([-2.0]), np.array([0.0]), learning_rate=0.5, beta=0.5)
    (array([1.5]), array([-1.]))
    """
    if _on_gpu(param):
        return _dispatch.call("solvers.sign_momentum", out, param, grad, momentum, learning_rate=learning_rate,
                              beta=beta, weight_decay=weight_decay)
    _checks.in_range(beta, "beta", 0.0, 1.0)
    return lion_update(param, grad, momentum, learning_rate=learning_rate, beta1=beta, beta2=beta,
                       weight_decay=weight_decay, out=out)


# ---- Lion-K --------------------------------------------------------------------------------------------------------

_KAPPAS = {"l1": RN_KAPPA_L1, "l2": RN_KAPPA_L2, "sq": RN_KAPPA_SQ, "huber": RN_KAPPA_HUBER, "softl1": RN_KAPPA_SOFTL1,
           "relu": RN_KAPPA_RELU}
_PARAMETERS = {"huber": "width", "softl1": "threshold"}


cdef bint _kappa_options(rn_lion_kappa_step *options, learning_rate, beta1, beta2, weight_decay, kappa, decay) except -1:
    """Whether a kernel knows this kappa. Raises where an argument is outside its range."""
    chosen = _lion_kappa._check_step(learning_rate, (beta1, beta2), weight_decay, kappa, decay)
    given = chosen._options
    if given is None or chosen.name not in _KAPPAS:
        return False
    cdef double rate = learning_rate, keep1 = beta1, keep2 = beta2, pull = rate * <double> weight_decay
    options.kappa = _KAPPAS[chosen.name]
    options.parameter = given[_PARAMETERS[chosen.name]] if chosen.name in _PARAMETERS else 0
    options.beta1, options.beta2 = keep1, keep2
    options.rate, options.shrink = rate, 1 - pull
    if decay == "implicit":
        options.shrink = 1 / (1 + pull)
        options.rate = rate * options.shrink
    return True


def lion_kappa_trees(params, grads, momentum, into, *, learning_rate, beta1, beta2, weight_decay, kappa, decay):
    """As :func:`lion_trees`, with :func:`lion_kappa_update`; None also where there is no kernel for ``kappa``."""
    cdef rn_lion_kappa_step options
    if not _kappa_options(&options, learning_rate, beta1, beta2, weight_decay, kappa, decay):
        return None
    cdef _Arrays work = _arrays(params, grads, (momentum,), into)
    if work is None:
        return None
    work.step(LION_KAPPA, &options)
    return work.trees()


def lion_kappa_update(param, grad, momentum, *, learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=1.0, kappa="l1",
                      decay="explicit", out=None):
    """Take one Lion-K step on one array.

    Parameters
    ----------
    param, grad, momentum, learning_rate, beta1, beta2, weight_decay, kappa, decay
        As in :func:`refnorm.solvers.lion_kappa_update`. The kernel knows ``"l1"``, ``"l2"``, ``"sq"``, ``"huber"``,
        ``"softl1"`` and ``"relu"``; for others the reference takes the step.
    out : pair of arrays, optional
        Take parameter and momentum; ``(param, momentum)`` steps in place.

    Returns
    -------
    param, momentum : arrays of the shape and dtype of ``param``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.solvers.lion_kappa_update`; also if ``out`` does not fit.

    Notes
    -----
    One pass, and another one before it for the norm of ``"l2"``, whose sum is in float64. But for ``"l2"`` the same bits
    as the reference: no product is fused into a sum.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (Lion-K).

    Examples
    --------
    >>> lion_kappa_update(np.array([1.0]), np.array([2.0]), np.array([0.0]), learning_rate=0.1)
    (array([0.8]), array([-0.02]))
    """
    cdef np.ndarray p = _input(param, "param", None)
    cdef np.ndarray g = _input(grad, "grad", p)
    cdef np.ndarray m = _input(momentum, "momentum", p)
    cdef rn_lion_kappa_step options
    cdef bint known = _kappa_options(&options, learning_rate, beta1, beta2, weight_decay, kappa, decay)
    cdef list targets = _results(out, [p, g, m], 2)
    if known:
        _run_one(LION_KAPPA, [p, g, m], targets, &options)
        return _deliver(out, targets)
    found = _lion_kappa.lion_kappa_update(p, g, m, learning_rate=learning_rate, beta1=beta1, beta2=beta2,
                                          weight_decay=weight_decay, kappa=kappa, decay=decay)
    return found if out is None else _deliver(out, list(found))


# ---- running averages ----------------------------------------------------------------------------------------------

cdef _average_trees(ema, target, into, momentum):
    """The tree of averages, or None where an array has to be looked at by itself."""
    cdef list leaves = []
    cdef double keep = momentum
    if not _collect(ema, target, leaves):
        return None
    for leaf in leaves:
        if leaf is None:
            return None
    cdef _Arrays work = _arrays(ema, target, (), into)
    if work is None:
        return None
    work.step(AVERAGE, &keep)
    return work.trees()[0]


def ema_update(ema, target, *, momentum=0.999, out=None):
    """Move an exponential moving average towards its target.

    Parameters
    ----------
    ema, target, momentum
        As in :func:`refnorm.solvers.ema_update`.
    out : tree like ``ema``, optional
        Its arrays take the results; ``ema`` moves the average in place.

    Returns
    -------
    tree like ``ema``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.solvers.ema_update`; also if ``out`` does not fit.

    Notes
    -----
    One pass over all arrays in one call, with the bits of the reference.

    References
    ----------
    Su et al. (2024), arXiv 2407.05623.

    Examples
    --------
    >>> ema_update(np.array([0.5]), np.array([1.0]), momentum=0.9)
    array([0.55])
    """
    _checks.in_range(momentum, "momentum", 0.0, 1.0)
    found = _average_trees(ema, target, None if out is None else (out,), momentum)
    if found is not None:
        return found
    found = _momentum_auxiliary.ema_update(ema, target, momentum=momentum)
    if out is None:
        return found
    return _written("out", found, out)


def _written(name, results, out):
    """Each result in its place of ``out``, all of which are looked at before one is written."""
    tree_map(lambda result, place: _check_out(place, numpy.asarray(result)), results, out, path=name)

    def write(result, place):
        place[...] = result
        return place

    return tree_map(write, results, out, path=name)


# ---- AdamP, SGDP ---------------------------------------------------------------------------------------------------

cdef rn_projected_step _adamp_options(step, learning_rate, beta1, beta2, eps, weight_decay, delta, weight_decay_ratio,
                                      nesterov) except *:
    cdef long number = _checks.whole(step, "step", low=1)
    cdef double rate = learning_rate, keep1 = beta1, keep2 = beta2, decay = weight_decay
    _check_non_negative(rate, "learning_rate")
    if not (0 <= keep1 < 1 and 0 <= keep2 < 1):
        for beta in (beta1, beta2):
            _checks.in_range(beta, "betas", 0.0, 1.0, closed="left")
    _check_non_negative(decay, "weight_decay")
    _check_non_negative(weight_decay_ratio, "weight_decay_ratio")
    _check_positive(delta, "delta")
    _check_non_negative(eps, "eps")
    cdef rn_projected_step options
    options.kind = RN_ADAM_NESTEROV if nesterov else RN_ADAM
    options.project_buffer = 0
    options.keep1, options.take1, options.keep2, options.take2 = keep1, 1 - keep1, keep2, 1 - keep2
    options.inv_root, options.eps, options.delta = 1 / sqrt(1 - keep2**number), eps, delta
    options.rate = rate / (1 - keep1**number)
    options.shrink = 1 - rate * decay
    options.shrink_projected = 1 - rate * decay * weight_decay_ratio
    return options


def adamp_trees(params, grads, first_moment, second_moment, into, *, step, learning_rate, beta1, beta2, eps, weight_decay,
                delta, weight_decay_ratio, nesterov):
    """As :func:`lion_trees`, with :func:`adamp_update`."""
    cdef _Arrays work = _arrays(params, grads, (first_moment, second_moment), into)
    if work is None:
        return None
    cdef rn_projected_step options = _adamp_options(step, learning_rate, beta1, beta2, eps, weight_decay, delta,
                                                    weight_decay_ratio, nesterov)
    work.step(PROJECTED, &options)
    return work.trees()


cdef rn_projected_step _sgdp_options(learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta,
                                     weight_decay_ratio, project_buffer) except *:
    cdef double rate = learning_rate, keep = momentum, damp = dampening, decay = weight_decay
    _check_non_negative(rate, "learning_rate")
    _check_non_negative(keep, "momentum")
    _check_non_negative(decay, "weight_decay")
    if decay > 0 and keep >= 1:
        _checks.fail("momentum", "a number below 1 where there is weight decay", momentum)
    if not isfinite(damp):
        _checks.fail("dampening", "a finite number", dampening)
    _check_non_negative(weight_decay_ratio, "weight_decay_ratio")
    _check_positive(delta, "delta")
    _check_non_negative(eps, "eps")
    cdef double scaled = rate * decay / (1 - keep) if decay > 0 else 0.0
    cdef rn_projected_step options
    options.kind = RN_SGD_NESTEROV if nesterov else RN_SGD
    options.project_buffer = 1 if project_buffer and not nesterov else 0
    options.keep1, options.take1, options.keep2, options.take2 = keep, 1 - damp, 0, 0
    options.inv_root, options.eps, options.delta, options.rate = 1, eps, delta, rate
    options.shrink = 1 - scaled
    options.shrink_projected = 1 - scaled * weight_decay_ratio
    return options


def sgdp_trees(params, grads, buffer, into, *, learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta,
               weight_decay_ratio, project_buffer):
    """As :func:`lion_trees`, with :func:`sgdp_update`."""
    cdef _Arrays work = _arrays(params, grads, (buffer,), into)
    if work is None:
        return None
    cdef rn_projected_step options = _sgdp_options(learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta,
                                                   weight_decay_ratio, project_buffer)
    work.step(PROJECTED, &options)
    return work.trees()


def adamp_update(param, grad, first_moment, second_moment, *, step, learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
                 weight_decay=0.0, delta=0.1, weight_decay_ratio=0.1, nesterov=False, out=None):
    """Take one AdamP step on one array.

    Parameters
    ----------
    param, grad, first_moment, second_moment, step, learning_rate, beta1, beta2, eps, weight_decay, delta
        As in :func:`refnorm.solvers.adamp_update`.
    weight_decay_ratio, nesterov
        As in :func:`refnorm.solvers.adamp_update`.
    out : three arrays, optional
        Take parameter and moments; ``(param, first_moment, second_moment)`` steps in place.

    Returns
    -------
    param, first_moment, second_moment : arrays of the shape and dtype of ``param``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.solvers.adamp_update`; also if ``out`` does not fit.

    Notes
    -----
    Each row is moved, summed and applied while it is in cache, on the guess that the array is projected like the
    rows before; rows that were guessed wrong are applied again. Sums are in float64.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 2.

    Examples
    --------
    >>> start, slope, zero = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]]), np.zeros((1, 2))
    >>> adamp_update(start, slope, zero, zero, step=1, learning_rate=0.1, weight_decay=0.5)[0].round(6)
    array([[3.097, 3.896]])
    """
    if _on_gpu(param):
        return _dispatch.call("solvers.adamp_update", out, param, grad, first_moment, second_moment, step=step,
                              learning_rate=learning_rate, beta1=beta1, beta2=beta2, eps=eps,
                              weight_decay=weight_decay, delta=delta, weight_decay_ratio=weight_decay_ratio,
                              nesterov=nesterov)
    cdef np.ndarray p = _input(param, "param", None)
    cdef list inputs = [p, _input(grad, "grad", p), _input(first_moment, "first_moment", p),
                        _input(second_moment, "second_moment", p)]
    cdef rn_projected_step options = _adamp_options(step, learning_rate, beta1, beta2, eps, weight_decay, delta,
                                                    weight_decay_ratio, nesterov)
    cdef list targets = _results(out, inputs, 3)
    _run_one(PROJECTED, inputs, targets, &options)
    return _deliver(out, targets)


def sgdp_update(param, grad, buffer, *, learning_rate, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
                eps=1e-8, delta=0.1, weight_decay_ratio=0.1, project_buffer=False, out=None):
    """Take one SGDP step on one array.

    Parameters
    ----------
    param, grad, buffer, learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta
        As in :func:`refnorm.solvers.sgdp_update`.
    weight_decay_ratio, project_buffer
        As in :func:`refnorm.solvers.sgdp_update`.
    out : pair of arrays, optional
        Take parameter and buffer; ``(param, buffer)`` steps in place.

    Returns
    -------
    param, buffer : arrays of the shape and dtype of ``param``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.solvers.sgdp_update`; also if ``out`` does not fit.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 1.

    Examples
    --------
    >>> start, slope = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]])
    >>> sgdp_update(start, slope, np.zeros((1, 2)), learning_rate=0.1, momentum=0.9)[0]
    array([[3.08, 3.94]])
    """
    if _on_gpu(param):
        return _dispatch.call("solvers.sgdp_update", out, param, grad, buffer, learning_rate=learning_rate,
                              momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
                              eps=eps, delta=delta, weight_decay_ratio=weight_decay_ratio,
                              project_buffer=project_buffer)
    cdef np.ndarray p = _input(param, "param", None)
    cdef list inputs = [p, _input(grad, "grad", p), _input(buffer, "buffer", p)]
    cdef rn_projected_step options = _sgdp_options(learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta,
                                                   weight_decay_ratio, project_buffer)
    cdef list targets = _results(out, inputs, 2)
    _run_one(PROJECTED, inputs, targets, &options)
    return _deliver(out, targets)


# ---- AdaGrad -------------------------------------------------------------------------------------------------------

def adagrad_trees(params, grads, accumulator, into, *, rate, weight_decay, eps):
    """As :func:`lion_trees`, with a step of :class:`AdaGrad` at the learning rate ``rate``."""
    cdef _Arrays work = _arrays(params, grads, (accumulator,), into)
    if work is None:
        return None
    cdef rn_adagrad_step options
    options.rate, options.decay, options.eps = rate, weight_decay, eps
    work.step(ADAGRAD, &options)
    return work.trees()


def adagrad_norm_trees(params, grads, into, *, learning_rate, accumulator):
    """As :func:`lion_trees`, with a step of :class:`AdaGradNorm`: the tree of parameters and the accumulator."""
    cdef _Arrays work = _arrays(params, grads, (), into)
    if work is None:
        return None
    cdef double total = accumulator
    total += work.squares()
    cdef double rate = learning_rate / sqrt(total) if total > 0 else total
    work.step(DESCEND, &rate)
    return work.trees()[0], total
