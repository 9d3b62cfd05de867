# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Pickles of plain data, read item by item and without running anything that they name.

with open("records.pkl", "rb") as stream:
    for record in PlainUnpickler(stream).items():
        ...
"""

import pickle
import pickletools
import re
import struct

import numpy as np


CHUNK = 1 << 18  # bytes read at once
KEPT = 1 << 14  # strings and dtypes of earlier items that a later item may still name


class UnsafePickle(Exception):
    """A pickle asks for something that is neither plain data nor a numpy array."""


class SharedObject(Exception):
    """A record refers to an object of an earlier one, which is no longer held."""


class _Function:
    """What a pickle gets in place of a function it names. Only these can be called, and only with plain data."""

    def __init__(self, call):
        self.call = call


class _Pending:
    """A dtype or array between its creation and the state that completes it."""

    def __init__(self, finish):
        self.finish, self.value = finish, None


def _array_class(*_):
    raise UnsafePickle("a call of numpy.ndarray")


def _make_bytes(*values):
    if not all(isinstance(value, bytes) for value in values) or len(values) > 1:
        raise UnsafePickle("bytes of something that is not bytes")
    return values[0] if values else b""


def _make_set(kind):
    def make(*values):
        if not all(isinstance(value, list) for value in values) or len(values) > 1:
            raise UnsafePickle("a set of something that is not a list")
        return kind(*values)

    return make


def _encode_text(text, encoding):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickle(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _make_dtype(code, *_):
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biuf?]\d{0,2}|[SU]\d{0,6}|O8?)", code):
        raise UnsafePickle(f"the numpy dtype {code!r}")
    dtype = np.dtype(code)

    def finish(state):
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickle(f"a structured numpy dtype {state!r}")
        return dtype.newbyteorder(state[1]) if state[1] in ("<", ">") else dtype

    return _Pending(finish)


def _fill_array(shape, dtype, values, order):
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafePickle(f"a numpy array of shape {shape!r} and dtype {dtype!r}")
    if dtype.hasobject:
        if not isinstance(values, list):
            raise UnsafePickle("a numpy array of objects without a list of them")
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            array[i] = value
    elif not isinstance(values, bytes):
        raise UnsafePickle(f"a numpy array with a {type(values).__name__} for its bytes")
    else:
        array = np.frombuffer(values, dtype) if values else np.empty(0, dtype)
    return array.reshape(shape, order=order)


def _reconstruct(kind, *_):
    if kind is not _ARRAY:
        raise UnsafePickle("a numpy array of another class")

    def finish(state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickle("a numpy array with an unknown state")
        _, shape, dtype, is_fortran, values = state
        return _fill_array(shape, dtype, values, "F" if is_fortran else "C")

    return _Pending(finish)


def _make_scalar(dtype, *values):
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(values) != 1 or not isinstance(values[0], bytes):
        raise UnsafePickle(f"a numpy scalar of dtype {dtype!r}")
    return np.frombuffer(values[0], dtype, count=1)[0].item()


def _from_buffer(values, dtype, shape, order="C"):
    return _fill_array(shape, dtype, values, "F" if order == "F" else "C")


_ARRAY = _Function(_array_class)
_FUNCTIONS = {("numpy", "ndarray"): _ARRAY, ("numpy", "dtype"): _Function(_make_dtype)}
_FUNCTIONS["_codecs", "encode"] = _Function(_encode_text)
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _Function(_reconstruct)
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = _Function(_make_scalar)
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _Function(_from_buffer)
for _builtins in ("builtins", "__builtin__"):
    for _kind in (set, frozenset):
        _FUNCTIONS[_builtins, _kind.__name__] = _Function(_make_set(_kind))
    for _kind in (bytes, bytearray):
        _FUNCTIONS[_builtins, _kind.__name__] = _Function(_make_bytes)

_PLAIN_INSTRUCTIONS = """
    PROTO STOP MARK POP POP_MARK DUP NONE INT BININT BININT2 LONG LONG1 LONG4 FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST
    EMPTY_LIST DICT EMPTY_SET FROZENSET
