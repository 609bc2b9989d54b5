"""Arguments that are arrays of somebody else: by ``__array__``, by DLPack, and tensors of PyTorch."""

import numpy as np
import pytest

import refnorm
import refnorm_fast
from refnorm import _checks

PACKAGES = pytest.mark.parametrize("package", [refnorm, refnorm_fast], ids=["reference", "fast"])


class OnlyDLPack:
    """Memory that can be had through DLPack and in no other way."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArray:
    """Memory that can be had through ``__array__`` and in no other way."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OnAnotherDevice(OnlyDLPack):
    def __dlpack_device__(self):
        return (2, 0)  # kDLCUDA

    def __dlpack__(self, **options):
        raise BufferError("the data is on a GPU")


def tensor(array):
    return pytest.importorskip("torch").from_numpy(array)


OWNERS = pytest.mark.parametrize("wrap", [OnlyDLPack, OnlyArray, tensor], ids=["dlpack", "array", "torch"])


@OWNERS
@PACKAGES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_foreign_arrays_give_what_numpy_arrays_give(package, wrap, dtype):
    rng = np.random.default_rng(0)
    x, gain, bias = (rng.standard_normal(shape).astype(dtype) for shape in [(3, 8), 8, 8])
    for got, expected in [
        (package.softmax.softmax(wrap(x)), package.softmax.softmax(x)),
        (package.norms.layer_norm(wrap(x), wrap(gain), wrap(bias)), package.norms.layer_norm(x, gain, bias)),
        (package.nn.linear(wrap(x), wrap(x.T)), package.nn.linear(x, x.T)),
        (package.softmax.softmax(wrap(x.T)), package.softmax.softmax(x.T)),
    ]:
        assert type(got) is np.ndarray
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)
    labels = np.array([1, 0, 7])
    value = package.softmax.cross_entropy(wrap(x), wrap(labels))
    np.testing.assert_array_equal(value, package.softmax.cross_entropy(x, labels))


@OWNERS
def test_memory_is_shared(wrap):
    x = np.ones((64, 32), np.float32)
    assert np.shares_memory(_checks.float_array(wrap(x), "x"), x)
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    ones = np.ones(32, np.float32)
    _, pullback = refnorm_fast.norms.layer_norm_vjp(wrap(x), ones, ones)
    before = pullback(np.ones_like(x))[1]
    # The kernel's pullback reads its input again: the owner's memory, if there was no copy.
    x[...] = x[:, ::-1].copy()
    np.testing.assert_allclose(pullback(np.ones_like(x))[1], before[::-1], rtol=1e-4)


@PACKAGES
def test_a_tensor_that_records_its_gradient_is_refused_by_name(package):
    x = tensor(np.ones((2, 4), np.float32)).requires_grad_()
    with pytest.raises(
        TypeError, match=r"^x: expected a tensor that records no gradient .*torch_function.*requires_grad"
    ):
        package.softmax.softmax(x)
    assert package.softmax.softmax(x.detach()).shape == (2, 4)


@PACKAGES
def test_what_numpy_cannot_read_is_refused_by_name(package):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 4)
    for hostile, said in [
        (x.bfloat16(), "BFloat16"),
        (x.to("meta"), "meta device"),
        (x.to_sparse(), "Sparse"),
        (x.half(), "dtype float16"),
    ]:
        with pytest.raises(TypeError, match=f"^x: expected .*{said}"):
            package.softmax.softmax(hostile)


@PACKAGES
def test_other_devices_and_ragged_lists_are_refused_by_name(package):
    with pytest.raises(TypeError, match=r"^x: expected an array that NumPy can read, got OnAnotherDevice \(.*GPU"):
        package.softmax.softmax(OnAnotherDevice(np.ones(3)))
    with pytest.raises(TypeError, match=r"^x: expected an array that NumPy can read, got list \(.*inhomogeneous"):
        package.softmax.softmax([[1.0], [1.0, 2.0]])
