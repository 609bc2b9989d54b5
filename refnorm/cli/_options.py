"""Options that several commands share."""

from typing import Annotated

import typer

from refnorm.cli._names import complete_method

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Text files in UTF-8; - is standard input.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="DIR", help="Directory of a BERT-family model. [default: all-MiniLM-L6-v2]"),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="reference, fast or fast-int8. [default: fast if installed]"),
]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="Write here instead.")]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="text or jsonl; embed also npy. [default: by PATH, or text]"),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="Threads. [default: all cores]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")]
PassageTokens = Annotated[
    int | None,
    typer.Option("--passage-tokens", metavar="N", help="Longest passage in tokens. [default: what the model takes]"),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="METHOD",
        help="Quantize the model first: affine, affine_quant, gradient_ptq, joint_codebook, layerwise_calibration, llm_int8, "
        "rep_quant or shift_uniform_log2.",
    ),
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="N", help="Bits of --quantize, 2 to 8. [default: 8 or the most]")
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text to calibrate --quantize with; may be repeated. [default: built in]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
MethodName = Annotated[
    str,
    typer.Argument(
        metavar="METHOD", help="For example norms/layer_norm, or layer_norm.", autocompletion=complete_method
    ),
]
MethodNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="METHOD", help="For example norms/layer_norm. [default: all]", autocompletion=complete_method
    ),
]
