"""A vocabulary that a list numbers, beside the sentencepiece model that cuts text into its pieces: as Marian has it."""

import base64
import hashlib
import json

import sentencepiece

from t2t.batch import EOS, UNK
from t2t.errors import UserError


class ListedVocabulary:
    """Text to pieces by sentencepiece, pieces to ids by a list. Ids 0, 1 and 2 are padding, end and unknown.

    A piece that is not in the list is unknown. A language between angles at the beginning of a text, as >>de<<, tells a
    model of many languages what to translate into: it is one piece.
    """

    def __init__(self, listed: tuple[str, ...], sentencepiece_model: bytes, where: str) -> None:
        """`listed`: the pieces in the order of their ids; `where`: what to call it in a complaint.

        Raises:
            UserError: there is no sentencepiece model.
        """
        try:
            self._cutter = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
        except (RuntimeError, OSError):
            raise UserError(f"{where} is not a sentencepiece model") from None
        self.listed, self.sentencepiece = listed, sentencepiece_model
        self._ids = {piece: i for i, piece in enumerate(listed)}

    @classmethod
    def loads(cls, text: bytes, where: str) -> "ListedVocabulary":
        """The inverse of `model`; raises UserError for anything else."""
        try:
            found = json.loads(text)
            listed, cutter = tuple(map(str, found["pieces"])), base64.b64decode(found["sentencepiece"])
            if len(set(listed)) != len(listed) or len(listed) <= UNK:
                raise ValueError("pieces are missing, or there twice")
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where} is not a list of pieces") from None
        return cls(listed, cutter, where)

    @property
    def model(self) -> bytes:
        """All there is to it, as JSON."""
        cutter = base64.b64encode(self.sentencepiece).decode()
        return json.dumps({"pieces": self.listed, "sentencepiece": cutter}, indent=1, ensure_ascii=False).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of it."""
        return hashlib.sha256(self.model).hexdigest()

    def __len__(self) -> int:
        return len(self.listed)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, EOS at the end of each."""
        return [[*(self._ids.get(piece, UNK) for piece in self._cut(text)), EOS] for text in texts]

    def _cut(self, text: str) -> list[str]:
        end = text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0
        return [*([text[:end]] if end else []), *self._cutter.encode(text[end:], out_type=str)]

    def pieces(self, ids: list[int]) -> list[str]:
        """The pieces as text; one that begins a word begins with ▁."""
        return [self.listed[i] for i in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, up to the first EOS; what is unknown is left out."""
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        return self._cutter.decode([self.listed[i] for i in ids if i > UNK]).replace("▁", " ").strip()
