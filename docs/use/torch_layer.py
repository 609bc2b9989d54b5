import torch

import refnorm_fast
from refnorm import interop, poincare

layer_norm = interop.torch_function(refnorm_fast.norms.layer_norm_vjp)
hyperbolic = interop.torch_function(poincare.fully_connected_vjp)

torch.manual_seed(0)
gain, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
weight, shift = torch.randn(8, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
optimizer = torch.optim.Adam([gain, bias, weight, shift], lr=0.05)

x = torch.randn(64, 8)
target = 0.5 * torch.tanh(x[:, :2])
for _ in range(100):
    inside = 0.1 * layer_norm(x, gain, bias, eps=1e-6)  # options by keyword
    loss = (hyperbolic(inside, weight, shift, 1.0) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}")
