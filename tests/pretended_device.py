"""A pretended GPU: tensors that say they lie on `cuda:0` and hold their values on the CPU.

Under it the package runs as on a machine with one GPU. What would stop it there stops it here:
tensors of two devices in one operation, a tensor on the device taken for an array, a generator of
another device than what it draws for. `WAITS` tells where the host waited for the device. It cannot
show what kernels CUDA lacks or how they round, speed, memory, bf16, streams, `torch.compile`, NCCL.
"""

import threading
import traceback

import numpy as np
import torch
import torch._dynamo  # it lists torch's functions, and must find none of ours
from torch.optim.optimizer import _foreach_supported_types
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
# Where the host waited for the device: why, and the package's line that asked for it.
WAITS = []
# A copy of so many bytes from memory that is not pinned is taken at once.
SMALL = 2**16

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# Their output's shape, or its value, is read on the host.
READING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount")


class Pretended(torch.Tensor):
    """Torch takes it for a tensor on `meta`: a build without CUDA has no such device."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner):
        size, steps = inner.size(), inner.stride()
        blank = torch.empty_strided(size, steps, dtype=inner.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, blank, False, device_for_backend_keys=DEVICE)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def numpy(self, **how):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() ...")

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        made = Pretended(self.inner.clone()).requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), made)

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)


class Generator(torch._C.Generator):
    """A CPU generator that remembers for which device it was made."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            ON_DEVICE[self._cdata] = self
        return self


# By address, as operations are given another object; kept, or another could have the address.
ON_DEVICE = {}


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Arguments(TorchFunctionMode):
    """Gives a device the index that CUDA would be asked for, and lets lists and arrays index."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            lists = (list, np.ndarray)
            places = tuple(torch.as_tensor(p) if isinstance(p, lists) else p for p in places)
            args = (args[0], places, *args[2:])
        named = {name: with_index(value) for name, value in (kwargs or {}).items()}
        return func(*map(with_index, args), **named)


def with_index(value):
    is_device = isinstance(value, (str, torch.device)) and str(value) == "cuda"
    return DEVICE if is_device else value


def run(func, args, kwargs):
    """Run an operation on the values within, or refuse it as CUDA would."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Dispatch():
            return func.decompose(*args, **kwargs)
    wanted, leaves = kwargs.get("device"), tree_leaves((args, kwargs))
    mine = any(isinstance(x, Pretended) for x in leaves)
    there = mine if wanted is None else wanted.type != "cpu"
    if func is aten.copy_.default:
        there = isinstance(args[0], Pretended)
        count_copy(args[1], there, is_waited_for=True)
    elif func is aten._to_copy.default:
        count_copy(args[0], there, is_waited_for=not kwargs.get("non_blocking"))
    elif mine:
        refuse_mix(func, args, leaves)
        count_reading(func, args)
    for one in leaves:
        if isinstance(one, torch._C.Generator) and (one._cdata in ON_DEVICE) != there:
            raise RuntimeError(f"the generator of {func} is of another device than its output")
    how = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else dict(kwargs)
    is_pinned = how.pop("pin_memory", False)
    outputs = func(*tree_map(inner, args), **tree_map(inner, how))
    if is_pinned:
        outputs.is_pinned_here = True
    if not there:
        return args[0] if func is aten.copy_.default else outputs
    outputs = tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, outputs)
    return return_and_correct_aliasing(func, args, kwargs, outputs) if mine else outputs


def inner(value):
    return value.inner if isinstance(value, Pretended) else value


def is_on_cpu(value):
    return isinstance(value, torch.Tensor) and not isinstance(value, Pretended)


def refuse_mix(func, args, leaves):
    """CUDA takes scalars on the CPU where it works element by element, and indices anywhere."""
    if func in INDEXING:
        leaves = [args[0], *args[2:3]]
    scalars = torch.Tag.pointwise in func.tags or func in (*INDEXING, aten.masked_fill_.Tensor)
    changed = func._schema.is_mutable and is_on_cpu(args[0])
    if changed or any(is_on_cpu(x) and (x.dim() or not scalars) for x in leaves):
        raise RuntimeError(f"Expected all tensors to be on the same device in {func}")


def count_copy(source, there, *, is_waited_for):
    if isinstance(source, Pretended) and not there:
        wait("copied to the host")
    elif is_on_cpu(source) and there:
        taken = getattr(source, "is_pinned_here", False) or source.nbytes <= SMALL
        if is_waited_for or not taken:
            wait("copied to the device")


def count_reading(func, args):
    if func._schema.name.removeprefix("aten::") in READING:
        wait(f"read by {func}")
    if func in INDEXING:
        for index in filter(None.__ne__, args[1]):
            if is_on_cpu(index) or index.dtype == torch.bool:
                wait("indexed by the host, or by a mask")


def wait(why):
    if getattr(Stream.beside, "entered", False):
        return None
    for frame, line in traceback.walk_stack(None):
        _, package, name = frame.f_code.co_filename.rpartition("src/shardsieve/")
        if package:
            return WAITS.append(f"{why} at {name}:{line}")
    return None


def pinned(tensor, device=None):
    copy = tensor.clone()
    copy.is_pinned_here = True
    return copy


class Stream:
    """A CUDA stream or event; what is read in a stream of its own waits for none of the steps."""

    beside = threading.local()

    def __init__(self, stream=None):
        self.record = self.wait = self.wait_stream = lambda *others: None

    def __enter__(self):
        self.beside.entered = True

    def __exit__(self, *error):
        self.beside.entered = False

    def is_capturing(self):
        return False


def install():
    """Pretend in this process, for good."""
    nothing, zero = lambda *args: None, lambda *args: 0
    answers = {"is_available": lambda: True, "device_count": lambda: 1, "_lazy_init": nothing}
    answers |= {"current_device": zero, "is_current_stream_capturing": lambda: False}
    answers |= {"manual_seed_all": nothing, "get_rng_state": lambda *args: torch.get_rng_state()}
    answers |= {"set_rng_state": lambda state, *args: torch.set_rng_state(state)}
    answers |= {"mem_get_info": lambda *args: (2**34, 2**34)}
    answers |= {"Stream": Stream, "Event": Stream, "stream": Stream, "current_stream": Stream}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    answers = {"is_available": lambda: True, "current_accelerator": lambda **how: DEVICE}
    answers |= {"current_stream": Stream, "current_device_index": zero}
    for name, answer in answers.items():
        setattr(torch.accelerator, name, answer)
    torch.Generator, torch.Tensor.pin_memory = Generator, pinned
    _foreach_supported_types.append(Pretended)
    # A module that is moved keeps its parameters, of which optimisers know.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` moves what it made as `to` does
    for mode in (Arguments(), Dispatch()):
        mode.__enter__()
