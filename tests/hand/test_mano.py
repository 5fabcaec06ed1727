from __future__ import annotations

import copyreg
import io
import math
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from annotator.errors import UserError
from annotator.hand import anatomy, mano
from annotator.runtime import safe_pickle
from tests.support import mano_file

OFFICIAL_GLOBALS = {
    "__builtin__ set",
    "numpy dtype",
    "numpy ndarray",
    "numpy.core.multiarray _reconstruct",
    "scipy.sparse.csc csc_matrix",
    "chumpy.ch Ch",
    "chumpy.reordering Select",
}
# Written by Python 2.7.18 with NumPy 1.16.6, SciPy 1.2.3 and chumpy 0.69.
BY_PYTHON2 = Path(__file__).parents[1] / "data" / "chumpy_by_python2.pkl"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    return path, mano_file.write_mano_file(path)


@pytest.fixture(scope="module")
def hand(written):
    return mano.read_mano(written[0])


def globals_of(data: bytes) -> set[str]:
    return {argument for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}


def load(data: bytes, admitted=mano._GLOBALS):
    return safe_pickle.load(io.BytesIO(data), admitted, "x.pkl")


class Anything:
    def __init__(self, *_):
        pass


class Plain(pickle.Unpickler):
    """The standard unpickler with NumPy's real functions: a second, unsafe reader."""

    def find_class(self, module, name):
        if module.startswith("numpy"):
            return super().find_class(module, name)
        return set if name == "set" else type(name, (Anything,), {})


# Valid files


def test_the_made_file_names_the_official_globals_and_no_others(written):
    assert globals_of(written[0].read_bytes()) == OFFICIAL_GLOBALS
    assert globals_of(BY_PYTHON2.read_bytes()) == OFFICIAL_GLOBALS
    assert {f"{module} {name}" for module, name in mano._GLOBALS} == OFFICIAL_GLOBALS


@pytest.mark.filterwarnings("ignore")
def test_the_made_file_reads_the_same_with_the_standard_unpickler(written):
    path, fields = written
    plain = Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            assert plain[name].dtype == value.dtype
            assert np.array_equal(plain[name], value)
    sparse = pytest.importorskip("scipy.sparse")
    columns = vars(plain["J_regressor"])
    parts = (columns["data"], columns["indices"], columns["indptr"])
    full = sparse.csc_matrix(parts, shape=columns["_shape"]).toarray()
    assert np.array_equal(full, fields["J_regressor"].full)


def test_every_field_reads_back(written, hand):
    fields = written[1]
    for name in ("v_template", "posedirs", "weights", "hands_mean", "hands_components"):
        assert np.array_equal(getattr(hand, name), fields[name].astype(np.float32)), name
    assert np.array_equal(hand.faces, fields["f"])
    assert np.array_equal(hand.J_regressor, fields["J_regressor"].full.astype(np.float32))
    assert np.array_equal(hand.shapedirs, fields["shapedirs"].whole[..., :10].astype(np.float32))
    assert hand.kintree_table[0].tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    assert np.allclose(hand.hands_std, np.std(fields["hands_coeffs"], axis=0))
    assert hand.tip_vertices.tolist() == [744, 320, 443, 555, 672]
    assert hand.name == "mano"


def test_a_file_by_real_python2_and_chumpy_reads_back():
    stored = load(BY_PYTHON2.read_bytes())
    assert np.array_equal(mano._array(stored["fortran"], ""), np.arange(6.0).reshape(2, 3))
    assert np.array_equal(mano._array(stored["big_endian"], ""), np.arange(3, dtype=np.float32))
    assert mano._array(stored["big_endian"], "").dtype.isnative
    assert mano._array(stored["flags"], "").tolist() == [True, False]
    assert mano._array(stored["root"], "").tolist() == [4294967295, 0]
    assert np.array_equal(mano._array(stored["selected"], ""), np.arange(24.0).reshape(2, 3, 4)[:, :, :2])
    assert mano._dense(stored["sparse"], "", (3, 4)).tolist() == [[0, 2, 0, 0], [1, 0, 0, 3], [0, 0, 0, 4]]
    assert (stored["text"], stored["number"]) == ("lbs", 2**40)


