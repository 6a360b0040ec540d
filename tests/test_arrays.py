# SPDX-License-Identifier: MIT
"""Arrays of other libraries: read, made, refused, freed."""

import gc
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import _dlpack
from deepep_ptx._call import Call
from deepep_ptx._torch import Torch
from deepep_ptx.arrays import BFLOAT16, FLOAT32, HOST, INT32, INT64, dlpack
from deepep_ptx.arrays.device_array import Device
from deepep_ptx.arrays.dtypes import (
    BY_NAME,
    DLPACK,
    FLOAT4_X2,
    ROW_CODES,
    code_of,
    name_of,
    name_of_code,
    values_of,
    why_unknown,
)
from deepep_ptx.arrays.library import library_of
from deepep_ptx.arrays.streams import stream_number
from tests.array_libraries import Capsule, Exporter


class Owner:
    """Something to keep, with an end that can be seen."""


class FakeCuda:
    """As much of the cuda executor as reading arrays needs."""

    name = "cuda"
    device = 0
    in_host_memory = False
    takes_streams = True

    def __init__(self, device_of=-1):
        self.found = device_of
        self.waits = []

    def device_of(self, address):
        return self.found

    def stream_wait(self, waiter, waited):
        self.waits.append((waiter, waited))


class FakeEmu:
    device_name = "CPU executor"
    in_host_memory = True
    takes_streams = False


class GpuArray:
    """Device memory as `__cuda_array_interface__` shows it, at an address that nobody reads."""

    def __init__(self, shape, dtype, address=0x7000000, **changes):
        self.dtype = np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "version": 3, "shape": shape, "typestr": self.dtype.str, "data": (address, False),
            "strides": None, **changes}


def gpu_capsule(shape, dtype, device=0, address=0x7000000, device_type=_dlpack.CUDA):
    """The same as DLPack shows it."""
    code = DLPACK[np.dtype(dtype)]
    seen = []

    def make(stream=None, **_):
        seen.append(stream)
        return _dlpack.export(Owner(), address, shape, *code, device_type, device)

    array = Capsule(make, (device_type, device))
    array.streams = seen
    return array


def take(value, executor=None, dtypes=None, shape=None, stream=None, name="x"):
    """`value` as the first argument of a call."""
    call = Call(executor or FakeEmu(), value, name, stream)
    array = call.library.take(value, name, call.stream)
    return call.take(value, name, dtypes or (array.dtype,), shape or array.shape)


def filled(dtype):
    """A [3, 5] array of all kinds of bytes."""
    bits = np.arange(15 * dtype.itemsize, dtype=np.uint8).reshape(3, -1)
    return bits % 2 == 0 if dtype == np.bool_ else bits.view(dtype)


# -- reading host memory ----------------------------------------------------------------------

@pytest.mark.parametrize("name", BY_NAME)
def test_numpy_arrays_are_taken_in_place(name):
    array = filled(BY_NAME[name])
    taken = take(array)
    assert (taken.address, taken.shape, taken.dtype) == (array.ctypes.data, (3, 5), array.dtype)
    assert taken.nbytes == array.nbytes and taken.device == HOST and taken.contiguous
    assert taken.location == "host"


def test_array_interface_is_taken_in_place():
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    taken = take(Exporter(array))
    assert (taken.address, taken.shape) == (array.ctypes.data, (4, 6))


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("name", [name for name, dtype in BY_NAME.items() if dtype in DLPACK])
def test_dlpack_round_trip(name, versioned):
    array = filled(BY_NAME[name])
    exporter = Capsule(lambda **_: dlpack.export(array, array.ctypes.data, array.shape,
                                                 array.dtype, HOST, versioned))
    taken = take(exporter)
    assert (taken.address, taken.shape, taken.dtype) == (array.ctypes.data, (3, 5), array.dtype)
    assert taken.contiguous


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("name", ["int8", "int64", "uint16", "float16", "float32", "bool"])
def test_numpy_reads_our_capsules(name, versioned):
    array = filled(BY_NAME[name])
    seen = np.from_dlpack(Capsule(lambda **_: dlpack.export(
        array, array.ctypes.data, array.shape, array.dtype, HOST, versioned)))
    assert seen.ctypes.data == array.ctypes.data and seen.dtype == array.dtype
    np.testing.assert_array_equal(seen, array)


