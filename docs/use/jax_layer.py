import jax
import jax.numpy as jnp

from refnorm import interop, softmax

cross_entropy = interop.jax_function(softmax.cross_entropy_vjp)


def loss(weight, x, target):
    # The integer target has no gradient.
    return cross_entropy(x @ weight, target, label_smoothing=0.1)


x = jax.random.normal(jax.random.key(0), (64, 8))
target = jnp.argmax(x[:, :3], axis=1)
weight = jnp.zeros((8, 3))
step = jax.jit(lambda weight: weight - 0.5 * jax.grad(loss)(weight, x, target))
for _ in range(50):
    weight = step(weight)
print(f"right: {(jnp.argmax(x @ weight, axis=1) == target).mean():.2f}")