""".split()
_SMALL_INTEGERS = re.compile(rb"(?:K.)+", re.DOTALL)
_FLOATS = re.compile(rb"(?:G.{8})+", re.DOTALL)
_BOOLEANS = re.compile(rb"[\x88\x89]+")


class EndOfFile(EOFError):
    """There is no more to read."""


class PlainUnpickler(pickle._Unpickler):
    """Reads a pickle of a list of records and hands out each record as soon as it is complete.

    Of what a pickle may ask for, this knows plain data and numpy arrays of plain data. The functions it names are looked up
    in `_FUNCTIONS` and nowhere else, so that none of Python's or numpy's is ever called for it.

    Args:
        stream: binary file.
        keep (`bool`): hold on to all that was read, for a pickle whose records share objects; it needs the memory for it.
    """

    def __init__(self, stream, keep=False):
        super().__init__(stream)
        self.stream, self.keep = stream, keep
        self.data, self.at, self.offset = b"", 0, 0  # what was read ahead, where in it we are, where it begins in the file

    # reading ahead; frames of protocol 4 only tell how much might be read at once

    def fill(self, count):
        parts = [self.data[self.at :]]
        size = len(parts[0])
        while size < count:
            parts.append(self.stream.read(CHUNK))
            if not parts[-1]:
                raise EndOfFile
            size += len(parts[-1])
        self.offset += self.at
        self.data, self.at = b"".join(parts), 0

    def read(self, count):
        if self.at + count > len(self.data):
            self.fill(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def readline(self):
        size = 0
        while (end := self.data.find(b"\n", self.at + size)) < 0:
            size = len(self.data) - self.at
            self.fill(size + 1)
        return self.read(end + 1 - self.at)

    def is_at_end(self):
        try:
            self.fill(1)
        except EndOfFile:  # not gzip's EOFError, which says that the file is cut off
            return True
        return False

    # the loop

    def items(self):
        """Yields the items of the list; a pickle of anything else as a single item."""
        self.memo, self.stack, self.metastack, self.proto = {}, [], [], 0
        self.append = self.stack.append
        self.next_index, self.fresh, self.kept = 0, [], {}
        self.finished, self.handed_out, self.handed_from = [], 0, None
        dispatch = self.dispatch
        while True:
            if self.at >= len(self.data):
                self.fill(1)
            code = self.data[self.at]
            self.at += 1
            try:
                dispatch[code](self)
            except KeyError as error:
                if code in dispatch:
                    raise
                raise self.refusal(code) from error
            except pickle._Stop as stop:
                result = stop.value
                break
            if self.finished:
                items, self.finished = self.finished, []
                self.handed_out += len(items)
                yield from items
                del items
        if self.handed_from is None:
            yield from result if type(result) is list else [result]
        elif result is not self.handed_from and not (type(result) is tuple and len(result) == 3):
            raise pickle.UnpicklingError("a list inside another object; expected a list of records")

    def refusal(self, code):
        name = next((op.name for op in pickletools.opcodes if op.code == chr(code)), None)
        if name is None:
            return pickle.UnpicklingError(f"the byte 0x{code:02x} at position {self.offset + self.at - 1}")
        return UnsafePickle(f"the pickle instruction {name}")

    # handing out

    def is_outermost(self, stack):
        """Whether on top of this stack is the list of records: alone, or third after a threshold and a list of indexes."""
        if len(stack) == 1:
            return type(stack[0]) is list
        return len(stack) == 3 and type(stack[0]) in (int, float) and type(stack[1]) is list and type(stack[2]) is list

    def hand_out(self, items, target):
        if len(target):
            raise pickle.UnpicklingError("a list that does not only hold records")
        if target is not self.handed_from and self.handed_from is not None:
            raise pickle.UnpicklingError("two lists of records in one")
        self.handed_from = target
        for item in items:
            if len(self.stack) == 3 or (self.metastack and len(self.metastack[0]) == 3):
                indexes = (self.metastack[0] if self.metastack else self.stack)[1]
                number = self.handed_out + len(self.finished)
                index = indexes[number] if number < len(indexes) else None
                item = {**index, "data": item} if type(index) is dict and type(item) is dict else item
            self.finished.append(item)
        if not self.keep:
            self.forget()

    def forget(self):
        """Drops what the records so far have left in the memo, all but small things that later ones may well name again."""
        for index in self.fresh:
            value = self.memo.get(index)
            kind = type(value)
            is_dtype = kind is _Pending and isinstance(value.value, np.dtype)
            if is_dtype or (kind is str and len(value) <= 200) or (kind is bytes and len(value) <= 16):
                self.kept[index] = None
            elif kind is not _Function and value is not self.handed_from:
                self.memo.pop(index, None)
        self.fresh = []
        while len(self.kept) > KEPT:
            index = next(iter(self.kept))
            del self.kept[index]
            self.memo.pop(index, None)

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _PLAIN_INSTRUCTIONS}

    def load_frame(self):
        self.read(8)

    dispatch[pickle.FRAME[0]] = load_frame

    def load_bytearray8(self):
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(count))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    # long runs of numbers are taken at once: most of a record is that

    def load_binint1(self):
        run = _SMALL_INTEGERS.match(self.data, self.at - 1)
        if run is None:
            self.append(self.read(1)[0])
        else:
            self.stack.extend(run.group()[1::2])
            self.at = run.end()

    dispatch[pickle.BININT1[0]] = load_binint1

    def load_binfloat(self):
        run = _FLOATS.match(self.data, self.at - 1)
        if run is None:
            self.append(struct.unpack(">d", self.read(8))[0])
        else:
            self.stack.extend(value for (value,) in struct.iter_unpack(">xd", run.group()))
            self.at = run.end()

    dispatch[pickle.BINFLOAT[0]] = load_binfloat

    def load_boolean(self):
        run = _BOOLEANS.match(self.data, self.at - 1)
        self.stack.extend(code == pickle.NEWTRUE[0] for code in run.group())
        self.at = run.end()

    dispatch[pickle.NEWTRUE[0]] = dispatch[pickle.NEWFALSE[0]] = load_boolean

    # functions

    def find_class(self, module, name):
        try:
            return _FUNCTIONS[module, name]
        except KeyError:
            raise UnsafePickle(f"{module}.{name}") from None

    def load_global(self):
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.append(self.find_class(module, name))

    dispatch[pickle.GLOBAL[0]] = load_global

    def load_stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        self.append(self.find_class(module, name))

    dispatch[pickle.STACK_GLOBAL[0]] = load_stack_global

    def load_inst(self):
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.find_class(module, name)
        raise UnsafePickle(f"an instance of {module}.{name}")

    dispatch[pickle.INST[0]] = load_inst

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(function) is not _Function or type(arguments) is not tuple:
            raise UnsafePickle(f"a call of a {type(function).__name__}")
        self.stack[-1] = function.call(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self):
        state, pending = self.stack.pop(), self.stack[-1]
        if type(pending) is not _Pending:
            raise UnsafePickle(f"a state for a {type(pending).__name__}")
        self.stack[-1] = pending.value = pending.finish(state)

    dispatch[pickle.BUILD[0]] = load_build

    # containers

    def load_empty_dictionary(self):
        if self.stack and len(self.metastack) == 1 and self.is_outermost(self.metastack[0]):
            if all(type(item) is dict for item in self.stack):  # those before this one are complete
                self.hand_out(self.stack, self.metastack[0][-1])
                self.stack.clear()
        self.append({})

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def add(self, items):
        target = self.stack[-1]
        if type(target) is not list:
            raise UnsafePickle(f"items for a {type(target).__name__}")
        if not self.metastack and self.is_outermost(self.stack):
            self.hand_out(items, target)
        else:
            target.extend(items)

    def load_append(self):
        self.add([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self):
        self.add(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def set_items(self, items):
        if type(self.stack[-1]) is not dict:
            raise UnsafePickle(f"keys for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        self.set_items(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self):
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise UnsafePickle(f"items for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    # the memo

    def fetch(self, index):
        if index not in self.memo:
            if index < self.next_index:
                raise SharedObject
            raise pickle.UnpicklingError(f"the memo entry {index}, which was never written")
        if index in self.kept:
            self.kept[index] = self.kept.pop(index)  # to the end: the last to be dropped
        value = self.memo[index]
        if type(value) is _Pending:
            value = value.value
        self.append(value)

    def store(self, index):
        self.kept.pop(index, None)
        self.memo[index] = self.stack[-1]
        self.next_index = max(self.next_index, index + 1)
        if not self.keep:
            self.fresh.append(index)

    def load_get(self):
        self.fetch(int(self.readline()[:-1]))

    def load_binget(self):
        self.fetch(self.read(1)[0])

    def load_long_binget(self):
        self.fetch(struct.unpack("<I", self.read(4))[0])

    def load_put(self):
        self.store(int(self.readline()[:-1]))

    def load_binput(self):
        self.store(self.read(1)[0])

    def load_long_binput(self):
        self.store(struct.unpack("<I", self.read(4))[0])

    def load_memoize(self):
        self.store(self.next_index)

    dispatch[pickle.GET[0]], dispatch[pickle.PUT[0]] = load_get, load_put
    dispatch[pickle.BINGET[0]], dispatch[pickle.BINPUT[0]] = load_binget, load_binput
    dispatch[pickle.LONG_BINGET[0]], dispatch[pickle.LONG_BINPUT[0]] = load_long_binget, load_long_binput
    dispatch[pickle.MEMOIZE[0]] = load_memoize


__all__ = ["PlainUnpickler", "SharedObject", "UnsafePickle"]
