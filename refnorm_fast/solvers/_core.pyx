"""Optimizer updates of one array: checks and layout; the arithmetic is in _kernels/optimizer.c."""

import numpy

cimport numpy as np
from libc.math cimport isfinite, sqrt

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "optimizer.h":
    int RN_MUL_ADD, RN_LERP, RN_ADAM, RN_ADAM_NESTEROV, RN_SGD, RN_SGD_NESTEROV
    ctypedef struct rn_projected_step:
        int kind
        int project_buffer
        double keep1, take1, keep2, take2, inv_root, eps, rate, shrink, shrink_projected, delta
    ctypedef struct rn_optimizer_table:
        void (*lion_f32)(const float *, const float *, const float *, float *, float *, size_t, double, double, double, double, int) nogil
        void (*lion_f64)(const double *, const double *, const double *, double *, double *, size_t, double, double, double, double, int) nogil
        int (*projected_step_f32)(const float *, const float *, const float *, const float *, float *, float *, float *, size_t, size_t, const rn_projected_step *) nogil
        int (*projected_step_f64)(const double *, const double *, const double *, const double *, double *, double *, double *, size_t, size_t, const rn_projected_step *) nogil
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
    cdef double rate = learning_rate, keep1 = beta1, keep2 = beta2, decay = weight_decay
    _check_positive(rate, "learning_rate")
    if not 0 <= keep1 <= 1:
        _checks.in_range(beta1, "beta1", 0.0, 1.0)
    if not 0 <= keep2 <= 1:
        _checks.in_range(beta2, "beta2", 0.0, 1.0)
    _check_non_negative(decay, "weight_decay")
    if form != "mul_add":
        _checks.one_of(form, "form", ("mul_add", "lerp"))
    cdef int code = RN_MUL_ADD if form == "mul_add" else RN_LERP
    cdef list targets = _results(out, [p, g, m], 2)
    cdef void *p_out = np.PyArray_DATA(<np.ndarray> targets[0])
    cdef void *m_out = np.PyArray_DATA(<np.ndarray> targets[1])
    cdef void *p_in = np.PyArray_DATA(p)
    cdef void *g_in = np.PyArray_DATA(g)
    cdef void *m_in = np.PyArray_DATA(m)
    cdef size_t count = np.PyArray_SIZE(p)
    cdef double shrink = 1 - rate * decay
    cdef bint single = np.PyArray_TYPE(p) == np.NPY_FLOAT
    if count:
        with nogil:
            if single:
                rn_optimizer().lion_f32(<const float *> p_in, <const float *> g_in, <const float *> m_in, <float *> p_out,
                                        <float *> m_out, count, shrink, rate, keep1, keep2, code)
            else:
                rn_optimizer().lion_f64(<const double *> p_in, <const double *> g_in, <const double *> m_in, <double *> p_out,
                                        <double *> m_out, count, shrink, rate, keep1, keep2, code)
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


cdef _projected_step(list inputs, list targets, rn_projected_step options):
    cdef np.ndarray p = <np.ndarray> inputs[0]
    cdef void *p_in = np.PyArray_DATA(p)
    cdef void *g_in = np.PyArray_DATA(<np.ndarray> inputs[1])
    cdef void *m_in = np.PyArray_DATA(<np.ndarray> inputs[2])
    cdef void *v_in = np.PyArray_DATA(<np.ndarray> inputs[3]) if len(inputs) > 3 else NULL
    cdef void *p_out = np.PyArray_DATA(<np.ndarray> targets[0])
    cdef void *m_out = np.PyArray_DATA(<np.ndarray> targets[1])
    cdef void *v_out = np.PyArray_DATA(<np.ndarray> targets[2]) if len(targets) > 2 else NULL
    cdef size_t count = np.PyArray_SIZE(p), rows = 0
    cdef size_t columns = count
    cdef int failed = 0
    cdef bint single = np.PyArray_TYPE(p) == np.NPY_FLOAT
    if count == 0:
        return
    if np.PyArray_NDIM(p) > 1:
        rows = np.PyArray_DIM(p, 0)
        columns = count // rows
    with nogil:
        if single:
            failed = rn_optimizer().projected_step_f32(<const float *> p_in, <const float *> g_in, <const float *> m_in,
                                                       <const float *> v_in, <float *> p_out, <float *> m_out,
                                                       <float *> v_out, rows, columns, &options)
        else:
            failed = rn_optimizer().projected_step_f64(<const double *> p_in, <const double *> g_in, <const double *> m_in,
                                                       <const double *> v_in, <double *> p_out, <double *> m_out,
                                                       <double *> v_out, rows, columns, &options)
    if failed:
        raise MemoryError


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
    cdef list targets = _results(out, inputs, 3)
    _projected_step(inputs, targets, options)
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
    cdef list targets = _results(out, inputs, 2)
    _projected_step(inputs, targets, options)
    return _deliver(out, targets)
