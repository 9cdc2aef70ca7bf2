"""A CLIP tokenizer with the published one's files and special tokens; its merges are learned from the captions."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from recipe import captions, drawing

MERGES = 220
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def build(out: Path, seed: int) -> CLIPTokenizer:
    """Learn merges from captions of trained scenes and save vocab.json, merges.txt and the rest to `out`.

    As in CLIP the vocabulary is all bytes, all bytes that end a word, the merges, and two special tokens, so that any
    text has tokens.
    """
    merges = _learn_merges(seed)
    letters = list(bytes_to_unicode().values())
    words = letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in merges],
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=77,
    )
    tokenizer.save_pretrained(out)
    # The published repositories ship these two; transformers 5 writes tokenizer.json alone.
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def _learn_merges(seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    scenes = rng.choices(drawing.TRAINED_SCENES.tolist(), k=20_000)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Lowercase()
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=20, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    tokenizer.train_from_iterator((captions.caption(tuple(scene), rng) for scene in scenes), trainer)
    return json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
