"""What XLA calls: a typed handler of its foreign function interface that enters a kernel.

The structs of ``xla/ffi/api/c_api.h``, whose layout XLA keeps stable, are read as rows of int64. A
call brings a *plan* as its attribute (:mod:`rims.jax.native.calls`), from which the table of
:mod:`rims.scan.native.table` is filled, and a last result to write into: the job, the tables and
the scratch of the kernel. Blocks are taken by threads of XLA's own pool.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rims.native.build import Code, address_in, machine_code
from rims.native.once import once
from rims.native.simd import kernel

#: Entries of a call's frame, of a buffer, of an array attribute.
_EXTENSION, _FRAME_API, _CONTEXT, _ARGS, _RETS, _ATTRS, _FRAME_FUTURE = 1, 2, 3, 5, 10, 15, 21
_COUNT, _POINTERS, _ATTRIBUTES = 2, 4, 5  # within each of the three; attributes have names
_BUFFER_DATA, _ARRAY_DATA = 3, 2
#: Entries of the API: functions that take the address of their arguments.
_SCHEDULE, _NUM_THREADS, _CREATE_FUTURE, _SET_AVAILABLE, _DESTROY_ERROR = 17, 18, 19, 20, 8

#: The type of the extension that asks for it.
_METADATA = 1
#: The version of the interface this is written for, 0.3, as two int32 in one entry.
_VERSION = 3 << 32

#: Entries of a job: threads that have not finished, what XLA waits for, its API, the kernel.
_PENDING, _FUTURE, _API, _KERNEL = 0, 1, 2, 3
#: Where in a job the table begins.
TABLE = 8
#: Of the form of a plan: XLA may keep programs with plans in them.
PLAN_VERSION = 1

#: Entries at the start of a plan. Behind them: the table; per operand its entry and the bytes of a
#: step; per result its entry; per array of scratch its entry and how far in the job it lies.
SIZE, HELPERS, FIRST, LAST, NUM_SCRATCH, HEADER = 0, 1, 2, 3, 4, 5

_I64 = ir.IntType(64)


def _reader(bits: int) -> Any:
    @intrinsic
    def integers(typingctx: Any, address: Any) -> Any:
        """The integers from an address on."""

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], ir.IntType(bits).as_pointer())

        kind = types.int64 if bits == 64 else types.int32
        return types.CPointer(kind)(types.int64), codegen

    return integers


_at, _int32_at = _reader(64), _reader(32)


@intrinsic
def _address(typingctx: Any, pointer: Any, index: Any) -> Any:
    """The address of an entry."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.gep(args[0], [args[1]]), _I64)

    return types.int64(pointer, types.int64), codegen


