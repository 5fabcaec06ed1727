"""Read a pickle that may be hostile: a closed list of globals, none of which is ever run.

A pickle is a program. Here our own stand-in replaces each admitted global, checks its arguments and
keeps them (`StoredArray` for a NumPy array, `StoredObject` for an instance). The real functions never
see the file. Even admitted NumPy functions could be abused: an array of any
subtype, of objects, or of a shape that fills the memory.

Python's own unpickler in C is not used: it takes extension codes from a cache without a check, and
one opcode can make it reserve gigabytes. The unpickler in Python runs here with a closed list of opcodes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from annotator.errors import UserError

#: (module, name) as written in the file -> the stand-in that takes its arguments.
Globals = Mapping[tuple[str, str], Callable[..., Any]]

#: More than four times the size of the official MANO file.
MAX_BYTES = 16 * 2**20

_MAX_DIMENSIONS = 8
_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])

# No extension codes, persistent ids, out-of-band buffers, old-style instances or keyword arguments; no sets
# (hashing a nested tuple can take forever); no BYTEARRAY8, which reserves memory before it reads.
_ADMITTED_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
_OPCODE_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}


class UnsafePickleError(Exception):
    """The file uses something that is not admitted; the message names it."""


class _CutShortError(Exception):
    """The file ends before the pickle does."""


def _plain(value: object) -> str:
    """Return a value of the file as short printable text on one line."""
    text = value if type(value) is str else type(value).__name__
    return ascii(text)[1:-1][:100]


class StoredObject:
    """An instance of an admitted class, inert: its state is kept as a mapping, no method is run."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def take_state(self, state: object) -> None:
        """Keep the fields that the file sets on the instance; refuse anything else."""
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise UnsafePickleError("sets the state of an object by something other than named fields")
        self.state = state


