"""Random arrays from a counter: the arithmetic is in _kernels/random_basis.c."""

import numpy

cimport numpy as np
from libc.stdint cimport uint64_t

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "random_basis.h":
    ctypedef struct rn_basis_recipe:
        uint64_t key[2]
        size_t size
        float scale
    ctypedef struct rn_random_basis_table:
        void (*bases)(const rn_basis_recipe *recipe, size_t start, size_t stop, float *to) nogil
        void (*combine_f32)(const rn_basis_recipe *recipe, const float *coefficients, size_t count, float *to) nogil
        void (*combine_f64)(const rn_basis_recipe *recipe, const double *coefficients, size_t count, double *to) nogil
        void (*project_f32)(const rn_basis_recipe *recipe, const float *x, size_t count, float *to) nogil
        void (*project_f64)(const rn_basis_recipe *recipe, const double *x, size_t count, double *to) nogil
    const rn_random_basis_table *rn_random_basis() nogil

MOST_COUNTERS = 1 << 62
"""A counter of the kernel has 64 bits; the reference's has 256."""


cdef rn_basis_recipe _recipe(seed, size_t size, scale) except *:
    cdef rn_basis_recipe recipe
    recipe.key[0] = int(seed) & 0xFFFFFFFFFFFFFFFF
    recipe.key[1] = int(seed) >> 64
    recipe.size = size
    recipe.scale = scale
    return recipe


def bases(seed, size_t size, scale, size_t start, size_t stop):
    """Arrays ``start`` to ``stop - 1``, as rows."""
    cdef rn_basis_recipe recipe = _recipe(seed, size, scale)
    cdef np.npy_intp shape[2]
    shape[0], shape[1] = stop - start, size
    cdef np.ndarray found = rn_empty(2, shape, np.NPY_FLOAT)
    cdef void *to = np.PyArray_DATA(found)
    with nogil:
        rn_random_basis().bases(&recipe, start, stop, <float *> to)
    return found


def combine(seed, size_t size, scale, coefficients):
    """The sum of the arrays times coefficients, a vector in their dtype; they are float32 or float64."""
    cdef rn_basis_recipe recipe = _recipe(seed, size, scale)
    cdef np.ndarray given = _in_order(_float_array(coefficients, "coefficients"))
    cdef np.npy_intp shape[1]
    shape[0] = size
    cdef np.ndarray found = rn_empty(1, shape, np.PyArray_TYPE(given))
    cdef size_t count = np.PyArray_SIZE(given)
    cdef const void *by = np.PyArray_DATA(given)
    cdef void *to = np.PyArray_DATA(found)
    cdef bint single = np.PyArray_TYPE(given) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_random_basis().combine_f32(&recipe, <const float *> by, count, <float *> to)
        else:
            rn_random_basis().combine_f64(&recipe, <const double *> by, count, <double *> to)
    return found


def project(seed, scale, cotangent, size_t count):
    """The inner products of an array with the first ``count`` random ones, in its dtype."""
    cdef np.ndarray given = _in_order(_float_array(cotangent, "cotangent"))
    cdef rn_basis_recipe recipe = _recipe(seed, np.PyArray_SIZE(given), scale)
    cdef np.npy_intp shape[1]
    shape[0] = count
    cdef np.ndarray found = rn_empty(1, shape, np.PyArray_TYPE(given))
    cdef const void *x = np.PyArray_DATA(given)
    cdef void *to = np.PyArray_DATA(found)
    cdef bint single = np.PyArray_TYPE(given) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_random_basis().project_f32(&recipe, <const float *> x, count, <float *> to)
        else:
            rn_random_basis().project_f64(&recipe, <const double *> x, count, <double *> to)
    return found