def test_producers_without_versions_are_taken():
    class Old(Capsule):
        def __dlpack__(self, stream=None):
            return self.make()

    array = np.arange(6, dtype=np.int32)
    taken = take(Old(lambda: array.__dlpack__()))
    assert taken.address == array.ctypes.data


@pytest.mark.parametrize(("view", "contiguous"), [
    (lambda a: a[:, ::2], False),
    (lambda a: a[::2], False),
    (lambda a: a.T, False),
    (lambda a: a[1:], True),
    (lambda a: a[1:2, 3:], True),
    (lambda a: a[:0, ::2], True),
])
@pytest.mark.parametrize("wrap", [lambda a: a, Exporter,
                                  lambda a: Capsule(lambda **_: a.__dlpack__())])
def test_strides(wrap, view, contiguous):
    array = view(np.arange(24, dtype=np.int32).reshape(4, 6))
    call = Call(FakeEmu(), wrap(array), "x")
    assert call.library.take(wrap(array), "x", 0).contiguous == contiguous
    if not contiguous:
        with pytest.raises(ValueError, match=r"^x: must be C-contiguous"):
            take(wrap(array))


# -- capsules and owners ----------------------------------------------------------------------

def capsule_of(owner, versioned=False):
    return _dlpack.export(owner, 0x1000, (2, 3), 0, 32, 1, _dlpack.CPU, 0, versioned)


@pytest.mark.parametrize("versioned", [False, True])
def test_a_capsule_is_taken_once_and_freed_once(versioned):
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = capsule_of(owner, versioned)
    del owner
    tensor = _dlpack.Imported(capsule)
    with pytest.raises(BufferError, match="used before"):
        _dlpack.Imported(capsule)
    del capsule
    assert alive() is not None
    assert (tensor.address, tensor.shape, tensor.strides) == (0x1000, (2, 3), (3, 1))
    del tensor
    assert alive() is None


@pytest.mark.parametrize("versioned", [False, True])
def test_an_unused_capsule_frees_its_owner(versioned):
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = capsule_of(owner, versioned)
    del owner
    assert alive() is not None
    del capsule
    assert alive() is None


def test_a_tensor_may_end_in_another_thread():
    owner = Owner()
    alive = weakref.ref(owner)
    tensors = [_dlpack.Imported(capsule_of(owner))]
    del owner
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert alive() is None


def test_what_is_no_capsule():
    with pytest.raises(BufferError, match="not a DLPack capsule"):
        _dlpack.Imported(object())
    with pytest.raises(BufferError, match="at most 32 dimensions"):
        _dlpack.export(Owner(), 0, (1,) * 33, 0, 32, 1, _dlpack.CPU, 0)


def test_says_why_an_export_fails():
    def refuse(**_):
        raise BufferError("requires grad")

    with pytest.raises(TypeError, match=r"^x: .*Capsule does not export its memory: requires grad"):
        take(Capsule(refuse))


def test_unknown_types_and_devices_of_dlpack():
    def capsule(*code):
        return Capsule(lambda **_: _dlpack.export(Owner(), 0x1000, (2,), *code, _dlpack.CPU, 0))

    with pytest.raises(TypeError, match=r"^x: DLPack type code 2 with 32 bits and 4 lanes is not "
                       r"known$"):
        take(capsule(2, 32, 4))
    for code in ((17, 4, 1), (0, 4, 1), (15, 6, 4)):
        with pytest.raises(TypeError, match=rf"^x: DLPack type code {code[0]} .* is not known; "
                           r"pack the values, several in a byte, and give the bytes as uint8$"):
            take(capsule(*code))
    with pytest.raises(BufferError, match=r"DLPack has no name for >f4"):
        dlpack.export(Owner(), 0x1000, (2,), np.dtype(">f4"), HOST)
    with pytest.raises(TypeError, match=r"^x: .* memory of DLPack device type 10; taken are host"):
        take(gpu_capsule((2,), np.int32, device_type=10))


