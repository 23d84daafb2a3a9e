"""Lets code that asks for "cuda" run on a CPU that the operator has declared a stand-in (``--cpu-fallback``).

An import hook patches torch right after its import, before user code touches it, for the whole process and all threads.
Devices called "cuda" become the CPU and half precision becomes float32, which CPUs compute several times faster.
``torch.cuda.is_available()`` stays False: code that asks first hears the truth. What has no meaning without a GPU
(streams, device properties, custom kernels) is left as it is and fails with torch's own message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

from fal._runner.after_import import after_import

#: Factories with a ``device`` argument that torch's own list of constructors leaves out.
_MORE_FACTORIES = (
    "empty_like", "full_like", "normal", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like",
)  # fmt: skip
_TENSOR_FACTORIES = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
#: Housekeeping of a GPU's memory and queue, called by code that never asked whether there is a GPU.
_NOTHING_TO_DO = (
    "empty_cache", "ipc_collect", "reset_accumulated_memory_stats", "reset_max_memory_allocated",
    "reset_max_memory_cached", "reset_peak_memory_stats", "set_device", "synchronize",
)  # fmt: skip


def install_on_import(stands_for: str, log: Callable[[str], None]) -> None:
    """Patch torch as soon as it is imported.

    Args:
        stands_for: machine type that this CPU stands in for, such as ``GPU-A100``.
        log: gets one line when the patch is made.
    """

    def patch(torch: ModuleType) -> None:
        if install(torch):
            log(f"no GPU here: the CPU stands in for {stands_for}; 'cuda' is the CPU and float16 is float32 (slow)")

    after_import("torch", patch)


def install(torch: Any) -> bool:
    """Patch an imported torch; False when it has a usable GPU and nothing was done."""
    if torch.cuda.is_available():
        return False
    # Torch caches its set of factories on first use. Filled after the patch it would hold the wrappers, and
    # `with torch.device("meta")` would no longer recognise what C code calls: models then load uninitialised weights.
    factories = set(import_module("torch.utils._device")._device_constructors())
    mapping = _Mapping(torch)
    for owner in (torch, torch.fft):
        for name, function in list(vars(owner).items()):
            if name in _MORE_FACTORIES or (callable(function) and _is_in(function, factories)):
                _replace(owner, name, mapping.factory(function))
    for name in _TENSOR_FACTORIES:
        _replace(torch.Tensor, name, mapping.factory(getattr(torch.Tensor, name)))
    _patch_moves(torch, mapping)
    _patch_loading(torch, mapping)
    _patch_defaults(torch, mapping)
    _patch_generator(torch, mapping)
    _patch_cuda_module(torch.cuda)
    return True


def _is_in(function: Any, factories: set[Any]) -> bool:
    try:
        return function in factories
    except TypeError:
        return False  # unhashable


def _replace(owner: Any, name: str, wrapper: Any) -> None:
    original = getattr(owner, name)
    setattr(owner, name, wrapper)
    # torch.jit.script knows builtins by identity.
    builtins = import_module("torch.jit._builtins")
    known = builtins._find_builtin(original)
    if known is not None:
        builtins._register_builtin(wrapper, known)


class _Mapping:
    """What "cuda" and half precision become."""

    def __init__(self, torch: Any) -> None:
        self.half = (torch.float16, torch.bfloat16)
        self.full = torch.float32
        self.cpu = torch.device("cpu")
        self._device_type = torch.device

    def is_cuda(self, value: Any) -> bool:
        if isinstance(value, str):
            return value == "cuda" or value.startswith("cuda:")
        if isinstance(value, self._device_type):
            return bool(value.type == "cuda")
        return isinstance(value, int) and not isinstance(value, bool)  # an index always means a GPU

    def device(self, value: Any) -> Any:
        return self.cpu if value is not None and self.is_cuda(value) else value

    def factory(self, function: Any) -> Any:
        """``function`` with its keyword ``device`` mapped, and its dtype with it."""

        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is None or not self.is_cuda(device):
                return function(*args, **kwargs)
            kwargs["device"] = self.cpu
            if kwargs.get("dtype") in self.half:
                kwargs["dtype"] = self.full
            return self.lifted(function(*args, **kwargs))  # the dtype may come from another tensor

        return make

    def move_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, list[Any], dict[str, Any]]:
        """Arguments of a ``.to(...)``: whether they name a GPU, and what they become."""
        to_cuda = any(self.is_cuda(value) for value in args[:1]) or self.is_cuda(kwargs.get("device"))
        if not to_cuda:
            return False, list(args), kwargs
        new_args = [self.cpu if index == 0 and self.is_cuda(value) else value for index, value in enumerate(args)]
        new_args = [self.full if value in self.half else value for value in new_args] if len(args) > 1 else new_args
        new_kwargs = {**kwargs}
        if "device" in kwargs:
            new_kwargs["device"] = self.cpu
        if kwargs.get("dtype") in self.half:
            new_kwargs["dtype"] = self.full
        return True, new_args, new_kwargs

    def lifted(self, tensor: Any) -> Any:
        return tensor.float() if tensor.dtype in self.half else tensor


def _patch_moves(torch: Any, mapping: _Mapping) -> None:
    tensor_to, module_to = torch.Tensor.to, torch.nn.Module.to
    to_empty = torch.nn.Module.to_empty

    @functools.wraps(tensor_to)
    def move_tensor(self: Any, *args: Any, **kwargs: Any) -> Any:
        to_cuda, args_, kwargs_ = mapping.move_arguments(args, kwargs)
        moved = tensor_to(self, *args_, **kwargs_)
        return mapping.lifted(moved) if to_cuda else moved

    @functools.wraps(module_to)
    def move_module(self: Any, *args: Any, **kwargs: Any) -> Any:
        to_cuda, args_, kwargs_ = mapping.move_arguments(args, kwargs)
        moved = module_to(self, *args_, **kwargs_)
        return moved._apply(mapping.lifted) if to_cuda else moved

    @functools.wraps(to_empty)
    def move_empty(self: Any, *, device: Any, **kwargs: Any) -> Any:
        return to_empty(self, device=mapping.device(device), **kwargs)

    def lifting(original: Any, lift: Callable[[Any], Any]) -> Any:
        @functools.wraps(original)
        def lifted(self: Any, *args: Any, **kwargs: Any) -> Any:
            return lift(self)

        return lifted

    def lift_module(module: Any) -> Any:
        return module._apply(mapping.lifted)

    torch.Tensor.to, torch.nn.Module.to, torch.nn.Module.to_empty = move_tensor, move_module, move_empty
    torch.Tensor.cuda = lifting(torch.Tensor.cuda, mapping.lifted)
    torch.Tensor.pin_memory = lifting(torch.Tensor.pin_memory, lambda tensor: tensor)
    # A model that is made half after it was moved must stay what its inputs became.
    for name in ("cuda", "half", "bfloat16"):
        setattr(torch.nn.Module, name, lifting(getattr(torch.nn.Module, name), lift_module))


def _patch_loading(torch: Any, mapping: _Mapping) -> None:
    def loading(function: Any) -> Any:
        @functools.wraps(function)
        def load(source: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
            # Without a place, tensors saved on a GPU would ask for one.
            if map_location is None or isinstance(map_location, str | torch.device):
                map_location = mapping.device(map_location) or mapping.cpu
            elif isinstance(map_location, dict):
                map_location = {key: mapping.device(value) for key, value in map_location.items()}
            return function(source, map_location, *args, **kwargs)

        return load

    torch.load = loading(torch.load)
    torch.jit.load = loading(torch.jit.load)


def _patch_defaults(torch: Any, mapping: _Mapping) -> None:
    """``with torch.device("cuda")`` and ``torch.set_default_device("cuda")``."""
    context = import_module("torch.utils._device").DeviceContext
    set_up, set_default = context.__init__, torch.set_default_device

    @functools.wraps(set_up)
    def init(self: Any, device: Any) -> None:
        set_up(self, mapping.device(device))

    @functools.wraps(set_default)
    def default(device: Any) -> None:
        set_default(mapping.device(device))

    context.__init__ = init
    torch.set_default_device = default


def _patch_generator(torch: Any, mapping: _Mapping) -> None:
    real = torch.Generator

    class _LikeGenerator(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

    class Generator(metaclass=_LikeGenerator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return real(mapping.device(device))

    Generator.__doc__ = real.__doc__
    torch.Generator = Generator


def _patch_cuda_module(cuda: Any) -> None:
    for name in _NOTHING_TO_DO:
        if hasattr(cuda, name):
            setattr(cuda, name, _answering(getattr(cuda, name), lambda: None))
    cuda.current_device = _answering(cuda.current_device, lambda: 0)
    cuda.device = _answering(cuda.device, nullcontext)


def _answering(original: Any, answer: Callable[[], Any]) -> Any:
    """A function in place of ``original``; one each, because torch's compiler keeps a table by identity."""

    @functools.wraps(original, updated=())
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return answer()

    return replacement
