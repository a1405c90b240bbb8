"""Numbers from the simulated NPU.

The stand-ins give out host memory as device memory, and their kernels do nothing. Under `OnHost` every operator that
reaches the device is instead run on CPU tensors that share its operands' memory. What comes before stays torch_npu's
own: schemas, argument checks, defaults, autograd formulas, device placement. Operators of torch_npu that the CPU does
not have are run by `references.py`. Collectives run on the gloo half of the process group.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from simulation import references

# They touch no element, and have to give memory of the device.
_ALLOCATIONS = {
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::set_",
    "aten::resize_",
    "aten::record_stream",
    "aten::is_pinned",
}
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


class OnHost(TorchDispatchMode):
    """Run the kernels of NPU tensors on the host. Refuses float64, which most NPU kernels do not have."""

    def __init__(self, launch: bool = False, largest: int | None = None):
        """launch: also launch the kernel that does nothing, for the trace and for the checks in front of it.

        largest: operators on a tensor of more elements, and collectives, are launched only: what they give is undefined.
        """
        super().__init__()
        self._launch = launch or largest is not None
        self._largest = largest

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        on_npu = device is not None and torch.device(device).type == "npu"
        if not on_npu and not any(_is_npu(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        name = func._schema.name
        if func.is_view or name in _ALLOCATIONS:
            return func(*args, **kwargs)
        collective = name.startswith("c10d::")
        if self._launch and (not collective or self._largest is not None):
            launched = func(*args, **kwargs)
            if collective:
                return launched
            tensors = [leaf for leaf in tree_leaves((args, kwargs, launched)) if isinstance(leaf, Tensor)]
            if self._largest is not None and max(map(Tensor.numel, tensors), default=0) > self._largest:
                return launched
        return self._run(func, name, args, kwargs)

    def _run(self, func, name: str, args, kwargs):
        twins: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the NPU tensor: it, and its memory as a CPU tensor

        def to_host(leaf):
            if isinstance(leaf, torch.device):
                return torch.device("cpu") if leaf.type == "npu" else leaf
            if not _is_npu(leaf):
                return leaf
            if id(leaf) not in twins:
                twins[id(leaf)] = (leaf, host_view(leaf))
            return twins[id(leaf)][1]

        stays_on_host = name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu")
        host_args, host_kwargs = tree_map(to_host, (args, kwargs))
        reference = references.FUNCTIONS.get(name)
        if reference is not None:
            given = {argument.name: value for argument, value in zip(func._schema.arguments, host_args, strict=False)}
            # Dispatch modes work below autograd; references may use it.
            with torch._C._SetExcludeDispatchKeyGuard(_AUTOGRAD, False), torch.no_grad():
                out = reference(**given, **host_kwargs)
        elif func.namespace == "npu":
            raise NotImplementedError(f"{func}: has no reference in tests/npu/simulation/references.py")
        else:
            out = func(*host_args, **host_kwargs)
        originals = {id(twin): tensor for tensor, twin in twins.values()}

        def to_npu(leaf):
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf.dtype == torch.float64 and not stays_on_host:
                raise TypeError(f"{func}: float64 on an NPU")
            if id(leaf) in originals:
                return originals[id(leaf)]
            return leaf if stays_on_host else on_device(leaf.detach())

        return tree_map(to_npu, out)


def host_view(tensor: Tensor) -> Tensor:
    """A CPU tensor that shares the memory of an NPU tensor, and keeps it alive."""
    if tensor.dtype == torch.float64:
        raise TypeError(f"a float64 tensor {list(tensor.shape)} on an NPU")
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    view = torch.empty(0, dtype=tensor.dtype).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
    view._owner = tensor
    return view


def on_device(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor, strides included, in memory of the current NPU."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="npu")
    host_view(copy).copy_(tensor)
    return copy


def _is_npu(leaf) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "npu"
