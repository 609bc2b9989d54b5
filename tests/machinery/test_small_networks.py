import numpy as np
from small_data import digits, gaussian_classes
from small_networks import accuracy, batches, mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.gradcheck import check_vjp


def test_gradients_of_the_small_network():
    rng = np.random.default_rng(0)
    params = mlp_init(rng, (4, 5, 3))
    check_vjp(mlp_vjp, params, rng.standard_normal((6, 4)), step=1e-4)


def test_a_small_network_learns_the_digits():
    data, rng = digits(), np.random.default_rng(0)
    params = mlp_init(rng, (64, 32, 10))
    for batch in batches(rng, len(data.x), 50, 5):
        _, grads = mlp_loss_and_grads(params, data.x[batch], data.target[batch])
        params = [(w - 0.2 * dw, b - 0.2 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]
    assert accuracy(mlp_vjp(params, data.x_test)[0], data.target_test) > 0.9


def test_digits_are_split_without_overlap():
    data = digits(test=100, images=True)
    assert data.x.shape == (1697, 1, 8, 8)
    assert data.x_test.shape == (100, 1, 8, 8)
    assert data.x.max() == 1.0
    x, target = gaussian_classes(np.random.default_rng(0), 50)
    assert x.shape == (50, 2)
    assert set(target) <= {0, 1, 2}
