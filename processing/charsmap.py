"""SentencePiece's table of spellings, the `precompiled_charsmap` of a model, as steps of the `tokenizers` library.

SentencePiece walks through a text from the left. It replaces the longest spelling that the table knows there, or else
keeps one character. The step `Precompiled` of `tokenizers`, for the same table, replaces the *shortest* spelling of
each grapheme (a letter with the marks attached to it) and drops the rest of the grapheme: of "Á" in two characters it
keeps "A". `longest_match_normalizers` puts steps around it that lead to SentencePiece's result.
"""

import struct
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import cache

from tokenizers import Regex, normalizers
from tokenizers.normalizers import Normalizer

SEPARATOR = "\x01"  # makes every character a grapheme of its own; the table removes it, as it does control characters
BARRIER = "\ufdd0"  # keeps NFC from composing over it; Unicode guarantees that it is no character of any text
_MOST_TAILS = 32  # for each unit: a spelling has as many as it has bytes
_NOT_FIRST = r"(?!\A)"  # since `tokenizers` loses count of characters inserted before the first
_SEPARATE = normalizers.Replace(Regex(rf"{_NOT_FIRST}(?=[^\x00-\x7F])"), SEPARATOR)


def letter_normalizers(table: Mapping[str, str]) -> list[Normalizer]:
    """Return the steps that replace single letters, all in one pass; the table must remove `SEPARATOR`."""
    return [_SEPARATE, normalizers.Precompiled(build_charsmap(table))]


@cache
def longest_match_normalizers(charsmap: bytes) -> list[Normalizer]:
    r"""Return the steps that replace, from the left, the longest spelling that a table knows.

    `Precompiled` sees one character at a time, and NFC composes what belongs together: for every spelling of several
    characters, SentencePiece's tables hold what comes out of these two steps. NFC alone would go further than the table
    does, so a barrier stands wherever no known spelling goes on. With the letter "Ａ" (U+FF21) and two marks:

        "Ａ\u0301\u0323"                     of its spellings the table knows "Ａ\u0301", and nothing longer
        "Ａ\u0301\ufdd0\u0323"               a barrier where no known spelling goes on
        "Ａ\x01\u0301\x01\ufdd0\x01\u0323"   a separator before each character that is not ASCII
        "A\u0301\ufdd0\u0323"                the table, one character at a time; it removes the separators
        "Á\ufdd0\u0323"                      NFC, which without the barrier would make "Ạ\u0301" of it
        "Á\u0323"                            the barriers removed: what SentencePiece makes of it

    Raises ValueError for a damaged table.
    """
    try:
        # There is no barrier inside a spelling, so that beginnings of spellings count as known.
        beginnings = {key[:end] for key in charsmap_keys(charsmap) for end in range(2, len(key) + 1)}
        table = normalizers.Precompiled(charsmap)
    except Exception as error:  # tokenizers raises nothing more precise, and a damaged trie leads anywhere
        raise ValueError(f"The SentencePiece model's table of spellings is damaged: {error}") from error
    if not beginnings or table.normalize_str(SEPARATOR) != "":
        return [table]
    # It matches at a place where a known spelling goes on: the look-behinds see what stands before the place, the rest
    # what stands after it. For the one spelling "abc" it is (?<=a)b|(?<=ab)c, so that (?!(?<=a)b|(?<=ab)c) holds
    # everywhere but between "a" and "b", and between "ab" and "c".
    goes_on = "|".join(f"(?<={_regex_of_any(befores)}){regex_of(lasts)}" for befores, lasts in _split_last(beginnings))
    # Characters that NFC may attach to the one before: marks, and all that spellings go on with.
    attached = rf"[\p{{M}}{regex_of({beginning[-1] for beginning in beginnings})}]"
    return [
        normalizers.Replace(Regex(rf"{_NOT_FIRST}(?={attached})(?!{goes_on})"), BARRIER),
        _SEPARATE,
        table,
        normalizers.NFC(),
        normalizers.Replace(BARRIER, ""),
    ]


