"""Files of PyTorch's: what is read of them, and what is refused before anything happens."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_archives import TWO, group, mapping, named, number, save, storage, tensor, text, write

from vdnn.exchange.errors import ModelError
from vdnn.exchange.pickled import read_pickle
from vdnn.exchange.weights_file import read_weights

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def refusal(path):
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    return str(caught.value)


def test_tensors_are_read_by_their_names(tmp_path):
    found = read_weights(save(tmp_path / "a.pth", {"conv.weight": ARRAY, "steps": np.array(7)}))
    np.testing.assert_array_equal(found["conv.weight"], ARRAY)
    assert found["steps"] == 7


def test_strides_and_offsets_within_a_storage_are_followed(tmp_path):
    row = np.arange(12, dtype=np.float32)
    views = {"columns": tensor(storage("0", "float32", 12), (3, 2), (1, 3), 2), "none": None}
    views["none"] = tensor(storage("0", "float32", 12), (0, 5), (5, 1), 12)
    found = read_weights(write(tmp_path / "a.pth", TWO + mapping(views) + b".", {"0": row.tobytes()}))
    np.testing.assert_array_equal(found["columns"], [[2, 5], [3, 6], [4, 7]])
    assert found["none"].shape == (0, 5)


def test_bfloat16_becomes_float32(tmp_path):
    halves = np.array([0x3F80, 0xC000, 0x3EAB], np.uint16)  # 1, -2, and a third to eight bits
    found = read_weights(save(tmp_path / "a.pth", {"w": halves}))["w"]
    np.testing.assert_array_equal(found, np.array([1, -2, 0.333984375], np.float32))


def test_the_byte_order_of_the_file_is_followed(tmp_path):
    data = TWO + mapping({"w": tensor(storage("0", "float32", 6), (2, 3), (3, 1))}) + b"."
    path = write(tmp_path / "a.pth", data, {"0": ARRAY.astype(">f4").tobytes()}, order=b"big")
    np.testing.assert_array_equal(read_weights(path)["w"], ARRAY)
    assert "'middle'" in refusal(write(tmp_path / "b.pth", data, {"0": ARRAY.tobytes()}, order=b"middle"))


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_the_state_dict_in_a_checkpoint_is_found(tmp_path, wrap):
    assert list(read_weights(save(tmp_path / "a.pth", {"w": ARRAY}, wrap=wrap))) == ["w"]


def test_a_checkpoint_without_tensors_says_what_it_holds(tmp_path):
    assert "it holds epoch, nowhere" in refusal(save(tmp_path / "a.pth", {"w": ARRAY}, wrap="nowhere"))


# ---- what would run code


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark):
    """{name: (pickle, the global that the refusal names)}; each would make the file `mark` if it were run."""
    code = f"open({os.fspath(mark)!r}, 'w').close()"
    return {
        "os.system": (pickle.dumps(Payload(os.system, f"touch {mark}"), 2), "posix.system"),
        "eval": (pickle.dumps(Payload(eval, code), 2), "__builtin__.eval"),
        "exec by a frame": (pickle.dumps(Payload(exec, code), 4), "builtins.exec"),
        "subprocess": (pickle.dumps(Payload(subprocess.call, ["touch", os.fspath(mark)]), 4), "subprocess.call"),
        "a nested getattr": (
            TWO
            + named("__builtin__", "getattr")
            + group(named("__builtin__", "getattr") + group(named("os", "path"), text("os")) + b"R", text("system"))
            + b"R"
            + group(text(f"touch {mark}"))
            + b"R.",
            "__builtin__.getattr",
        ),
        "a dotted name": (
            b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93)R.",
            "_rebuild_tensor_v2.__globals__",
        ),
        "numpy": (pickle.dumps(np.arange(3), 2), "numpy._core.multiarray._reconstruct"),
        "numpy's load": (pickle.dumps(Payload(np.load, os.fspath(mark), "r", True), 2), "load"),
        "a state that is set": (TWO + named("os", "system") + b")\x81}b.", "os.system"),
        "an instance by its module": (TWO + b"(" + text(f"touch {mark}") + b"ios\nsystem\n.", "INST"),
        "a call by its parts": (TWO + b"(" + named("os", "system") + text("x") + b"o.", "os.system"),
        "an extension": (TWO + b"\x82\x01.", "EXT1"),
        "torch's own load": (TWO + named("torch", "load") + group(text("x")) + b"R.", "torch.load"),
    }


@pytest.mark.parametrize("name", list(payloads("x")))
def test_a_pickle_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    data, asked = payloads(mark)[name]
    message = refusal(write(tmp_path / "a.pth", data, {}))
    assert asked in message
    assert not mark.exists()


def test_the_payloads_are_real(tmp_path):
    """Unpickled in a process of its own, the first would make its file."""
    mark = tmp_path / "ran"
    data, _ = payloads(mark)["os.system"]
    subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=data, check=True)
    assert mark.exists()


def test_a_call_of_something_that_was_made_is_refused(tmp_path):
    data = TWO + tensor(storage("0", "float32", 6), (2, 3), (3, 1)) + b")R."
    assert "a call of a View" in refusal(write(tmp_path / "a.pth", data, {"0": ARRAY.tobytes()}))


def test_a_reference_to_anything_but_a_storage_is_refused(tmp_path):
    data = TWO + group(text("module"), text("os")) + b"Q."
    assert "which is no storage" in refusal(write(tmp_path / "a.pth", data, {}))


# ---- what is damaged, or lies


VIEWS = {
    "strides out of the storage": ((2, 3), (4, 1), 0),
    "an offset out of the storage": ((2, 3), (3, 1), 1),
    "a negative stride": ((2, 3), (-3, 1), 0),
    "a negative size": ((-2, 3), (3, 1), 0),
    "more strides than sizes": ((6,), (1, 1), 0),
    "elements repeated without end": ((2**40,), (0,), 0),
    "sizes beyond any machine": ((2**62, 2**62), (1, 1), 0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_that_does_not_lie_in_its_storage_is_refused(tmp_path, name):
    data = TWO + mapping({"w": tensor(storage("0", "float32", 6), *VIEWS[name])}) + b"."
    assert "a tensor " in refusal(write(tmp_path / "a.pth", data, {"0": ARRAY.tobytes()}))


def test_a_storage_that_says_more_than_it_has_is_refused(tmp_path):
    data = TWO + mapping({"w": tensor(storage("0", "float32", 2**40), (2**40,), (1,))}) + b"."
    assert "the storage of w has 24 bytes, not 4,398,046,511,104" in refusal(
        write(tmp_path / "a.pth", data, {"0": ARRAY.tobytes()})
    )


def test_a_storage_that_is_said_to_have_two_sizes_is_refused(tmp_path):
    """Read once by its key, it would be taken for what it is not by the second tensor."""
    first, second = storage("0", "float32", 6), storage("0", "float32", 2**20)
    views = {"a": tensor(first, (2, 3), (3, 1)), "b": tensor(second, (4,), (1,), 2**19)}
    message = refusal(write(tmp_path / "a.pth", TWO + mapping(views) + b".", {"0": ARRAY.tobytes()}))
    assert "the storage of b has 24 bytes, not 4,194,304" in message


def test_a_storage_that_is_said_to_be_of_two_types_is_refused(tmp_path):
    views = {
        "a": tensor(storage("0", "float32", 6), (2, 3), (3, 1)),
        "b": tensor(storage("0", "float64", 6), (6,), (1,)),
    }
    message = refusal(write(tmp_path / "a.pth", TWO + mapping(views) + b".", {"0": ARRAY.tobytes()}))
    assert "the storage of b has 24 bytes, not 48" in message


LAUGHS = b"N\x85q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))


@pytest.mark.parametrize(
    "data",
    [
        LAUGHS + b"Q.",
        named("collections", "OrderedDict") + b"(" + LAUGHS + b"tR.",
        named("collections", "OrderedDict") + b"(](" + b"(" + LAUGHS + b"NtetR.",
        b"}" + LAUGHS + b"Ns.",
        LAUGHS + b")R.",
        text("os") + LAUGHS + b"\x93.",
    ],
    ids=["a reference", "a dict", "its key", "a key", "a call", "a name"],
)
def test_values_that_hold_each_other_a_billion_times_are_refused_at_once(data):
    with pytest.raises(ModelError, match="it is damaged or no state dict's"):
        read_pickle(b"\x80\x04" + data, "it")


def test_tensors_that_all_share_one_storage_are_refused(tmp_path):
    stored = storage("0", "float32", 1000)
    items = {f"t{i}": tensor(stored, (1000,), (1,)) for i in range(200)}
    path = write(tmp_path / "shared.pt", TWO + mapping(items) + b".", {"0": bytes(4000)})
    with pytest.raises(ModelError, match=r"200 tensors of 800,000 bytes share 4,000 that are stored"):
        read_weights(path)


def test_a_tensor_of_thousands_of_dimensions_is_refused(tmp_path):
    data = TWO + mapping({"w": tensor(storage("0", "float32", 6), (1,) * 5000, (1,) * 5000)}) + b"."
    assert "5000 sizes" in refusal(write(tmp_path / "a.pth", data, {"0": ARRAY.tobytes()}))


def test_a_member_that_is_not_there_is_named(tmp_path):
    data = TWO + mapping({"w": tensor(storage("../../secret", "float32", 6), (2, 3), (3, 1))}) + b"."
    assert "no member 'archive/data/../../secret'" in refusal(write(tmp_path / "a.pth", data, {}))


def test_a_packed_member_is_refused_so_that_no_member_can_be_larger_than_the_file(tmp_path):
    bomb = {"0": bytes(50_000_000)}
    data = TWO + mapping({"w": tensor(storage("0", "float32", 12_500_000), (12_500_000,), (1,))}) + b"."
    path = write(tmp_path / "a.pth", data, bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "is packed" in refusal(path)


def test_members_that_lie_over_each_other_are_refused(tmp_path):
    path = save(tmp_path / "a.pth", {"w": np.zeros(1000, np.float32)})
    with zipfile.ZipFile(path) as file:
        infos = file.infolist()
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[content.index(b"archive/data/0", start) - 46 : end]
    entry = entry[: 46 + len("archive/data/0")]
    many = b"".join(entry.replace(b"data/0", b"data/%d" % i) for i in range(2, 8))
    tail = bytearray(content[end:])
    count = len(infos) + 6
    tail[8:12] = count.to_bytes(2, "little") * 2
    tail[12:16] = (end - start + len(many)).to_bytes(4, "little")
    path.write_bytes(content[:end] + many + bytes(tail))
    assert "lie over each other" in refusal(path)


def test_a_changed_byte_of_a_storage_is_found(tmp_path):
    path = save(tmp_path / "a.pth", {"w": ARRAY})
    content = bytearray(path.read_bytes())
    content[content.index(ARRAY.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert "Bad CRC-32" in refusal(path)


def test_every_truncation_is_refused(tmp_path):
    whole = save(tmp_path / "a.pth", {"w": ARRAY}).read_bytes()
    path = tmp_path / "b.pth"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(path)


def test_every_truncation_of_the_pickle_is_refused():
    data = TWO + mapping({"w": tensor(storage("0", "float32", 6), (2, 3), (3, 1))}) + b"."
    for length in range(len(data)):
        with pytest.raises(ModelError, match="it is damaged or no state dict's"):
            read_pickle(data[:length], "it")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_pickle_of_any_bytes_is_data_or_refused(data):
    whole = TWO + mapping({"w": tensor(storage("0", "float32", 6), (2, 3), (3, 1))}) + b"."
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        read_pickle(bytes(content), "it")


def test_a_memo_of_a_large_number_takes_no_memory():
    assert read_pickle(TWO + b"Nr\xff\xff\xff\xff.", "it") is None


OTHER_FORMATS = {
    "before 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before version 1.6"),
    "a tar archive": (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
    "a plain pickle": (pickle.dumps({"w": 1}), "plain pickle"),
    "nothing": (b"", "neither a whole safetensors file"),
    "text": (b"weights = 3\n" * 9, "neither a whole safetensors file"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_is_named(tmp_path, name):
    content, message = OTHER_FORMATS[name]
    (tmp_path / "a.pth").write_bytes(content)
    found = refusal(tmp_path / "a.pth")
    assert message in found
    assert ("weights_only=True" in found) == (b"\x80" in content[:1] or b"ustar" in content)


def test_programs_and_other_archives_are_refused(tmp_path):
    script = write(tmp_path / "a.pth", TWO + b"}.", {}, extra=[("archive/constants.pkl", TWO + b").")])
    assert "TorchScript" in refusal(script)
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as file:
        file.writestr("notes.txt", "nothing")
    assert "without NAME/data.pkl" in refusal(tmp_path / "b.pth")


def test_numbers_of_any_length_are_read():
    assert read_pickle(TWO + number(2**62) + b".", "it") == 2**62