# -- torch ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", BY_NAME)
def test_torch_round_trip(torch, name):
    if not hasattr(torch, name):
        pytest.skip(f"torch has no {name}")
    array = filled(BY_NAME[name])
    library = library_of(torch.empty(0), "x")
    tensor = library.part(FakeEmu(), MemoryOf(array), 0, array.shape, array.dtype)
    assert tensor.dtype is getattr(torch, name) and tensor.data_ptr() == array.ctypes.data
    taken = take(tensor)
    assert (taken.address, taken.shape, taken.dtype) == (array.ctypes.data, (3, 5), array.dtype)
    exported = dlpack.take(tensor, "x")
    assert (exported.address, exported.dtype) == (taken.address, taken.dtype)


class MemoryOf:
    """A slot over a NumPy array."""

    def __init__(self, array):
        self.array = array
        self.address = array.ctypes.data
        self.nbytes = array.nbytes


def test_a_tensor_keeps_its_slot(torch):
    slot = MemoryOf(np.arange(6, dtype=np.int32))
    alive = weakref.ref(slot)
    library = library_of(torch.empty(0), "x")
    tensor = library.part(FakeEmu(), slot, 4, (2, 2), INT32)
    del slot
    row = tensor[1]
    del tensor
    gc.collect()
    assert alive() is not None and row.tolist() == [3, 4]
    del row
    assert alive() is None


def test_torch_tensors_that_are_taken(torch):
    needs_grad = torch.zeros(2, 3, requires_grad=True)
    assert take(needs_grad).address == needs_grad.data_ptr()
    assert take(torch.nn.Parameter(needs_grad)).shape == (2, 3)
    with torch.inference_mode():
        assert take(torch.zeros(2, 3)).nbytes == 24
    assert take(torch.zeros(0, 3)).nbytes == 0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda t: t.zeros(2, dtype=t.uint8).view(t.int4), TypeError, "x: dtype torch.int4 is not ta"),
    (lambda t: t.zeros(2, dtype=t.uint8).view(t.uint7), TypeError, "x: dtype torch.uint7 is not "),
    (lambda t: t.zeros(2, dtype=t.uint8).view(t.bits8), TypeError, "x: dtype torch.bits8 is not "),
    (lambda t: t.quantize_per_tensor(t.zeros(2), 0.1, 0, t.quint8), TypeError,
     "x: dtype torch.quint8 is not taken, DLPack has no name for it; give quantized values as th"),
    (lambda t: t.zeros(2, dtype=t.complex64).conj(), TypeError, "x: must be a dense tensor"),
    (lambda t: t._efficientzerotensor((2,)), TypeError, "x: torch.Tensor has no memory"),
    (lambda t: t._to_functional_tensor(t.zeros(2)), TypeError, "x: torch.Tensor has no memory"),
    (lambda t: t.zeros(2, device="meta"), TypeError, "x: torch tensor on meta"),
    (lambda t: t.eye(3).to_sparse(), TypeError, "x: must be a dense tensor"),
    (lambda t: t.zeros(1, dtype=t.complex64).conj().imag, TypeError, "x: must be a dense tensor"),
    (lambda t: t.zeros(4, 6)[:, ::2], ValueError, "x: must be C-contiguous"),
    (lambda t: t.zeros(4, 6).T, ValueError, "x: must be C-contiguous"),
])
def test_torch_tensors_that_are_refused(torch, make, error, text):
    tensor = make(torch)
    with pytest.raises(error) as caught:
        take(tensor, dtypes=(FLOAT32,), shape=tuple(tensor.shape))
    assert str(caught.value).startswith(text)


