"""Prompts to CLIP tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.reading import TOKENIZER
from kandinsky22.errors import BundleError, first_line


class Tokenizer:
    """CLIP's byte-level BPE with the checkpoint's own vocabulary, padded and cut to the text encoder's length."""

    def __init__(self, bundle: Bundle) -> None:
        """Load tokenizer.json of `bundle`. Raises BundleError where it is missing, altered or unreadable."""
        text = bundle.manifest.text
        assert text is not None  # as the manifest says where it has a tokenizer
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(bundle.tokenizer())
        except BundleError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise BundleError(
                f"{bundle.path / TOKENIZER} is not a tokenizer ({first_line(error)}); export the bundle again."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_length = text.max_length
        self.pad_token_id = text.pad_token_id

    def __call__(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids (n, T) and the mask (n, T) that is True on tokens and False on padding.

        A prompt of more than T tokens keeps its first T - 1 and the end token, as in diffusers; a warning names
        the words that were lost.
        """
        ids = np.full((len(prompts), self.max_length), self.pad_token_id, np.int64)
        mask = np.zeros((len(prompts), self.max_length), np.bool_)
        for row, prompt in enumerate(prompts):
            encoding = self._tokenizer.encode(prompt)
            tokens = encoding.ids
            if len(tokens) > self.max_length:
                lost = prompt[encoding.offsets[self.max_length - 1][0] :]
                warnings.warn(
                    f"The prompt has {len(tokens)} tokens, CLIP reads {self.max_length}; this part is lost: {lost!r}",
                    stacklevel=2,
                )
                tokens = [*tokens[: self.max_length - 1], tokens[-1]]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask
