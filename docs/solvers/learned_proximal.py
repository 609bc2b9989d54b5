"""A convex potential, its slope, which is a denoiser, and the prior that is read off from them."""

import numpy as np

from refnorm.solvers import AdamP, init_lpn, lpn_potential, lpn_prior, lpn_prox, lpn_prox_vjp, project_nonneg

NOISE, SHARPNESS, CONVEXITY = 0.7, 5.0, 0.05
NOISY = np.linspace(-3, 3, 61)[:, None]


def train(steps=500):
    """Fit the map to E[x | y] of a variable that is -1 or 1 with equal chances, seen through normal noise."""
    params, optimizer = init_lpn(1, 16, 1, rng=np.random.default_rng(0)), AdamP(learning_rate=0.01, delta=5e-324)
    state, mean = optimizer.init(params), np.tanh(NOISY / NOISE**2)
    for _ in range(steps):
        f, pullback = lpn_prox_vjp(NOISY, params, sharpness=SHARPNESS, convexity=CONVEXITY)
        params, state = optimizer.step(params, pullback((f - mean) / len(f))[1], state)
        params = project_nonneg(params)
    return params


def figure():
    r"""A potential $\psi$, the map $f=\nabla\psi$ and the function $R$ that $f$ is the proximal map of, for random weights (grey)
    and after training to denoise a variable that is $-1$ or $1$ (blue). Whatever the weights are, $\psi$ is convex, so that
    $f$ never falls, and there is an $R$. After training, $R$ says what the network has learned: the plausible values are
    near $-1$ and $1$. Between them $f$ is steeper than 1 (the dotted line), and $R$ is not convex."""
    import matplotlib.pyplot as plt

    options = {"sharpness": SHARPNESS, "convexity": CONVEXITY}
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
    y, u = np.linspace(-3, 3, 121)[:, None], np.linspace(-1.4, 1.4, 113)[:, None]
    axes[1].plot([-1, 1], [-1, 1], ":", color="black", linewidth=1)
    random = init_lpn(1, 16, 1, rng=np.random.default_rng(5))
    for params, colour, style in ((random, "#8a8a8a", "--"), (train(), "#1f77b4", "-")):
        potential, prior = lpn_potential(y, params, **options), lpn_prior(u, params, **options)
        axes[0].plot(y, potential - potential.min(), style, color=colour)
        axes[1].plot(y, lpn_prox(y, params, **options), style, color=colour)
        axes[2].plot(u, prior - prior.min(), style, color=colour)
    axes[0].set(xlabel="$y$", ylabel=r"$\psi(y)$, shifted to 0")
    axes[1].set(xlabel="$y$", ylabel="$f(y)$", ylim=(-1.3, 1.3))
    axes[2].set(xlabel="$u$", ylabel="$R(u)$, shifted to 0", xticks=[-1, 0, 1], ylim=(-0.05, 1))
    return fig