def test_a_torch_without_functions_of_dlpack(torch):
    class Older:
        Tensor = object

        def __getattr__(self, name):
            return getattr(torch, name)

    older, newer = Torch(Older()), library_of(torch.empty(0), "x")
    for tensor in (torch.zeros(2, 3), torch.zeros(4, 1, dtype=torch.bool), torch.zeros(0, 3),
                   torch.zeros(2, 8, dtype=torch.bfloat16)[:, ::2]):
        old, new = (library.take(tensor, "x", 0) for library in (older, newer))
        assert old.owner is new.owner is tensor
        for field in ("address", "shape", "dtype", "nbytes", "device", "contiguous", "strides"):
            assert getattr(old, field) == getattr(new, field), field


def nested(torch):
    return torch.nested.nested_tensor([torch.zeros(2, 8), torch.zeros(3, 8)])


def jagged(torch):
    return torch.nested.nested_tensor([torch.zeros(2, 8), torch.zeros(3, 8)], layout=torch.jagged)


def masked(torch):
    return torch.masked.masked_tensor(torch.zeros(2, 8), torch.ones(2, 8, dtype=torch.bool))


def fake(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2, 3)


def wrapped(torch):
    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("nothing is to be done with it")

    return torch.zeros(2, 8).as_subclass(Wrapped)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:The PyTorch API of Masked")
@pytest.mark.parametrize(("make", "text"), [
    (nested, "topk_idx: must be a dense tensor, got a nested one"),
    (jagged, "topk_idx: torch.nested._internal.nested_tensor.NestedTensor is not taken"),
    (masked, "topk_idx: torch.masked.maskedtensor.core.MaskedTensor is not taken"),
    (fake, "topk_idx: torch._subclasses.fake_tensor.FakeTensor is not taken"),
    (wrapped, "Wrapped is not taken, it is a subclass that gives its memory a meaning of its own"),
])
def test_tensors_that_are_more_than_their_memory_are_refused(torch, make, text):
    tensor = make(torch)
    for first in (torch.zeros(2), tensor):      # whether it says of which library the call is
        with pytest.raises(TypeError) as caught:
            call = Call(FakeEmu(), first, "topk_idx")
            call.take(tensor, "topk_idx", None, (2, 8))
        assert str(caught.value).startswith("topk_idx: ") and text in str(caught.value)


def test_subclasses_of_tensors_that_are_their_memory(torch):
    class Tagged(torch.Tensor):
        pass

    plain = torch.arange(6.0).reshape(2, 3)
    for tensor in (plain.as_subclass(Tagged), torch.nn.Parameter(plain), torch.nn.Buffer(plain)):
        assert take(tensor).address == plain.data_ptr()
    with pytest.raises(TypeError, match=r"^x: torch.nn.*UninitializedParameter has no memory"):
        take(torch.nn.UninitializedParameter(), dtypes=(FLOAT32,), shape=(2, 3))


# -- masks and subclasses of NumPy ------------------------------------------------------------

class Masked(Exporter):
    """An array that says by `__array_interface__` which of its values are none."""

    def __init__(self, array):
        super().__init__(array)
        self.__array_interface__ = self.__array_interface__ | {"mask": np.ones(array.shape, bool)}


@pytest.mark.parametrize("make", [
    lambda a: np.ma.array(a, mask=a > 2), lambda a: np.ma.array(a), Masked,
])
def test_masked_arrays_are_refused(make):
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    for first in (array, make(array)):
        with pytest.raises(TypeError, match=r"^topk_idx: must have no mask, got "
                           r"(numpy\.ma(\.core)?\.MaskedArray|.*test_arrays\.Masked); "):
            Call(FakeEmu(), first, "topk_idx").take(make(array), "topk_idx", None, (2, 3))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_of_numpy_that_are_their_memory(tmp_path):
    class Tagged(np.ndarray):
        pass

    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(2, 3))
    for array in (plain.view(Tagged), plain.view(np.matrix), plain.view(np.recarray), file):
        taken = take(array)
        assert (taken.address, taken.shape, taken.dtype) == (array.ctypes.data, (2, 3), FLOAT32)