def test_the_made_hand_is_a_right_hand_with_an_open_wrist(hand):
    edges = {(int(t[i]), int(t[i - 2])) for t in hand.faces for i in range(3)}
    assert len(edges) == 3 * 1538
    assert sum((b, a) not in edges for a, b in edges) == 16
    corners = hand.v_template[hand.faces].astype(float) - hand.v_template[0]
    assert np.linalg.det(corners).sum() > 0  # outward
    assert anatomy.chirality(anatomy.rest_joints(hand)) > 0


def test_the_joint_regressor_gives_joints_and_fingertips(hand):
    rest = hand.joint_regressor @ hand.v_template
    assert np.abs(rest - anatomy.rest_joints(hand)).max() < 1e-3


def test_a_file_without_coefficients_has_unit_spread(tmp_path):
    mano_file.write_mano_file(tmp_path / "m.pkl", hands_coeffs=None)
    assert (mano.read_mano(tmp_path / "m.pkl").hands_std == 1).all()


# Files that are not MANO's right hand


def refusal_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        mano.read_mano(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert "MANO_RIGHT.pkl from https://mano.is.tue.mpg.de" in message
    return message


FIELDS = mano_file.mano_fields()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (mano_file.left_fields(), "left hand"),
        ({"v_template": np.zeros((6890, 3))}, "body"),
        ({"v_template": np.zeros((777, 3))}, "(777, 3)"),
        ({"v_template": FIELDS["v_template"] * np.nan}, "v_template holds values that are not finite"),
        ({"v_template": "lbs"}, "v_template is not an array"),
        ({"posedirs": np.zeros((778, 3, 207))}, "posedirs has shape (778, 3, 207)"),
        ({"posedirs": None}, "no field posedirs"),
        ({"shapedirs": mano_file.Selected(np.zeros((778, 3, 20)), 16)}, "shapedirs has shape (778, 3, 16)"),
        ({"shapedirs": None}, "no field shapedirs"),
        ({"J_regressor": mano_file.Sparse(np.zeros((24, 778)))}, "J_regressor"),
        ({"J_regressor": mano_file.Sparse(np.zeros((16, 6890)))}, "J_regressor"),
        ({"f": FIELDS["f"] + 1}, "vertices that do not exist"),
        ({"f": FIELDS["f"].astype(float)}, "f does not hold integers"),
        ({"kintree_table": np.zeros((2, 24), int)}, "kintree_table"),
        ({"kintree_table": np.zeros((2, 16), int)}, "kintree_table"),
        ({"weights": FIELDS["weights"] * 2}, "weights"),
        ({"hands_mean": np.zeros(6)}, "hands_mean has shape (6,)"),
        ({"hands_coeffs": np.zeros((1554, 6))}, "hands_coeffs"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, says):
    mano_file.write_mano_file(tmp_path / "m.pkl", **changes)
    assert says in refusal_of(tmp_path / "m.pkl")


@pytest.mark.parametrize("top", [[1, 2], "text", 3, None, np.zeros(3)])
def test_a_pickle_of_something_else_is_refused(tmp_path, top):
    (tmp_path / "m.pkl").write_bytes(mano_file.dump(top))
    assert "no named fields" in refusal_of(tmp_path / "m.pkl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"Please sign the licence form first.\n", "not a pickle"),
        (b"<!DOCTYPE html>\n<html></html>", "not a pickle"),
        (b"hello\n", "not a pickle"),
        (b"cat\ndog\n", "`at.dog`"),
        (b"PK\x03\x04" + bytes(100), "not a pickle"),
        (bytes(1000), "not a pickle"),
        (b"\x80\x02" + bytes(1000), "damaged"),
        (b"\x80\x63K\x01.", "damaged"),
    ],
)
def test_a_file_that_is_no_pickle_is_refused(tmp_path, content, says):
    (tmp_path / "m.pkl").write_bytes(content)
    assert says in refusal_of(tmp_path / "m.pkl")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file" in refusal_of(tmp_path / "none.pkl")
    assert "directory" in refusal_of(tmp_path)


