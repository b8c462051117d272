"""Builds `tokenizer.json`: frequent words and digit runs are one token each, all else is bytes.

Every run of up to three digits is one token, which never merges with its surroundings; a word keeps
the blank before it and, in front of a digit, the blank after it, which keeps traces short.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 2304
LEAST_COUNT = 3
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


def _frequent(corpus: Iterable[str], spelled: Collection[str]) -> list[str]:
    """Returns the pieces of the corpus without digits, the most frequent first.

    Words that are to be `spelled` are left out, so that they are read and written letter by letter.
    """
    split, counts = _pre_tokenizer(), Counter[str]()
    for text in corpus:
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    blank = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(" ")[0][0]
    return [
        piece
        for piece, count in counts.most_common()
        if count >= LEAST_COUNT
        and len(piece) > 1
        and not any(c.isdigit() for c in piece)
        and piece.strip(blank).rstrip("(").lower() not in spelled
    ]


def build_tokenizer(corpus: Iterable[str], spelled: Collection[str] = ()) -> Tokenizer:
    """Returns the tokenizer; ids: special tokens, bytes, digit runs, whole words.

    There are no parts of words: a word is one token or it is spelled.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIAL_TOKENS, *alphabet, *(run for run in DIGIT_RUNS if len(run) > 1)]
    entries += _frequent(corpus, spelled)[: VOCAB_SIZE - len(entries)]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    # With `ignore_merges` a piece that is in the vocabulary is one token without any merges.
    model = models.BPE(vocab=vocabulary, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
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