@pytest.mark.parametrize("dtype", [">f4", "M8[ns]", "m8[s]", "O", "S16", [("a", "f4")],
                                   "longdouble"])
def test_dtypes_that_no_argument_has(dtype):
    assert np.dtype(dtype) not in ROW_CODES


def test_names_of_one_dtype_are_one():
    for name in ("longlong", "l", "q", "int64"):
        assert ROW_CODES[np.dtype(name)] == ROW_CODES[INT64]
    assert ROW_CODES[np.dtype("f4", metadata={"unit": "m"})] == ROW_CODES[FLOAT32]


def test_codes_of_types_and_pairs():
    codes = {code_of(dtype): name for name, dtype in BY_NAME.items()}
    assert len(codes) == len(BY_NAME) and all(0 < code < 1 << 16 for code in codes)
    for code, name in codes.items():
        assert name_of_code(code) == name
        assert name_of_code(code_of(FLOAT32, BY_NAME[name])) == f"float32 with {name} scales"
    assert name_of_code(0x7f7f) == "type 0x7f7f"


def test_types_of_less_than_a_byte_are_known_as_such():
    for name in ("int4", "uint4"):
        assert "has a value of 4 bits in each 8; pack them" in why_unknown(
            np.dtype(getattr(ml_dtypes, name)))
    assert why_unknown(np.dtype("M8[ns]")).startswith("must be a number's")


def test_types_that_numpy_has_no_name_for(torch):
    library = library_of(torch.empty(0), "x")
    assert library.dtype_of(torch.float4_e2m1fn_x2) == FLOAT4_X2
    assert name_of(FLOAT4_X2) == "float4_e2m1fn_x2" and values_of(FLOAT4_X2) == 2
    assert np.dtype("V1") != FLOAT4_X2 and FLOAT4_X2.itemsize == 1
    assert library.dtype_of(torch.int4) is None and library.dtype_of(torch.bits16) is None


def test_a_type_that_is_new_to_numpy(torch, monkeypatch):
    """What DLPack gives back as the same is taken, by whatever name."""
    from deepep_ptx.arrays import dtypes

    gone = dtypes.BY_NAME["float8_e5m2fnuz"]
    for table in (dtypes.BY_NAME, dtypes.DLPACK, dtypes.FROM_DLPACK, dtypes.ROW_CODES):
        for key, value in list(table.items()):
            if key in (gone, gone.name) or value is gone:
                monkeypatch.delitem(table, key)
    library = Torch(torch)
    found = library.dtype_of(torch.float8_e5m2fnuz)
    try:
        assert found is not gone and found.itemsize == 1
        assert name_of(found) == "float8_e5m2fnuz"
        tensor = torch.arange(6, dtype=torch.uint8).view(torch.float8_e5m2fnuz)
        assert library.take(tensor, "x", 0).dtype == found
        slot = MemoryOf(np.arange(6, dtype=np.uint8))
        made = library.part(FakeEmu(), slot, 0, (2, 3), found)
        assert made.dtype is torch.float8_e5m2fnuz
    finally:
        for table in (dtypes.DLPACK, dtypes.FROM_DLPACK, dtypes.ROW_CODES):
            for key, value in list(table.items()):
                if key is found or value is found:
                    del table[key]