def test_a_file_too_large_is_refused_without_reading_it_all(tmp_path):
    with (tmp_path / "m.pkl").open("wb") as file:
        file.truncate(2**40)
    assert "larger than 16,777,216 bytes" in refusal_of(tmp_path / "m.pkl")


def test_a_file_cut_short_anywhere_is_refused(written):
    data = written[0].read_bytes()
    starts = [position for *_, position in pickletools.genops(data)]
    cuts = sorted({*range(2, 600), *starts[1:], *(s + 1 for s in starts[1:-1])})
    for cut in cuts:
        with pytest.raises(UserError, match=r"^x\.pkl: cut short$"):
            load(data[:cut])


# Hostile pickles: nothing in them may run


def call(module: str, name: str, argument: str) -> bytes:
    return f"\x80\x02c{module}\n{name}\nU{chr(len(argument))}{argument}\x85R.".encode("latin1")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "check_output"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.testing", "runstring"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy", "load"),
        ("numpy.f2py.crackfortran", "myeval"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy", "dtype.__class__"),
        ("numpy", "ndarray.__class__.__subclasses__"),
        ("chumpy.ch", "Ch.__init__"),
        ("annotator.runtime.safe_pickle", "pickle"),
    ],
)
@pytest.mark.parametrize("stack_global", [False, True])
def test_any_other_global_is_refused_by_name_and_nothing_runs(tmp_path, module, name, stack_global):
    sentinel = tmp_path / "ran"
    command = f"touch {sentinel}" if "system" in name or "check" in name else f"open({str(sentinel)!r}, 'w')"
    data = call(module, name, command)
    if stack_global:
        named = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
        data = b"\x80\x04" + named + b"\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    with pytest.raises(UserError) as caught:
        load(data)
    assert f"`{module}.{name}`" in str(caught.value)
    assert not sentinel.exists()


def test_the_hostile_pickles_are_real(tmp_path):
    sentinel = tmp_path / "ran"
    pickle.loads(call("posix", "system", f"touch {sentinel}"))
    assert sentinel.exists()


def test_a_hostile_global_deep_inside_a_good_file_is_refused(tmp_path, written):
    sentinel = tmp_path / "ran"
    data = written[0].read_bytes()[:-1] + call("posix", "system", f"touch {sentinel}")[2:]
    with pytest.raises(UserError, match=r"`posix\.system`"):
        load(data)
    assert not sentinel.exists()


def test_a_malicious_name_makes_one_plain_line():
    with pytest.raises(UserError) as caught:
        load(b"\x80\x04\x8c\x03o\ns\x8c\x04\x1b[2J\x93.")
    assert str(caught.value).isprintable()


