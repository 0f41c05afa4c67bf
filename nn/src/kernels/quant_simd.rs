//! The few vector operations of the quantised products, over sixteen rows at once, for each instruction set.
//!
//! A vector of bytes holds four neighbouring columns of each of sixteen rows; integers and floats hold one number a row.

/// Operations of one instruction set.
///
/// # Safety
/// Every function may only run where the processor has the set, and its pointers must be readable (writable for `store`) for
/// the sixteen or sixty-four elements that it names.
pub unsafe trait Simd {
    /// 64 bytes.
    type Bytes: Copy;
    /// 16 `i32`.
    type Ints: Copy;
    /// Sums of few products, for each row: in narrower integers where that is faster.
    type Pairs: Copy;
    /// Whether [`Simd::Pairs`] hold only so many products: eight [`Simd::dot`]s of four bits, four of five, two of six, one of
    /// eight.
    const NARROW: bool;
    /// 16 `f32`.
    type Floats: Copy;
    /// Groups of sixteen rows of weights that a tile may take at once: as many as its sums have registers for.
    const GROUPS: usize;

    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    unsafe fn low_nibbles(b: Self::Bytes) -> Self::Bytes;
    unsafe fn high_nibbles(b: Self::Bytes) -> Self::Bytes;
    /// Sets bit 4 of the bytes whose bit is set in the 64 from `mask`.
    unsafe fn with_fifth(b: Self::Bytes, mask: *const u8) -> Self::Bytes;
    /// Puts bits `2 * step` and `2 * step + 1` of `high` at bits 4 and 5.
    unsafe fn with_sixth(b: Self::Bytes, high: Self::Bytes, step: usize) -> Self::Bytes;
    /// Asks for a line of memory that will be read soon. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    unsafe fn zero() -> Self::Ints;
    /// Sixteen times the same.
    unsafe fn whole(i: i32) -> Self::Ints;
    unsafe fn no_pairs() -> Self::Pairs;
    /// Adds to each row the products of its four bytes with the four signed bytes at `x`, which are over -128. `EIGHT`: bytes
    /// over 127 occur.
    unsafe fn dot<const EIGHT: bool>(sum: Self::Pairs, b: Self::Bytes, x: *const i8) -> Self::Pairs;
    /// Adds sums of few products to sums of many.
    unsafe fn widen(sum: Self::Ints, pairs: Self::Pairs) -> Self::Ints;
    /// The same, and the compiler may not begin what stands behind before it is there: it would spill the one for the other.
    #[inline(always)]
    unsafe fn settled(i: Self::Ints) -> Self::Ints {
        i
    }
    /// The same of sums of few products.
    #[inline(always)]
    unsafe fn settled_pairs(pairs: Self::Pairs) -> Self::Pairs {
        pairs
    }
    unsafe fn floats(i: Self::Ints) -> Self::Floats;
    /// Column `i` of the four, of each row, as unsigned numbers.
    unsafe fn column(b: Self::Bytes, i: usize) -> Self::Floats;
    /// 16 half-precision numbers.
    unsafe fn halves(from: *const u8) -> Self::Floats;
    /// The first or second of sixteen pairs of `bfloat16`, each of which lies where a float would.
    unsafe fn brains(pairs: Self::Floats, second: bool) -> Self::Floats;
    /// Adds to each row both products of two such pairs.
    #[inline(always)]
    unsafe fn dot_pairs(sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = Self::fma(Self::brains(a, false), Self::brains(b, false), sum);
            Self::fma(Self::brains(a, true), Self::brains(b, true), sum)
        }
    }
    /// 16 `f32`.
    unsafe fn load(from: *const u8) -> Self::Floats;
    /// 16 unsigned bytes.
    unsafe fn unsigned(from: *const u8) -> Self::Floats;
    /// 16 signed bytes.
    unsafe fn signed(from: *const u8) -> Self::Floats;
    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn store(to: *mut f32, x: Self::Floats);
}

/// Plain arrays: the form that the others are tested against.
pub struct Portable;

// SAFETY: no instruction set is needed; pointers are the caller's promise.
unsafe impl Simd for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; 16];
    type Pairs = [i32; 16];
    type Floats = [f32; 16];
    const NARROW: bool = false;
    const GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b >> 4)
    }
    #[inline(always)]
    unsafe fn with_fifth(mut b: [u8; 64], mask: *const u8) -> [u8; 64] {
        // SAFETY: the caller's promise.
        let mask = u64::from_le_bytes(unsafe { mask.cast::<[u8; 8]>().read() });
        b.iter_mut().enumerate().for_each(|(i, b)| *b |= ((mask >> i & 1) as u8) << 4);
        b
    }
    #[inline(always)]
    unsafe fn with_sixth(mut b: [u8; 64], high: [u8; 64], step: usize) -> [u8; 64] {
        b.iter_mut().zip(high).for_each(|(b, h)| *b |= (h >> (2 * step) & 3) << 4);
        b
    }
    #[inline(always)]
    unsafe fn zero() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn whole(i: i32) -> [i32; 16] {
        [i; 16]
    }
    #[inline(always)]
    unsafe fn no_pairs() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(mut sum: [i32; 16], b: [u8; 64], x: *const i8) -> [i32; 16] {
        // SAFETY: the caller's promise.
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        for (sum, b) in sum.iter_mut().zip(b.as_chunks::<4>().0) {
            *sum += b.iter().zip(x).map(|(b, x)| i32::from(*b) * i32::from(x)).sum::<i32>();
        }
        sum
    }
    #[inline(always)]
    unsafe fn widen(mut a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    }
    #[inline(always)]
    unsafe fn floats(i: [i32; 16]) -> [f32; 16] {
        i.map(|i| i as f32)
    }
    #[inline(always)]
    unsafe fn column(b: [u8; 64], i: usize) -> [f32; 16] {
        std::array::from_fn(|row| f32::from(b[4 * row + i]))
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[[u8; 2]; 16]>().read() };
        bytes.map(|b| half::f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn brains(pairs: [f32; 16], second: bool) -> [f32; 16] {
        // A bfloat16 is the upper half of an f32.
        pairs.map(|p| f32::from_bits(if second { p.to_bits() & 0xffff_0000 } else { p.to_bits() << 16 }))
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[[u8; 4]; 16]>().read() }.map(f32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn unsigned(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; 16]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn signed(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i8; 16]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn mul(mut a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        a
    }
    #[inline(always)]
    unsafe fn add(mut a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], mut c: [f32; 16]) -> [f32; 16] {
        c.iter_mut().zip(a).zip(b).for_each(|((c, a), b)| *c += a * b);
        c
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [f32; 16]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(x) }
    }
}
