"""Builds `tokenizer.json`: byte-level BPE in which every run of up to three digits is one token.

A digit run never merges with its surroundings; a word keeps the blank before it and, in front of a
digit, the blank after it, which keeps traces short.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
IMAGE, CALL, RUN = "<|image|>", "<|call|>", "<|run|>"
RESULT, END_RESULT, ANSWER = "<|result|>", "<|end_result|>", "<|answer|>"
NAMED = (
    PAD,
    BEGIN,
    END,
    USER,
    ASSISTANT,
    SYSTEM,
    IMAGE,
    CALL,
    RUN,
    RESULT,
    END_RESULT,
    ANSWER,
)
SPECIAL_TOKENS = NAMED + tuple(f"<|reserved_{i}|>" for i in range(20))
PIECES = r"\d{1,3}| ?\p{L}+(?:\(| (?=\d))?|[^\s\p{L}\d]+ ?|\s+"
DIGIT_RUNS = tuple(f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width))


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _learn_merges(corpus: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Returns at most `count` merges learned from the corpus, none of which touches a digit."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 4 * count,
        initial_alphabet=alphabet,
        show_progress=False,
        min_frequency=2,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = _merges_of(learner)
    return [pair for pair in merges if not any(c.isdigit() for c in "".join(pair))][:count]


def _merges_of(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for pair in json.loads(tokenizer.to_str())["model"]["merges"]:
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        yield left, right


def build_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer; ids: special tokens, bytes, digit runs, learned merges, reserve."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIAL_TOKENS, *alphabet, *(run for run in DIGIT_RUNS if len(run) > 1)]
    # Both ways to split three digits, so that any order of merging ends in the one token.
    digit_merges = [(run[:1], run[1:]) for run in DIGIT_RUNS if len(run) > 1]
    digit_merges += [(run[:2], run[2:]) for run in DIGIT_RUNS if len(run) > 2]
    learned = []
    for left, right in _learn_merges(corpus, VOCAB_SIZE - len(entries)):
        if left + right not in entries:
            entries.append(left + right)
        learned.append((left, right))
    vocabulary = {entry: i for i, entry in enumerate(entries[:VOCAB_SIZE])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=digit_merges + learned))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    # Text is text: the word "<|end|>" in a question must not end anything.
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer that treats special tokens in text as plain text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer
