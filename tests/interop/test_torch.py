import subprocess
import sys

import numpy as np
import pytest
from interop_cases import CASES

import refnorm_fast
from refnorm import interop, norms, softmax
from refnorm.tree import tree_leaves, tree_map

torch = pytest.importorskip("torch")


def as_tensor(leaf):
    if not isinstance(leaf, np.ndarray):
        return leaf
    made = torch.tensor(leaf)
    return made.requires_grad_() if made.is_floating_point() else made


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right(name):
    f_vjp, args, options = CASES[name]
    function = interop.torch_function(f_vjp)
    tensors = tree_map(as_tensor, args)
    assert torch.autograd.gradcheck(lambda *at: function(*at, **options), tensors)
    expected = [leaf for _, leaf in tree_leaves(f_vjp(*args, **options)[0])]
    got = function(*tensors, **options)
    for one, other in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other)
    assert function.__name__ == f_vjp.__name__.removesuffix("_vjp")


def affine_vjp(params, x, codes):
    def pullback(cotangents):
        dy, _ = cotangents["y"], cotangents["codes"]
        return {"weight": x.T @ dy, "bias": [dy.sum(axis=0), None]}, dy @ params["weight"].T

    return {"y": x @ params["weight"] + params["bias"][0], "codes": codes + 1, "note": "kept"}, pullback


def test_trees_of_tensors_in_and_out():
    weight, bias, x = (torch.randn(shape, requires_grad=True) for shape in [(3, 2), (2,), (4, 3)])
    value = interop.torch_function(affine_vjp)({"weight": weight, "bias": [bias, None]}, x, torch.tensor([1, 2]))
    assert value["note"] == "kept"
    assert value["codes"].tolist() == [2, 3]
    assert not value["codes"].requires_grad
    value["y"].square().sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().T @ (2 * value["y"].detach()))
    torch.testing.assert_close(bias.grad, 2 * value["y"].detach().sum(dim=0))


def test_one_unused_value_has_the_cotangent_zero():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    mean, _ = interop.torch_function(norms.batch_statistics_vjp)(x)
    mean.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))


def test_a_layer_of_kernels_trains_as_pytorchs_own_does():
    rng = torch.Generator().manual_seed(0)
    x, gain, bias = (torch.randn(shape, generator=rng) for shape in [(8, 32), (32,), (32,)])
    layer_norm = interop.torch_function(refnorm_fast.norms.layer_norm_vjp)
    got = [t.clone().requires_grad_() for t in (x, gain, bias)]
    expected = [t.clone().requires_grad_() for t in (x, gain, bias)]
    layer_norm(*got).cos().sum().backward()
    torch.nn.functional.layer_norm(expected[0], (32,), *expected[1:]).cos().sum().backward()
    for one, other in zip(got, expected, strict=True):
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_tensors_are_not_copied():
    seen = {}

    def twice_vjp(x):
        seen["x"], seen["y"] = x, 2 * x
        return seen["y"], lambda dy: (2 * dy,)

    x = torch.ones(5)
    y = interop.torch_function(twice_vjp)(x)
    assert np.shares_memory(seen["x"], x.numpy())
    assert np.shares_memory(seen["y"], y.numpy())


@pytest.mark.parametrize("changed", ["x", "y"])
def test_a_change_in_place_before_the_backward_pass_is_an_error(changed):
    x = torch.randn(3, 4, requires_grad=True) * 1
    y = interop.torch_function(softmax.softmax_vjp)(x)
    loss = (y * torch.ones_like(y)).sum()
    {"x": x, "y": y}[changed].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_results_own_their_memory():
    """What a pullback hands back twice, or hands through, must not tie gradients to each other."""
    identity = interop.torch_function(lambda a, b: (np.broadcast_to(a, (2, 3)), lambda dy: (dy[::-1], dy[::-1])))
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    y = identity(a, b)
    y.detach().add_(1)
    assert a.detach().eq(1).all()
    torch.autograd.grad(identity(a, b).sum(), (a, b))
    identity(a, b).sum().backward()
    a.grad.zero_()
    assert b.grad.eq(1).all()


def test_what_is_handed_through_is_copied():
    through = interop.torch_function(lambda a, b: (a, lambda dy: (dy, dy)))
    a, b, cotangent = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True), torch.ones(3)
    y = through(a, b)
    assert not np.shares_memory(y.detach().numpy(), a.detach().numpy())
    y.backward(cotangent)
    memory = [tensor.numpy() for tensor in (a.grad, b.grad, cotangent)]
    assert not any(np.shares_memory(memory[i], memory[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_there_is_no_second_derivative():
    x = torch.randn(3, requires_grad=True)
    first_entry = interop.torch_function(softmax.softmax_vjp)(x)[0]
    with pytest.raises(RuntimeError, match="softmax_vjp: expected a first derivative, got create_graph=True"):
        torch.autograd.grad(first_entry, x, create_graph=True)


def test_errors_name_the_argument():
    layer_norm = interop.torch_function(norms.layer_norm_vjp)
    with pytest.raises(TypeError, match="^gain: expected an array that NumPy can read, got Tensor .*meta"):
        layer_norm(torch.ones(2, 3), torch.ones(3, device="meta"), torch.ones(3))
    with pytest.raises(ValueError, match=r"^gain: expected shape \(3,\), got \(4,\)"):
        layer_norm(torch.ones(2, 3), torch.ones(4), torch.ones(3))
    wrong = interop.torch_function(lambda a, b: (a + b, lambda dy: (dy,)))
    with pytest.raises(ValueError, match="expected one cotangent for each of 2 float arguments .*, got 1"):
        wrong(torch.ones(2, requires_grad=True), torch.ones(2)).sum().backward()


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_framework_that_is_absent_is_named(name):
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from refnorm import interop, norms\n"
        f"try:\n    interop.{name}_function(norms.layer_norm_vjp)\n"
        "except ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{name}: not installed; pip install {name}\n"