@cache
def charsmap_keys(charsmap: bytes) -> list[str]:
    """Return every spelling that a table replaces. The table is a trie (darts-clone) over the bytes of UTF-8."""
    (size,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    most, made = _MOST_TAILS * len(units), 0  # in a forged table nodes lead to each other, and 2**n ways to a node
    for node, unit in enumerate(units[1:], 1):
        if not _is_value(unit):
            children[node ^ _label(unit)].append((_label(unit), node))

    @cache  # branches share their tails
    def tails(node: int) -> list[bytes]:
        nonlocal made
        unit = units[node]
        base = node ^ _offset(unit)
        longer = [bytes([label]) + tail for label, child in children[base] for tail in tails(child)]
        made += len(longer)
        if made > most:
            raise ValueError("it has more spellings than places for them")
        return [b"", *longer] if _ends_a_key(unit) else longer

    return [key.decode("utf-8") for key in tails(0)]


def build_charsmap(table: Mapping[str, str]) -> bytes:
    """Return a table of spellings that replaces these letters, as the step `Precompiled` takes it."""
    texts = b"".join(text.encode() + b"\0" for text in table.values())
    starts, start = {}, 0
    for letter, text in table.items():
        starts[letter.encode()] = start
        start += len(text.encode()) + 1
    # Each beginning of a letter has 256 units of its own for its children; the values of letters come after these.
    beginnings = sorted({letter[:length] for letter in starts for length in range(len(letter))})
    bases = {beginning: 256 * number for number, beginning in enumerate(beginnings, 1)}
    units = [0] * (256 * (len(beginnings) + 1))
    units[0] = bases[b""] << 10
    for key in [*beginnings[1:], *starts]:
        node = bases[key[:-1]] ^ key[-1]
        if key in bases:
            units[node] = (node ^ bases[key]) << 10 | key[-1]
        else:
            units[node] = (node ^ len(units)) << 10 | 1 << 8 | key[-1]
            units.append(1 << 31 | starts[key])
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


# The bit fields of a unit, a 32-bit integer, as in `DoubleArrayUnit` of darts-clone's darts.h. The child of a node for
# a byte is at the index `node ^ offset ^ byte`, and has this byte as its label.
def _is_value(unit: int) -> bool:
    """Return whether a unit is the value of a key, instead of a node."""
    return bool(unit >> 31)


def _label(unit: int) -> int:
    """Return the byte that leads to a node."""
    return unit & 0xFF


def _ends_a_key(unit: int) -> bool:
    """Return whether a key ends at a node (darts-clone's `has_leaf`)."""
    return bool(unit >> 8 & 1)


def _offset(unit: int) -> int:
    """Return the distance of a node from its children: 21 bits, in units of 256 where bit 9 is set."""
    is_in_256s = unit >> 9 & 1
    return unit >> 10 << (8 if is_in_256s else 0)


def _split_last(strings: Collection[str]) -> list[tuple[frozenset[str], set[str]]]:
    """Split the last characters off, and group those that follow the same strings.

    {"ax", "bx", "ay", "by", "az"} becomes [({"a", "b"}, {"x", "y"}), ({"a"}, {"z"})]: regular expressions for these
    groups are far shorter than one that lists all strings. Sorted, so that they are the same in every process.
    """
    before_last = defaultdict(set)
    for string in sorted(strings):
        before_last[string[-1]].add(string[:-1])
    groups = defaultdict(set)
    for last, befores in before_last.items():
        groups[frozenset(befores)].add(last)
    return list(groups.items())


def _regex_of_any(strings: Collection[str]) -> str:
    """Return a regular expression for any of these strings, none of which is empty."""
    alternatives = [
        ("" if "" in befores else _regex_of_any(befores)) + regex_of(lasts) for befores, lasts in _split_last(strings)
    ]
    return f"(?:{'|'.join(alternatives)})"


def regex_of(characters: Collection[str]) -> str:
    """Return a regular expression for one of these characters."""
    return "[" + "".join(rf"\x{{{ord(character):X}}}" for character in sorted(characters)) + "]"
