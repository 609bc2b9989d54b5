/* Results for Cython modules. Include after `cimport numpy` and np.import_array(). */
#ifndef REFNORM_ARRAY_H
#define REFNORM_ARRAY_H

#include <Python.h>
#include <numpy/arrayobject.h>

#include "dispatch.h"

/* Results from here up come from the block store. */
#define RN_LARGE_RESULT ((size_t)1 << 20)

static void *rn_handler_malloc(void *context, size_t bytes) {
    (void)context;
    return rn_block_alloc(bytes);
}
static void *rn_handler_calloc(void *context, size_t count, size_t each) {
    (void)context;
    if (each != 0 && count > (size_t)-1 / each) return NULL;
    void *block = rn_block_alloc(count * each);
    if (block != NULL) memset(block, 0, count * each);
    return block;
}
static void *rn_handler_realloc(void *context, void *block, size_t bytes) {
    (void)context;
    return rn_block_realloc(block, bytes);
}
static void rn_handler_free(void *context, void *block, size_t bytes) {
    (void)context, (void)bytes;
    rn_block_free(block);
}
static PyDataMem_Handler rn_handler = {
    "refnorm_fast_blocks", 1, {NULL, rn_handler_malloc, rn_handler_calloc, rn_handler_realloc, rn_handler_free}};

/* A C-contiguous array with undefined contents, which owns its data. */
static inline PyObject *rn_empty(int ndim, npy_intp *shape, int type) {
    size_t bytes = type == NPY_DOUBLE ? sizeof(double) : sizeof(float);
    for (int i = 0; i < ndim; i++) bytes *= (size_t)shape[i];
    if (bytes < RN_LARGE_RESULT) return PyArray_SimpleNew(ndim, shape, type);
    PyObject *capsule = PyCapsule_New(&rn_handler, "mem_handler", NULL);
    if (capsule == NULL) return NULL;
    PyObject *before = PyDataMem_SetHandler(capsule);
    Py_DECREF(capsule);
    if (before == NULL) return NULL;
    PyObject *array = PyArray_SimpleNew(ndim, shape, type);
    PyObject *ours = PyDataMem_SetHandler(before);
    Py_DECREF(before);
    Py_XDECREF(ours);
    return array;
}

#endif
