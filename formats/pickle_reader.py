"""The pickles in PyTorch's files, read by an interpreter of the few instructions that these have.

Python's own unpicklers trust their input: a few bytes with a length allocate gigabytes, a nested tuple as a key is
hashed for ever, and a dict may be copied a million times. Here a length is compared with what is left of the file, a
key is a str or a small int, and whatever is called is one of the caller's functions.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from struct import Struct
from typing import Any

from ..messages import shown

_MAX_INSTRUCTIONS = 2_000_000  # a checkpoint of a training with 10,000 tensors has half a million
_MAX_KEY = 1000  # characters of a name in a dict
_MAX_NUMBER = 1 << 32  # as a key
_MAX_GLOBAL = 1000  # bytes of the name of a class
_STOP = ord(".")
_BYTE, _SHORT, _INT, _UNSIGNED, _LONG, _FLOAT = map(Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))

Data = bytearray | mmap.mmap


class PickleReader(ABC):
    """Reads pickles that follow each other in `data`."""

    def __init__(self, data: Data) -> None:
        self.position = 0
        self._data = data

    @abstractmethod
    def find_global(self, module: str, name: str) -> object:
        """Return what stands for a name that the file asks for, often a function. Raises FormatError for others."""

    @abstractmethod
    def load_storage(self, place: object) -> object:
        """Return what stands for a storage of PyTorch, which is described by a tuple. Raises FormatError for others."""

    def read(self) -> Any:
        """Return the object of the next pickle. Raises any exception where it is damaged."""
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._data[self.position]
            self.position += 1
            if code == _STOP:
                return self._stack.pop()
            if code not in _INSTRUCTIONS:
                raise ValueError(f"its pickle has the instruction {code:#x}, which no checkpoint needs.")
            _INSTRUCTIONS[code](self)
        raise ValueError(f"its pickle has more than {_MAX_INSTRUCTIONS:,} instructions, expected a state dict.")

    def _bytes(self, length: int) -> bytes:
        start = self.position
        if length > len(self._data) - start:
            raise ValueError(f"its pickle promises {length:,} bytes where {len(self._data) - start:,} are left.")
        self.position = start + length
        return bytes(self._data[start : self.position])

    def _number(self, kind: Struct) -> Any:
        (number,) = kind.unpack_from(self._data, self.position)
        self.position += kind.size
        return number

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _text(self, length: Struct) -> None:
        self._push(self._bytes(self._number(length)).decode("utf-8", "surrogatepass"))

    def _long(self) -> None:
        self._push(int.from_bytes(self._bytes(self._number(_BYTE)), "little", signed=True))

    def _line(self) -> str:
        line = bytes(self._data[self.position : self.position + _MAX_GLOBAL]).partition(b"\n")[0]
        self.position += len(line) + 1
        return line.decode()

    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._push(self.find_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle names a class without text.")
        self._push(self.find_global(module, name))

    def _storage(self) -> None:
        self._push(self.load_storage(self._stack.pop()))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise ValueError("its pickle calls something that is no function.")
        self._push(function(*arguments))

    def _set_state(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is not dict:  # an ordered dict may have attributes, of which nothing is needed
            target.set_state(state)

    def _tuple(self, length: int) -> None:
        items = tuple(self._stack[len(self._stack) - length :])
        if len(items) < length:
            raise ValueError("its pickle makes a tuple of nothing.")
        del self._stack[len(self._stack) - length :]
        self._push(items)

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("its pickle appends to what is no list.")
        self._stack[-1] += items

    def _set_items(self, items: list[Any]) -> None:
        target, keys = self._stack[-1], items[::2]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("its pickle sets items of what is no dict.")
        for key in keys:
            if type(key) is str:
                if len(key) > _MAX_KEY:
                    raise ValueError(
                        f"the name {shown(key)} has {len(key):,} characters, expected at most {_MAX_KEY:,}."
                    )
            elif type(key) is not int or not -_MAX_NUMBER <= key <= _MAX_NUMBER:  # larger ones can have one hash
                raise ValueError(f"a key of a dict is a {type(key).__name__}, expected a name or a small number.")
        target.update(zip(keys, items[1::2], strict=True))


# By their codes, the letters that `pickletools.dis` shows.
_INSTRUCTIONS: dict[int, Callable[[PickleReader], object]] = {
    ord(code): run
    for code, run in {
        "\x80": lambda pickle: pickle._number(_BYTE),  # the version of the protocol
        "\x95": lambda pickle: pickle._number(_LONG),  # the length of what follows
        "N": lambda pickle: pickle._push(None),
        "\x88": lambda pickle: pickle._push(True),
        "\x89": lambda pickle: pickle._push(False),
        "K": lambda pickle: pickle._push(pickle._number(_BYTE)),
        "M": lambda pickle: pickle._push(pickle._number(_SHORT)),
        "J": lambda pickle: pickle._push(pickle._number(_INT)),
        "\x8a": PickleReader._long,
        "G": lambda pickle: pickle._push(pickle._number(_FLOAT)),
        "X": lambda pickle: pickle._text(_UNSIGNED),
        "\x8c": lambda pickle: pickle._text(_BYTE),
        "(": PickleReader._mark,
        ")": lambda pickle: pickle._push(()),
        "t": lambda pickle: pickle._push(tuple(pickle._pop_mark())),
        "\x85": lambda pickle: pickle._tuple(1),
        "\x86": lambda pickle: pickle._tuple(2),
        "\x87": lambda pickle: pickle._tuple(3),
        "]": lambda pickle: pickle._push([]),
        "a": lambda pickle: pickle._append([pickle._stack.pop()]),
        "e": lambda pickle: pickle._append(pickle._pop_mark()),
        "}": lambda pickle: pickle._push({}),
        "s": lambda pickle: pickle._set_items([pickle._stack.pop() for _ in range(2)][::-1]),
        "u": lambda pickle: pickle._set_items(pickle._pop_mark()),
        "q": lambda pickle: pickle._memo.update({pickle._number(_BYTE): pickle._stack[-1]}),
        "r": lambda pickle: pickle._memo.update({pickle._number(_UNSIGNED): pickle._stack[-1]}),
        "\x94": lambda pickle: pickle._memo.update({len(pickle._memo): pickle._stack[-1]}),
        "h": lambda pickle: pickle._push(pickle._memo[pickle._number(_BYTE)]),
        "j": lambda pickle: pickle._push(pickle._memo[pickle._number(_UNSIGNED)]),
        "c": PickleReader._global,
        "\x93": PickleReader._stack_global,
        "Q": PickleReader._storage,
        "R": PickleReader._call,
        "\x81": PickleReader._call,  # makes an object of a class
        "b": PickleReader._set_state,
    }.items()
}