def test_extension_codes_are_refused_even_from_the_cache(monkeypatch):
    monkeypatch.setitem(copyreg._extension_cache, 7, print)
    for code in (b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"):
        with pytest.raises(UserError, match="EXT"):
            load(b"\x80\x02" + code + b".")


@pytest.mark.parametrize(
    ("body", "opcode"),
    [
        (b"P12\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"\x96" + struct.pack("<Q", 2**40) + b".", "BYTEARRAY8"),
        (b"\x8f.", "EMPTY_SET"),
    ],
)
def test_other_machinery_is_refused(body, opcode):
    with pytest.raises(UserError, match=opcode):
        load(b"\x80\x02" + body)


def array_pickle(shape, dtype=("f8", 0, 1), raw=bytes(8), subtype="numpy ndarray", order="<") -> bytes:
    writer = mano_file._Python2Writer()
    writer.named("numpy.core.multiarray _reconstruct")
    writer.out += b"("
    writer.named(subtype)
    writer.each([(0,), "b"])
    writer.out += b"tR("
    writer.write(1)
    writer.out += b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    writer.called("numpy dtype", dtype)
    writer.write((3, order, None, None, None, -1, -1, 0))
    writer.out += b"b"
    writer.each([False, raw])
    writer.out += b"tb."
    return bytes(writer.out)


def test_the_array_pickle_is_sound_until_forged():
    assert load(array_pickle((1,))).array().tolist() == [0.0]


@pytest.mark.parametrize(
    ("forged", "says"),
    [
        ({"shape": (10**12,)}, "shape"),
        ({"shape": (2**62, 4)}, "shape"),
        ({"shape": (2**62, 0, 2**62), "raw": b""}, "shape"),
        ({"shape": (-1,)}, "impossible shape"),
        ({"shape": (1,) * 9}, "impossible shape"),
        ({"shape": (1,), "dtype": ("O8", 0, 1)}, "objects"),
        ({"shape": (1,), "dtype": ("V8", 0, 1)}, "V8"),
        ({"shape": (1,), "dtype": ("S8", 0, 1)}, "S8"),
        ({"shape": (1,), "dtype": (("f8", 10**9), 0, 1)}, "tuple"),
        ({"shape": (1,), "subtype": "chumpy.ch Ch"}, "not a plain array"),
        ({"shape": (1,), "raw": [None]}, "not numbers"),
        ({"shape": (1,), "order": "x"}, "structured"),
    ],
)
def test_forged_arrays_are_refused(forged, says):
    with pytest.raises(UserError, match=says):
        load(array_pickle(**forged))


def test_one_buffer_named_by_many_arrays_costs_no_memory():
    size = 2**20
    one = array_pickle((size,), ("u1", 0, 1), bytes(size), order="|")[:-1]
    # q and h: the buffer goes to the memo, and 200 more arrays take it from there.
    head, tail = one.split(b"T" + struct.pack("<i", size) + bytes(size))
    first = one[2:-2] + b"q\xff" + one[-2:]
    again = head[2:] + b"h\xff" + tail
    data = b"\x80\x02(" + first + again * 200 + b"l."
    tracemalloc.start()
    stored = load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(stored) == 201
    assert stored[-1].array().shape == (size,)
    assert peak < 8 * size


@pytest.mark.parametrize(
    "body",
    [
        b"cnumpy\ndtype\n}(U\x08stand_inK\x01ub.",  # sets an attribute of an admitted global
        b"cnumpy\ndtype\nN}(U\x08__init__K\x01u\x86b.",  # likewise, by slots
        b"cchumpy.ch\nCh\n)\x81N}(U\x0atake_stateK\x01u\x86b.",
        b"cnumpy\nndarray\nK\x01\x85R.",  # calls a global that may only be referenced
        b"]K\x01\x85R.",  # calls a list
        b"]}b.",  # sets the state of a list
        b"cnumpy\ndtype\n(K\x01K\x02u.",  # sets items of a global
        b"}()))\x86)\x86K\x01s.",  # a tuple as a key
    ],
)
def test_admitted_globals_cannot_be_misused(body):
    with pytest.raises(UserError, match=r"refused|damaged"):
        load(b"\x80\x02" + body)
    assert load(array_pickle((1,))).array().tolist() == [0.0]


def test_tuples_nested_to_hang_a_hash_are_refused_at_once():
    nested = b"}(" + b")" + b"2\x86" * 60 + b"K\x01u."
    with pytest.raises(UserError, match="keys"):
        load(b"\x80\x02" + nested)


def test_huge_memo_numbers_and_lengths_reserve_no_memory():
    assert load(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1
    for opcode in (
        b"T\xff\xff\xff\x7f",
        b"\x8e" + struct.pack("<Q", 2**40),
        b"\x8d" + struct.pack("<Q", 2**40),
    ):
        with pytest.raises(UserError, match=r"cut short|damaged"):
            load(b"\x80\x04" + opcode + b"abc.")


def test_random_damage_never_escapes_as_another_error(written):
    # The small file has every kind of opcode and almost no array data.
    data = BY_PYTHON2.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        forged = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            forged[position] = rng.integers(256)
        try:
            load(bytes(forged))
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 500


def test_numpy_arrays_written_by_this_python_are_read_with_the_general_list():
    # Protocol 3 and later keep bytes as bytes; NumPy 2 names its module `numpy._core`.
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    for protocol in (3, 4):
        stored = load(pickle.dumps({"a": array, "n": math.pi}, protocol), safe_pickle.NUMPY_ARRAYS)
        assert np.array_equal(stored["a"].array(), array)
        assert stored["n"] == math.pi
