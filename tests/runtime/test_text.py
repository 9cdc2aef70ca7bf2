"""The tokenizer against transformers' CLIPTokenizer on the same files."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.conditioning.tokenizer import Tokenizer

TEXTS = [
    "",
    "a red circle",
    "A  Red   CIRCLE, on a blue background!!",
    "naïve café — 日本語 🎨 'quoted' \"double\" it's we're",
    "word " * 75,
    "word " * 76,
    "a large red circle in the middle of a blue background, " * 15,
    "\n\ttabs and\nnewlines\r\n",
]


@pytest.fixture
def tokenizer(shapes_bundle: Path) -> Tokenizer:
    return Tokenizer(Bundle(shapes_bundle))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_mask_equal_transformers(tokenizer: Tokenizer, shapes_checkpoint: Path, text: str) -> None:
    theirs = CLIPTokenizer.from_pretrained(shapes_checkpoint / "prior" / "tokenizer")
    expected = theirs([text], padding="max_length", max_length=theirs.model_max_length, truncation=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ids, mask = tokenizer([text])
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, np.array(expected["attention_mask"], bool))


def test_several_texts_are_rows(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(["a red circle", ""])
    for row, text in enumerate(["a red circle", ""]):
        alone_ids, alone_mask = tokenizer([text])
        np.testing.assert_array_equal(ids[row], alone_ids[0])
        np.testing.assert_array_equal(mask[row], alone_mask[0])
    assert mask[0].sum() > mask[1].sum() == 2  # the begin and end tokens


def test_the_warning_names_exactly_the_lost_words(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match=r"this part is lost: 'left top'"):
        tokenizer(["red " * 75 + "left top"])


def test_a_tokenizer_that_is_none_is_refused(shapes_bundle: Path, tmp_path: Path) -> None:
    from kandinsky22 import BundleError

    broken = tmp_path / "broken"
    shutil.copytree(shapes_bundle, broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json has 2 bytes"):
        Tokenizer(Bundle(broken))
