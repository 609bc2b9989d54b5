"""What the kernels share: pointers from addresses, vectors at the end of a row, and the exponential.

Everything is written once for both dtypes and any vector length; `width` is the machine's unless a caller says otherwise.
"""

from std.math import fma, iota, round
from std.memory import bitcast
from std.sys import masked_load, masked_store, simd_width_of

comptime Place[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin]

comptime LOG2_E = 1.4426950408889634


def place[dtype: DType](address: Int) -> Place[dtype]:
    return Place[dtype](unsafe_from_address=address)


@always_inline
def within[width: Int](at: Int, length: Int) -> SIMD[DType.bool, width]:
    """Which of the entries `at`, `at + 1`, ... come before `length`."""
    return iota[DType.int32, width]().lt(Int32(max(0, min(width, length - at))))


@always_inline
def load[dtype: DType, width: Int](source: Place[dtype], at: Int, length: Int, fill: Scalar[dtype]) -> SIMD[dtype, width]:
    """Entries `at`, `at + 1`, ... of a row; `fill` for those from `length` on."""
    if at + width <= length:
        return source.unsafe_load[width=width](at)
    return masked_load[width](source.unsafe_offset(at), within[width](at, length), SIMD[dtype, width](fill))


@always_inline
def store[dtype: DType, width: Int](target: Place[dtype], at: Int, length: Int, value: SIMD[dtype, width]):
    """Write entries `at`, `at + 1`, ... of a row, but none from `length` on."""
    if at + width <= length:
        target.unsafe_store(at, value)
    else:
        masked_store(value, target.unsafe_offset(at), within[width](at, length))


@always_inline
def power_of_two[dtype: DType, width: Int](exponent: SIMD[dtype, width]) -> SIMD[dtype, width]:
    """2**exponent for integers of at most 0; 0 where that is subnormal."""
    comptime single = dtype == DType.float32
    comptime bits = DType.uint32 if single else DType.uint64
    comptime digits = 23 if single else 52
    comptime bias = 127 if single else 1023
    # Added to 1.5 * 2**digits, an integer stands in the low bits of the sum.
    comptime magic = Scalar[dtype](1.5) * Scalar[dtype](1 << digits) + Scalar[dtype](bias)
    var low = max(exponent, SIMD[dtype, width](-bias)) + magic
    return bitcast[dtype, width](bitcast[bits, width](low) << SIMD[bits, width](digits))


def inverse_factorial(n: Int) -> Float64:
    var product = Float64(1.0)
    for factor in range(2, n + 1):
        product *= Float64(factor)
    return 1.0 / product


@always_inline
def expm1_near_zero[dtype: DType, width: Int](t: SIMD[dtype, width]) -> SIMD[dtype, width]:
    """exp(t) - 1 for |t| <= 0.35: the Taylor polynomial whose first neglected term is below a quarter of exp's unit."""
    comptime degree = 7 if dtype == DType.float32 else 13
    var value = SIMD[dtype, width](0.0)
    comptime for step in range(degree - 1):
        # The compiler computes the coefficient.
        comptime coefficient = inverse_factorial(degree - step)
        value = fma(value, t, SIMD[dtype, width](coefficient.cast[dtype]()))
    return fma(t * t, value, t)


@always_inline
def split_exp[dtype: DType, width: Int](x: SIMD[dtype, width]) -> Tuple[SIMD[dtype, width], SIMD[dtype, width]]:
    """(excess, exponent) with exp(x) = (1 + excess) * 2**exponent, for finite x.

    The mantissa comes as what it has beyond 1, which holds some bits more.
    """
    comptime single = dtype == DType.float32
    comptime high = Scalar[dtype](0.693147182464599609375 if single else 0.6931471805599453)
    comptime low = Scalar[dtype](-1.904654299957768e-09 if single else 2.3190468138462996e-17)
    var exponent = round(x * Scalar[dtype](LOG2_E))
    exponent = exponent.clamp(SIMD[dtype, width](Scalar[dtype].MIN_FINITE), SIMD[dtype, width](Scalar[dtype].MAX_FINITE))
    var t = fma(exponent, SIMD[dtype, width](-low), fma(exponent, SIMD[dtype, width](-high), x))
    return expm1_near_zero(t.clamp(-0.35, 0.35)), exponent