@intrinsic
def _call(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call the function at an address with an address; what it returns, if it returns anything."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        shape = ir.FunctionType(_I64, [_I64]).as_pointer()
        return builder.call(builder.inttoptr(args[0], shape), [args[1]])

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _take_one(typingctx: Any, counter: Any) -> Any:
    """Lower a counter by one, and what it was before; orders what threads wrote."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("sub", args[0], _I64(1), "acq_rel")

    return types.int64(counter), codegen


@intrinsic
def _room(typingctx: Any) -> Any:
    """Eight int64 on the stack of the calling function, for the arguments of an API function."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, _I64, size=8)

    return types.CPointer(types.int64)(), codegen


def handle(frame_address: int, kernel: int, helper: int) -> int:
    """Answer a call of XLA by running ``kernel``; 0, which is no error."""
    frame = _at(frame_address)
    if frame[_EXTENSION] != 0 and _tells_version(_at(frame[_EXTENSION])):
        return 0
    rets, last = _at(frame[_RETS + _POINTERS]), frame[_RETS + _COUNT] - 1
    job = _at(_at(rets[last])[_BUFFER_DATA])
    plan = _at(_at(_at(frame[_ATTRS + _ATTRIBUTES])[0])[_ARRAY_DATA])
    job[_FUTURE], job[_API], job[_KERNEL] = 0, frame[_FRAME_API], kernel
    _fill(frame, plan, job)
    helpers = _num_helpers(frame, plan, job)
    job[_PENDING] = 1 + helpers
    frame[_FRAME_FUTURE] = job[_FUTURE]
    for _ in range(helpers):
        _schedule(frame, job, helper)
    _work(job)
    return 0


def help_out(job_address: int) -> None:
    """The part of another thread in a job."""
    _work(_at(job_address))


@kernel
def _work(job: Any) -> None:
    """Run the kernel, which takes blocks until none is left; the last thread tells XLA.

    Whoever is not the last must not touch the job any more: its memory may be gone.
    """
    _call(job[_KERNEL], _address(job, TABLE))
    future, api = job[_FUTURE], job[_API]
    if _take_one(job) == 1 and future != 0:
        arguments = _room()
        arguments[0], arguments[1], arguments[2] = 24, 0, future
        _failed(api, _SET_AVAILABLE, arguments)


@kernel
def _tells_version(extension: Any) -> bool:
    """Answer the question that XLA asks when a handler is registered, if it is asked."""
    if extension[1] & 0xFFFFFFFF != _METADATA:
        return False
    _at(extension[3])[3] = _VERSION
    return True


@kernel
def _fill(frame: Any, plan: Any, job: Any) -> None:
    """Make the table: what the plan knows, addresses of operands, results and scratch."""
    args, num_args = _at(frame[_ARGS + _POINTERS]), frame[_ARGS + _COUNT]
    rets, num_rets = _at(frame[_RETS + _POINTERS]), frame[_RETS + _COUNT] - 1
    size, place = plan[SIZE], HEADER
    for i in range(size):
        job[TABLE + i] = plan[place + i]
    place += size
    first = np.int64(_int32_at(_at(args[0])[_BUFFER_DATA])[0])
    job[TABLE + plan[FIRST]] += first
    job[TABLE + plan[LAST]] += first
    for i in range(1, num_args):
        job[TABLE + plan[place]] = _at(args[i])[_BUFFER_DATA] + first * plan[place + 1]
        place += 2
    for i in range(num_rets):
        job[TABLE + plan[place]] = _at(rets[i])[_BUFFER_DATA]
        place += 1
    for _ in range(plan[NUM_SCRATCH]):
        job[TABLE + plan[place]] = _address(job, 0) + plan[place + 1]
        place += 2


@kernel
def _num_helpers(frame: Any, plan: Any, job: Any) -> int:
    """How many threads to ask for; if any, the job gets a future for XLA to wait for."""
    if plan[HELPERS] < 1:
        return 0
    arguments, api = _room(), frame[_FRAME_API]
    arguments[0], arguments[1], arguments[2] = 32, 0, frame[_CONTEXT]
    arguments[3] = _address(arguments, 4)
    if _failed(api, _NUM_THREADS, arguments):
        return 0
    helpers = min(plan[HELPERS], arguments[4] - 1)
    if helpers < 1:
        return 0
    arguments[0], arguments[1], arguments[2] = 24, 0, 0
    if _failed(api, _CREATE_FUTURE, arguments):
        return 0
    job[_FUTURE] = arguments[2]
    return int(helpers)


@kernel
def _schedule(frame: Any, job: Any, helper: int) -> None:
    """Schedule ``helper`` for the job on XLA's pool."""
    arguments = _room()
    arguments[0], arguments[1], arguments[2] = 40, 0, frame[_CONTEXT]
    arguments[3], arguments[4] = helper, _address(job, 0)
    if _failed(frame[_FRAME_API], _SCHEDULE, arguments):
        _take_one(job)


@kernel
def _failed(api: int, function: int, arguments: Any) -> bool:
    """Call a function of the API; return whether it failed. The error is freed."""
    error = _call(_at(api)[function], _address(arguments, 0))
    if error == 0:
        return False
    arguments[0], arguments[1], arguments[2] = 24, 0, error
    _call(_at(api)[_DESTROY_ERROR], _address(arguments, 0))
    return True


_HANDLE = types.int64(types.int64, types.int64, types.int64)
_HELP_OUT = types.void(types.int64)


@once
def parts() -> tuple[Code, Code]:
    """The machine code of :func:`handle` and :func:`help_out`."""
    folder = Path(__file__).parent
    return (
        machine_code("jax-handle", _HANDLE, handle, folder),
        machine_code("jax-help", _HELP_OUT, help_out, folder),
    )


def entering(kernel_address: int) -> int:
    """The address of a handler that runs the kernel at an address."""
    handle_address, helper = (part.address for part in parts())
    module = ir.Module()
    # A function of a frame alone: the addresses are different in every process.
    bound = ir.Function(module, ir.FunctionType(_I64, [_I64]), "bound")
    builder = ir.IRBuilder(bound.append_basic_block())
    shape = ir.FunctionType(_I64, [_I64] * 3).as_pointer()
    function = builder.inttoptr(_I64(handle_address), shape)
    builder.ret(builder.call(function, [bound.args[0], _I64(kernel_address), _I64(helper)]))
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    return address_in(engine, "bound")
