"""Truth for multi-head attention: PyTorch's own layer in float64."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance


def layer(x, weight_in, bias_in, weight_out, bias_out, heads, key_padding, causal):
    """PyTorch's implementation, which keeps its weights (out, in) and takes True for what is masked."""
    length = x.shape[1]
    y, _ = torch.nn.functional.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3,
        embed_dim_to_check=x.shape[2],
        num_heads=heads,
        in_proj_weight=weight_in.T,
        in_proj_bias=bias_in,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=weight_out.T,
        out_proj_bias=bias_out,
        key_padding_mask=key_padding,
        attn_mask=torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if causal else None,
        need_weights=False,
    )
    return y.transpose(0, 1)


def cases():
    rng = np.random.default_rng(20170613)
    found = []
    for dtype, limit in ((np.float64, 1e-13), (np.float32, 4e-6)):
        for (sequences, length, width), heads, lengths, causal in (
            ((2, 5, 6), 3, None, False),
            ((3, 4, 8), 2, (4, 1, 3), False),
            ((1, 6, 4), 1, None, True),
        ):
            shapes = ((sequences, length, width), (width, 3 * width), (3 * width,), (width, width), (width,))
            arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
            tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
            valid = np.arange(length) < np.array(lengths or [length] * sequences)[:, None]
            value = layer(*tensors, heads, None if lengths is None else torch.tensor(~valid), causal)
            # Rows behind a sequence's end: PyTorch lets padding attend; here they give the bias.
            inside = torch.tensor(valid)[..., None]
            value = torch.where(inside, value, tensors[4])
            cotangent = rng.standard_normal(value.shape).astype(dtype)
            value.backward(torch.tensor(cotangent.astype(np.float64)))
            options = {"heads": heads} | ({"causal": True} if causal else {})
            if lengths is not None:
                options["lengths"] = np.array(lengths)
            common = {
                "function": "attention.multi_head_attention",
                "name": f"{np.dtype(dtype)}, {shapes[0]}, {', '.join(options)}",
                "args": tuple(arrays),
                "options": options,
                "tolerance": Tolerance(limit, "relative_of_largest"),
                "source": f"torch {torch.__version__.split('+')[0]}, float64",
            }
            found.append(GoldenCase(**common, expected=value.detach().numpy()))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found
