"""Texts as numbers: subwords, learnt from the training texts alone."""

import os
from collections import Counter
from collections.abc import Sequence

import tokenizers
import torch
from tokenizers import Regex
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
PADDING, UNKNOWN, CLASS = range(3)
_ALPHABET = 150  # characters, or as many more as it takes to know _COVERED of the text
_COVERED = 0.999
# Scripts without spaces between words (Chinese is cut by the normaliser); and what is too long for
# a word, such as DNA, of which WordPiece would learn whole texts by heart, or know nothing.
_CUTS = (
    r"[\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]",
    r"\A.{1,40}\z|.{1,4}",
)
_NORMAL = BertNormalizer(lowercase=True)

# Its threads would warn at every fork, and gain nothing on so few texts.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Lower-cased subwords (WordPiece) of a fixed length.

    A word that is no token of its own is cut, from its beginning, into the longest tokens there
    are; what continues a word begins with "##". Scripts that write no spaces are cut into
    characters, words of more than 40 characters into pieces of 4. Each text begins with "[CLS]",
    number 2; what is unknown is 1, and 0 fills up to the length. The same texts give the same
    tokenizer.

    Source: Schuster, Nakajima, Japanese and Korean voice search, 2012; Wu and 30 others, Google's
    neural machine translation system, 2016, arXiv 1609.08144.

    Args:
        texts: those to learn from.
        vocabulary: the most tokens there may be, those for padding, unknown and [CLS] included.
        length: L, tokens of each text, [CLS] included; what is longer is cut off.

    Raises:
        ValueError: a length or vocabulary out of range.
    """

    def __init__(self, texts: Sequence[str], vocabulary: int = 2000, length: int = 48) -> None:
        check_range("length", length, 4, 512)
        check_range("vocabulary", vocabulary, 400, 50_000)
        alphabet, inner = _alphabet(texts, vocabulary)
        # Numbers of its own for each character at the beginning of a word and within one: left to
        # the trainer, they would follow the order of a hash table, and ties between subwords with
        # them, so that no two runs were alike.
        first = (*SPECIAL, *(f"##{character}" for character in inner))
        learner = _pipeline({token: number for number, token in enumerate(SPECIAL)})
        trainer = WordPieceTrainer(
            vocab_size=vocabulary,
            special_tokens=list(first),
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        self.length = length
        # A fresh one from the words alone: it reads a "[PAD]" in a text as any other word.
        self._tokenizer = _pipeline(learner.get_vocab())

    @classmethod
    def of_tokens(cls, tokens: Sequence[str], length: int = 48) -> "Tokenizer":
        """The tokenizer whose ``tokens`` are these: nothing is learnt again.

        Raises:
            ValueError: a length out of range, or tokens without the three special ones in front.
        """
        check_range("length", length, 4, 512)
        if tuple(tokens[:3]) != SPECIAL or len(set(tokens)) != len(tokens):
            raise ValueError(
                f"tokens: they begin {list(tokens[:3])}, expected {list(SPECIAL)} first and no "
                "token twice"
            )
        made = cls.__new__(cls)
        made.length = length
        made._tokenizer = _pipeline({token: number for number, token in enumerate(tokens)})
        return made

    @property
    def tokens(self) -> list[str]:
        """All tokens, in the order of their numbers."""
        vocabulary = self._tokenizer.get_vocab()
        return sorted(vocabulary, key=lambda token: vocabulary[token])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token numbers int64 ``[N, L]`` of texts.

        Raises ValueError for a single string, or entries that are none.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts: expected a list of strings, got {texts!r:.60}")
        rows = torch.full((len(texts), self.length), PADDING)
        for row, encoded in zip(rows, self._tokenizer.encode_batch_fast(list(texts)), strict=True):
            ids = [CLASS, *encoded.ids][: self.length]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def decode(self, row: Tensor) -> list[str]:
        """The tokens of one row ``[L]`` of numbers, without padding."""
        if row.ndim != 1:
            raise ValueError(f"row: expected one text, [L], got {list(row.shape)}")
        tokens = (self._tokenizer.id_to_token(i) for i in row.tolist() if i != PADDING)
        return [token or SPECIAL[UNKNOWN] for token in tokens]

    def __repr__(self) -> str:
        return f"Tokenizer(vocabulary={self.vocabulary}, length={self.length})"


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError that names the argument, unless it is a whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def normal(text: str) -> str:
    """A text as it is encoded: lower-cased, without accents, with single spaces."""
    return " ".join(_NORMAL.normalize_str(text).split())


def unknown_share(rows: Tensor) -> float:
    """Which share of the tokens in rows ``[N, L]`` is unknown; 1 where there are no tokens."""
    told = int((rows != PADDING).sum()) - int((rows == CLASS).sum())
    return int((rows == UNKNOWN).sum()) / told if told else 1.0


def _alphabet(texts: Sequence[str], vocabulary: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those that may continue a word, by their numbers.

    As many as it takes to know almost all of the text, or as there is room for.
    """
    counts = Counter("".join(_NORMAL.normalize_str(text) for text in texts).replace(" ", ""))
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    known, rest = ranked[:_ALPHABET], ranked[_ALPHABET:]
    inner, wanted = list(known), _COVERED * counts.total()
    covered = sum(counts[c] for c in known)
    if rest and covered < wanted:
        continuing = _continuing(texts)
        for character in rest:
            cost = 1 + (character in continuing)
            if covered >= wanted or len(SPECIAL) + len(known) + len(inner) + cost > vocabulary:
                break
            known.append(character)
            inner += [character] * (cost - 1)
            covered += counts[character]
    return sorted(known), sorted(inner)


def _continuing(texts: Sequence[str]) -> set[str]:
    """Characters that stand elsewhere than at the beginning of a word."""
    cut = _steps()
    words = (cut.pre_tokenize_str(_NORMAL.normalize_str(text)) for text in texts)
    return {character for found in words for word, _ in found for character in word[1:]}


def _steps() -> Steps:
    cuts = [Split(Regex(pattern), "isolated") for pattern in _CUTS]
    return Steps([BertPreTokenizer(), *cuts])


def _pipeline(vocab: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(WordPiece(vocab, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = _steps()
    return tokenizer
