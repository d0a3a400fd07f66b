"""A sentencepiece vocabulary: trained by byte-pair encoding, or given as a file; and what both sides of a task use."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from t2t.batch import EOS, PAD, UNK
from t2t.data.linearisation import TreeVocabulary
from t2t.data.listed import ListedVocabulary
from t2t.data.task import Pair
from t2t.errors import UserError

SHARED, SOURCE, TARGET = "shared.model", "source.model", "target.json"
LISTED = ("source.pieces.json", "target.pieces.json")


class Vocabulary:
    """Text to pieces and back. Ids 0, 1 and 2 are padding, end of sentence and unknown."""

    def __init__(self, model: bytes, where: str) -> None:
        """Loads a serialised sentencepiece model.

        Raises:
            UserError: `model` is none, or numbers padding, end and unknown otherwise than t2t does.
        """
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError):
            raise UserError(f"{where} is not a sentencepiece model") from None
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (PAD, EOS, UNK):
            wanted = f"--pad_id={PAD} --eos_id={EOS} --unk_id={UNK}"
            raise UserError(f"{where} has pad, eos, unk = {ids}; t2t needs a model trained with {wanted}")
        self.model = model

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """The vocabulary in the file `path`.

        Raises:
            UserError: it cannot be read, or is no model that t2t can use.
        """
        return cls(_read(path), str(path))

    @classmethod
    def train(cls, words: Mapping[str, int], size: int) -> "Vocabulary":
        """Byte-pair encoding into exactly `size` pieces, the three special ones included.

        `words`: how often each occurs, which is all that byte-pair encoding needs to know of a text. Text is kept as it
        is, but for spaces: runs of them become one, outer ones go. The rarest characters, one in a million of the text
        together, have no piece.

        Raises:
            UserError: the words support no vocabulary of that size.
        """
        if not any(words):
            raise UserError("no text to make a vocabulary from")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word}\t{count}" for word, count in words.items() if word),
                input_format="tsv",
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1 - 1e-6,
                normalization_rule_name="identity",
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNK,
                bos_id=-1,
                max_sentence_length=1 << 20,  # bytes; the default leaves out longer words without a word
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _wrong_size(size, str(error)) from None
        vocabulary = cls(model.getvalue(), "the trained vocabulary")
        if len(vocabulary) != size:
            raise _wrong_size(size, f"a value <= {len(vocabulary)}")
        return vocabulary

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    @property
    def sentencepiece(self) -> bytes:
        """The sentencepiece model that cuts text into pieces."""
        return self.model

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, EOS at the end of each."""
        return self._pieces.encode(texts, out_type=int, add_eos=True)

    def pieces(self, ids: list[int]) -> list[str]:
        """The pieces as text; one that begins a word begins with ▁."""
        return [self._pieces.id_to_piece(i) for i in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, up to the first EOS."""
        return self._pieces.decode(ids[: ids.index(EOS)] if EOS in ids else ids)


def count_words(texts: Iterable[str], words: Counter[str]) -> Counter[str]:
    """Adds the words of `texts` to `words`: what stands between spaces, or tabs."""
    for text in texts:
        words.update(text.replace("\t", " ").split(" "))
    return words


class Vocabularies(NamedTuple):
    """What sources and targets are made of: one vocabulary for both, words for sources and trees for targets, or lists.

    Two lists may number the same pieces and differ in what cuts text into them.
    """

    source: Vocabulary | ListedVocabulary
    target: Vocabulary | ListedVocabulary | TreeVocabulary

    def files(self) -> dict[str, bytes]:
        """What to keep of them, by file name."""
        if self.shared:
            return {SHARED: self.source.model}
        if isinstance(self.source, ListedVocabulary):
            return dict(zip(LISTED, (self.source.model, self.target.model), strict=True))
        return {SOURCE: self.source.model, TARGET: self.target.model}

    @classmethod
    def load(cls, folder: Path) -> "Vocabularies":
        """What `files` said, from a folder.

        Raises:
            UserError: files are missing or damaged.
        """
        if any((folder / name).exists() for name in LISTED):
            return cls(*(ListedVocabulary.loads(_read(folder / name), str(folder / name)) for name in LISTED))
        if not any((folder / name).exists() for name in (SOURCE, TARGET)):
            shared = Vocabulary.load(folder / SHARED)
            return cls(shared, shared)
        path = folder / TARGET
        return cls(Vocabulary.load(folder / SOURCE), TreeVocabulary.loads(_read(path), str(path)))

    @property
    def shared(self) -> bool:
        """Whether both sides have the same."""
        return self.source is self.target

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what weights depend on."""
        if self.shared:
            return self.source.fingerprint
        return hashlib.sha256(f"{self.source.fingerprint} {self.target.fingerprint}".encode()).hexdigest()

    def encode(self, pairs: list[Pair], has_sources: bool = True) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of sources and of targets, EOS at the end of each; without sources, none for any of them."""
        sources = self.source.encode([pair.source for pair in pairs]) if has_sources else [[] for _ in pairs]
        return sources, self.target.encode([pair.target for pair in pairs])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no vocabulary file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the vocabulary file {path}: {error.strerror}") from None


def _wrong_size(size: int, complaint: str) -> UserError:
    if least := re.search(r"required_chars\. \d+ vs (\d+)", complaint):
        return UserError(f"--model.vocab_size {size} is too few for the characters: at least {least[1]}")
    if most := re.search(r"<= (\d+)", complaint):
        return UserError(f"--model.vocab_size {size} is more than the corpus supports: at most {most[1]}")
    return UserError(f"no vocabulary of --model.vocab_size {size} can be made: {complaint.strip().splitlines()[-1]}")