class StoredDtype:
    """`numpy.dtype(code, align, copy)`, numeric or bool only."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if type(code) is not str or code not in _DTYPES:
            kind = "objects" if type(code) is str and code.startswith("O") else _plain(code)
            raise UnsafePickleError(f"holds a NumPy array of {kind}, not of numbers")
        self.dtype = np.dtype(code)

    def take_state(self, state: object) -> None:
        """Take the byte order from NumPy's state tuple; refuse sub-arrays and named fields."""
        match state:
            case (int(), "<" | ">" | "|" as order, None, None, None, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise UnsafePickleError("holds a NumPy array of structured values, not of numbers")


class StoredArray:
    """A NumPy array as the file stores it: its shape, dtype, order and bytes, checked against each other."""

    def __init__(self, subtype: object, shape: object, code: object) -> None:
        if not (isinstance(subtype, Global) and subtype.name == "ndarray"):
            raise UnsafePickleError("calls numpy for something that is not a plain array")
        self.shape: tuple[int, ...] = (0,)
        self._dtype = np.dtype(float)
        self._fortran = False
        self._raw: str | bytes = b""

    def take_state(self, state: object) -> None:
        """Take (version, shape, dtype, is_fortran, bytes); the bytes must fill the shape exactly."""
        match state:
            case (
                int(),
                tuple(shape),
                StoredDtype(dtype=dtype),
                bool() | 0 | 1 as fortran,
                str() | bytes() as raw,
            ):
                pass
            case _:
                raise UnsafePickleError("holds a NumPy array whose state is not numbers")
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise UnsafePickleError("holds a NumPy array of an impossible shape")
        # NumPy forbids sizes of 0 beside ones whose product overflows.
        largest = math.prod(n for n in shape if n > 0) * dtype.itemsize
        if largest > MAX_BYTES or math.prod(shape) * dtype.itemsize != len(raw):
            raise UnsafePickleError(
                f"holds a NumPy array of shape {str(shape)[:80]} with {len(raw):,} bytes of data"
            )
        self.shape, self._dtype, self._fortran, self._raw = shape, dtype, bool(fortran), raw

    def array(self) -> np.ndarray:
        """Return a copy of the array, in the machine's byte order.

        Made only on request: a small file can name the same bytes a million times.
        """
        # Python 2's bytes come as latin1 text. Text beyond latin1 is forged and meaningless.
        raw = self._raw.encode("latin1", "replace") if isinstance(self._raw, str) else self._raw
        flat = np.frombuffer(raw, self._dtype).astype(self._dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self._fortran else "C")


def never(*_: object) -> None:
    """Refuse calls of a global that files may only name, such as `numpy.ndarray`."""
    raise UnsafePickleError("calls a class that it may only name")


#: A plain array of numbers or bools, as NumPy 1 writes it and as NumPy 2 does.
NUMPY_ARRAYS: Globals = {
    ("numpy", "dtype"): StoredDtype,
    ("numpy", "ndarray"): never,
    ("numpy.core.multiarray", "_reconstruct"): StoredArray,
    ("numpy._core.multiarray", "_reconstruct"): StoredArray,
}


@dataclass(frozen=True)
class Global:
    """An admitted global on the unpickler's stack: it can be called or named, not changed."""

    module: str
    name: str
    stand_in: Callable[..., Any]


class _Admitted(dict[int, Callable[[Any], None]]):
    """Map each opcode to the function that runs it."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        opcode = _OPCODE_NAMES.get(code)
        if opcode is None:
            raise pickle.UnpicklingError
        raise UnsafePickleError(f"uses the pickle opcode {opcode}, which is not admitted")


class _ExactReader(io.BytesIO):
    """A stream that raises if the file ends too early."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise _CutShortError
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise _CutShortError
        return line


class _SafeUnpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO, admitted: Globals) -> None:
        # latin1: Python 2 wrote bytes and text as the same thing.
        super().__init__(stream, fix_imports=False, encoding="latin1")
        self._admitted = admitted

    def find_class(self, module: str, name: str) -> Global:
        # One look-up of both names as written: a dotted name is never followed.
        try:
            return Global(module, name, self._admitted[module, name])
        except KeyError:
            raise UnsafePickleError(
                f"names the global `{_plain(f'{module}.{name}')}`, which is not admitted"
            ) from None

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise UnsafePickleError("calls something that is not a global")
        self.stack.append(function.stand_in(*arguments))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, StoredObject | StoredDtype | StoredArray):
            raise UnsafePickleError("sets the state of something that has none")
        target.take_state(state)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._put(items)

    def _put(self, items: list[Any]) -> None:
        mapping = self.stack[-1]
        if type(mapping) is not dict:
            raise UnsafePickleError("sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple as a key can take forever.
            if not isinstance(key, str | bytes | int):
                raise UnsafePickleError("holds a dict whose keys are not names or numbers")
            mapping[key] = value

    dispatch = _Admitted(
        {
            code: run
            for code, run in pickle._Unpickler.dispatch.items()
            if _OPCODE_NAMES[code] in _ADMITTED_OPCODES.split()
        }
        | {
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_reduce,
            pickle.BUILD[0]: load_build,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
        }
    )


def load(stream: BinaryIO, admitted: Globals, name: str, max_bytes: int = MAX_BYTES) -> Any:
    """Read one pickle whose globals are all in `admitted`; no global of the file is run.

    Args:
        stream: binary, read from its current position; at most `max_bytes` are accepted.
        admitted: the stand-in of each global, by its module and name exactly as written in the
            file: `("__builtin__", "set")` for one from Python 2. The stand-ins check their arguments.
        name: of the file, in errors.
        max_bytes: longer files are refused. An object takes one byte in the file and about sixty in memory,
            so keep it near the size of honest files.

    Returns:
        The top-level object: dicts, lists, tuples, numbers, strings (bytes of Python 2 read as latin1), and
        return values of the stand-ins.

    Raises:
        UserError: the file is empty, not a pickle, cut short, damaged or too large, or uses something
            that is not admitted, which the message names.
    """
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{name}: larger than {max_bytes:,} bytes, more than such a file should hold")
    if not data:
        raise UserError(f"{name}: the file is empty")
    has_header = data.startswith(pickle.PROTO)
    if not has_header and data[0] not in _SafeUnpickler.dispatch:
        raise UserError(f"{name}: not a pickle file")
    try:
        return _SafeUnpickler(_ExactReader(data), admitted).load()
    except UnsafePickleError as error:
        raise UserError(f"{name}: refused, because it {error}") from None
    except MemoryError:
        raise
    except _CutShortError:
        reason = "cut short" if has_header else "not a pickle file, or one that was cut short"
    except Exception:  # damaged data can raise anything
        reason = "damaged: not a readable pickle" if has_header else "not a pickle file, or a damaged one"
    raise UserError(f"{name}: {reason}")
