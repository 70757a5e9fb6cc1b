"""The encoder's blocks and the layers of memory attention through ``torch.compile``.

What is compiled are functions of tensors alone; routing, memory and bookkeeping stay as they are. How many
tokens are computed and how many keys are read changes from frame to frame, so these sizes are symbols of the
compiled code: no size is padded, no mask is needed, results are eager's up to rounding, and nothing is
compiled again once every kind of block has met a routed frame. Blocks of the same shapes share their code.
On a CPU packed products and measured attention are kept; compiled code calls them as opaque operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from probes.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

VARIANTS = 128
"""Compiled forms of one function: one for each width of each model and number format in the process."""

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@contextmanager
def compiled_parts() -> Iterator[None]:
    """Run compiled what is `compilable`, for the length of the context."""
    token = _compiling.set(True)
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        _compiling.reset(token)


def compilable(function: Function) -> Function:
    """Let a function run compiled inside `compiled_parts`.

    All sizes of its tensors but the last one may vary from call to call; so may those of tensors in
    dataclasses among its arguments.
    """

    @cache
    def compiled() -> Any:
        return torch.compile(function, dynamic=False, fullgraph=True)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _compiling.get() or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            _let_vary(value)
        return compiled()(*args, **kwargs)

    return run  # type: ignore[return-value]


def _let_vary(value: Any) -> None:
    if isinstance(value, Tensor):
        for dim in range(max(1, value.ndim - 1)):
            torch._dynamo.maybe_mark_dynamic(value, dim)
    elif is_dataclass(value):
        for field in fields(value):
            _let_vary(getattr(value, field.name))


def check_compiler(device: torch.device) -> None:
    """Refuse a machine on which torch can't compile.

    Raises
    ------
    InputError
        There is no C++ compiler for a CPU, or no Triton for a GPU.
    """
    what = "a compiled predictor was asked for"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise InputError(
                f"{what}; expected Triton, which torch compiles with on a GPU; install triton, or leave "
                "compilation out"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            f"{what}; expected a C++ compiler, which torch compiles with on a CPU; install g++ or name a "
            "compiler in CXX, or leave compilation out"
        ) from None
