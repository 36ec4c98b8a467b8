"""The tokenizer: byte pair encoding in CLIP's layout, trained on captions."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

LENGTH = 32
"""Maximum number of tokens of a sentence, start and end included."""

_END_OF_WORD = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
# CLIP's pattern: contractions, runs of letters, single digits, runs of other characters.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(sentences: Iterable[str], folder: Path) -> None:
    """Trains byte pairs on sentences and writes a CLIPTokenizer, which encodes unknown words as bytes."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    pairs.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=2000, initial_alphabet=letters, end_of_word_suffix=_END_OF_WORD, show_progress=False
        ),
    )
    merges = [tuple(merge) for merge in json.loads(pairs.to_str())["model"]["merges"]]
    # CLIP's order: bytes, bytes at a word's end, merged tokens, start and end.
    entries = [*letters, *(letter + _END_OF_WORD for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys([*entries, *_SPECIAL]))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=_SPECIAL[1])
    tokenizer.save_pretrained(folder)


def carried_rows(old: Any, new: Any) -> dict[int, list[int]]:
    """For each token of the tokenizer `new`, the tokens of its text under `old`."""
    rows = {}
    known = old.get_vocab()
    for entry, number in new.get_vocab().items():
        if entry in known:
            rows[number] = [known[entry]]
            continue
        text = entry.removesuffix(_END_OF_WORD)
        rows[number] = old(text, add_special_tokens=False).input_ids or [old.unk_token_id]
    return rows