def test_the_package_does_not_import_torch():
    code = ("import sys, numpy, deepep_ptx, deepep_ptx.buffer; from deepep_ptx._call import Call; "
            "executor = type('E', (), {'in_host_memory': True, 'takes_streams': False}); "
            "Call(executor, numpy.zeros(3), 'x'); "
            "sys.exit('torch' in sys.modules or 'cupy' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- where arrays may be ----------------------------------------------------------------------

def torch_tensor(shape, dtype):
    torch = pytest.importorskip("torch")
    return torch.zeros(shape, dtype=getattr(torch, np.dtype(dtype).name))


GPU = pytest.param(lambda: GpuArray((2, 3), np.float32), id="interface")
GPU_DLPACK = pytest.param(lambda: gpu_capsule((2, 3), np.float32), id="dlpack")


@pytest.mark.parametrize("make", [GPU, GPU_DLPACK])
def test_emu_refuses_gpu_arrays(make):
    with pytest.raises(TypeError, match=r"^x: .* (on cuda:0|in device memory); the CPU executor "
                       r"takes arrays in host memory: copy it there, or use executor='cuda'$"):
        take(make())


def test_cuda_refuses_torch_tensors_of_the_cpu():
    tensor = torch_tensor((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"^x: torch.Tensor in host memory; the cuda executor .* "
                       r"move it to cuda:0, or use executor='emu'$"):
        take(tensor, FakeCuda())


def test_cuda_takes_numpy_arrays_for_copies():
    call = Call(FakeCuda(), np.zeros(3), "x")
    assert call.copies and call.take(np.zeros(3), "x", (np.float64,), (3,)).device == HOST
    assert not Call(FakeCuda(), GpuArray((3,), np.float32), "x").copies


def test_another_gpu():
    with pytest.raises(ValueError, match=r"^x: .*Capsule on cuda:1; this rank needs it on cuda:0$"):
        take(gpu_capsule((2, 3), np.float32, device=1), FakeCuda())
    assert take(gpu_capsule((2, 3), np.float32), FakeCuda()).location == ("cuda", 0)


def test_the_driver_says_where_memory_is():
    array = GpuArray((2, 3), np.float32)
    assert take(array, FakeCuda(device_of=0)).address == 0x7000000
    with pytest.raises(ValueError, match=r"^x: .*GpuArray on cuda:1; this rank needs it on cuda:0"):
        take(array, FakeCuda(device_of=1))
    with pytest.raises(ValueError, match=r"^x: 0x7000000 is not memory of a GPU .* was freed"):
        take(array, FakeCuda(device_of=-1))
    assert take(GpuArray((0, 3), np.float32, address=0), FakeCuda()).nbytes == 0


# -- __cuda_array_interface__ -----------------------------------------------------------------

def test_interface_dtypes():
    cuda = FakeCuda(device_of=0)
    assert take(GpuArray((2,), np.int64), cuda).dtype == np.int64
    assert take(GpuArray((2,), BFLOAT16), cuda).dtype == BFLOAT16
    opaque = GpuArray((2,), BFLOAT16)
    del opaque.dtype
    assert take(opaque, cuda).dtype == np.dtype("V2")


def test_interface_strides_and_masks():
    cuda = FakeCuda(device_of=0)
    assert take(GpuArray((2, 3), np.int32, strides=(12, 4)), cuda).contiguous
    with pytest.raises(ValueError, match=r"^x: must be C-contiguous"):
        take(GpuArray((2, 3), np.int32, strides=(4, 8)), cuda)
    with pytest.raises(TypeError, match=r"^x: must have no mask"):
        take(GpuArray((2, 3), np.int32, mask=object()), cuda)


# -- one library a call -----------------------------------------------------------------------

@pytest.mark.parametrize(("first", "second", "text"), [
    (lambda: torch_tensor((2,), np.float32), lambda: np.zeros(2, np.float32),
     "topk_idx: is a NumPy array while x is a torch array; all arrays"),
    (lambda: np.zeros(2, np.float32), lambda: torch_tensor((2,), np.float32),
     "topk_idx: is a torch array while x is a NumPy array; all arrays"),
    (lambda: np.zeros(2, np.float32), lambda: GpuArray((2,), np.float32),
     "topk_idx: is a CUDA array while x is a NumPy array; all arrays"),
])
def test_mixed_libraries(first, second, text):
    call = Call(FakeEmu(), first(), "x")
    with pytest.raises(TypeError) as caught:
        call.take(second(), "topk_idx", (FLOAT32,), (2,))
    assert str(caught.value).startswith(text)


def test_unknown_host_libraries_count_as_numpy():
    call = Call(FakeEmu(), np.zeros(2, np.float32), "x")
    array = np.zeros(2, np.float32)
    assert call.take(Exporter(array), "y", (FLOAT32,), (2,)).address == array.ctypes.data


@pytest.mark.parametrize("value", [None, 3, [1, 2], "x", np.float32(1), np.ndarray, object()])
def test_what_is_no_array(value):
    with pytest.raises(TypeError, match=r"^x: takes a NumPy array, a torch tensor or"):
        Call(FakeEmu(), value, "x")


# -- streams ----------------------------------------------------------------------------------

class CudaStream:
    def __cuda_stream__(self):
        return 0, 77


class TorchStream:
    cuda_stream = 78


class CuPyStream:
    ptr = 79


@pytest.mark.parametrize(("stream", "number"), [
    (0, 0), (1, 0), (2, 2), (1 << 40, 1 << 40), (np.int64(5), 5), (CudaStream(), 77),
    (TorchStream(), 78), (CuPyStream(), 79),
])
def test_stream_numbers(stream, number):
    assert stream_number(stream) == number
    assert Call(FakeCuda(), GpuArray((2,), np.float32), "x", stream).stream == number


@pytest.mark.parametrize(("stream", "of_library", "lasting"), [
    (5, False, False), (5, True, True), (2, True, False),   # 2: another one in each thread
])
def test_streams_that_no_other_is_called_after(monkeypatch, stream, of_library, lasting):
    monkeypatch.setattr(Device, "lasting", of_library)
    slot = SimpleNamespace(lasting=False)
    Call(FakeCuda(), GpuArray((2,), np.float32), "x", stream).show(slot)
    assert slot.lasting is lasting


@pytest.mark.parametrize(("stream", "error"), [
    (1.5, TypeError), ("0", TypeError), (True, TypeError), (object(), TypeError), (-1, ValueError),
])
def test_what_is_no_stream(stream, error):
    for executor, array in ((FakeCuda(), GpuArray((2,), np.float32)), (FakeEmu(), np.zeros(2))):
        with pytest.raises(error, match=r"^stream: must be "):
            Call(executor, array, "x", stream)


def test_emu_has_only_the_default_stream():
    assert Call(FakeEmu(), np.zeros(2), "x", 0).stream == 0
    with pytest.raises(ValueError, match=r"^stream: must be None or 0 on the CPU executor, got 77"):
        Call(FakeEmu(), np.zeros(2), "x", CudaStream())


def test_the_stream_that_an_array_names():
    array = GpuArray((2,), np.float32, stream=7)
    assert Call(FakeCuda(), array, "x").stream == 7
    assert Call(FakeCuda(), GpuArray((2,), np.float32, stream=1), "x").stream == 0
    assert Call(FakeCuda(), GpuArray((2,), np.float32), "x").stream == 0


def test_the_call_waits_for_the_streams_of_all_arrays():
    cuda = FakeCuda(device_of=0)
    call = Call(cuda, GpuArray((2,), np.float32, stream=7), "x")
    for stream in (7, None, 9):
        call.take(GpuArray((2,), np.float32, stream=stream), "y", (FLOAT32,), (2,))
    assert cuda.waits == [(7, 9)]


def test_the_call_waits_for_what_an_earlier_one_made():
    cuda = FakeCuda(device_of=0)
    made = take(GpuArray((2,), np.float32, stream=9), cuda)
    for stream in (9, 7):
        call = Call(cuda, GpuArray((2,), np.float32), "x", stream)
        call.take_again(made, call.library, "handle.pos")
    assert cuda.waits == [(7, 9)]


def test_dlpack_producers_are_told_the_stream():
    for stream, told in ((None, 1), (5, 5)):
        array = gpu_capsule((2,), np.float32)
        call = Call(FakeCuda(), array, "x", stream)
        call.take(array, "x", (FLOAT32,), (2,))
        assert array.streams == [told]


def test_interface_of_an_array_without_dtype_goes_by_dlpack():
    array = gpu_capsule((2, 3), BFLOAT16)
    array.__cuda_array_interface__ = GpuArray((2, 3), BFLOAT16).__cuda_array_interface__
    assert take(array, FakeCuda()).dtype == BFLOAT16
