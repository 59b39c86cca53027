"""SentencePiece `.model` files, read without the packages `sentencepiece` and `protobuf`.

A model file is one protocol-buffer message. Of its fields a tokenizer needs a dozen, so this reads the wire format
(protobuf.dev/programming-guides/encoding) and picks them by number (`sentencepiece_model.proto` of the SentencePiece
sources names them) rather than bring in a dependency for it.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from .vocabulary_file import LONGEST_PIECE, MAX_MODEL, MOST_PIECES, check_file


class PieceType(IntEnum):
    """The purpose of a piece; only `NORMAL` and `USER_DEFINED` ones are ever found in text."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """The parts of a model file on which ids depend; an id that the model does not have is -1."""

    pieces: list[tuple[str, float, PieceType]]
    is_bpe: bool
    byte_fallback: bool
    unk_id: int
    eos_id: int
    pad_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def named(self, *types: PieceType) -> list[str]:
        """Return the pieces of these types."""
        return [piece for piece, _, type_ in self.pieces if type_ in types]


_UNIGRAM, _BPE = 1, 2
_MAX_BITS = 70  # of a number, in groups of seven


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a `.model` file; ValueError if it is none, or of a kind other than unigram and BPE."""
    check_file(path, MAX_MODEL)
    try:
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(Path(path).read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), _float(piece.get(2)), PieceType(piece.get(3, PieceType.NORMAL))))
                _check_piece(*pieces[-1], number=len(pieces))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    kind = trainer.get(3, _UNIGRAM)
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise ValueError(
            f"{path}: expected a unigram (1) or BPE (2) model with pieces, got {len(pieces)} of kind {kind}."
        )
    unk_id = _signed(trainer.get(40, 0))
    if not 0 <= unk_id < len(pieces):
        raise ValueError(f"{path}: expected the id of the unknown piece to be one of {len(pieces)}, got {unk_id}.")
    return SentencePieceModel(
        pieces=pieces,
        is_bpe=kind == _BPE,
        byte_fallback=bool(trainer.get(35, False)),
        unk_id=unk_id,
        eos_id=_signed(trainer.get(42, 2)),
        pad_id=_signed(trainer.get(43, -1)),
        charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
    )


def _check_piece(text: str, score: float, _: PieceType, *, number: int) -> None:
    """Refuse what a library would crash on, or take minutes for."""
    if number > MOST_PIECES:
        raise ValueError(f"more than {MOST_PIECES:,} pieces")
    if len(text) > LONGEST_PIECE or not math.isfinite(score):
        raise ValueError(f"piece {number} has {len(text):,} characters and the score {score}")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message: an int for a varint, the raw bytes for everything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(message):
            raise ValueError(f"a field of {length} bytes ends after the end")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        if shift >= _MAX_BITS:
            raise ValueError("a number has more than ten bytes")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _float(raw: bytes | None) -> float:
    return 0.0 if raw is None else struct.unpack("<f", raw)[0]
