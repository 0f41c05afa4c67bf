//! The vector operations of [`super::quant_simd`] in AVX-512 with VNNI, and in AVX2.

use super::quant_simd::Simd;
use std::arch::x86_64::*;

/// AVX-512 with VNNI: `vpdpbusd` multiplies and adds 64 bytes at once.
pub struct Vnni;

// SAFETY: intrinsics of AVX-512 F, BW and VNNI, where the caller promises them; pointers are the caller's promise.
unsafe impl Simd for Vnni {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Pairs = __m512i;
    type Floats = __m512;
    const NARROW: bool = false;
    const GROUPS: usize = 2;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: the trait's promise; so in every function below.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn with_fifth(b: __m512i, mask: *const u8) -> __m512i {
        // SAFETY: as above. No byte has bit 4 yet, so a masked addition sets it.
        unsafe { _mm512_mask_add_epi8(b, mask.cast::<u64>().read_unaligned(), b, _mm512_set1_epi8(16)) }
    }
    #[inline(always)]
    unsafe fn with_sixth(b: __m512i, high: __m512i, step: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let shifted = match step {
                0 => _mm512_slli_epi16(high, 4),
                1 => _mm512_slli_epi16(high, 2),
                2 => high,
                _ => _mm512_srli_epi16(high, 2),
            };
            _mm512_or_si512(b, _mm512_and_si512(shifted, _mm512_set1_epi8(0x30)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as above; a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn whole(i: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(i) }
    }
    #[inline(always)]
    unsafe fn no_pairs() -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(sum: __m512i, b: __m512i, x: *const i8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, b, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn widen(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn floats(i: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(i) }
    }
    #[inline(always)]
    unsafe fn column(b: __m512i, i: usize) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let shifted = _mm512_srl_epi32(b, _mm_cvtsi32_si128(8 * i as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn brains(pairs: __m512, second: bool) -> __m512 {
        // SAFETY: as above. A bfloat16 is the upper half of an f32.
        unsafe {
            let pairs = _mm512_castps_si512(pairs);
            _mm512_castsi512_ps(if second {
                _mm512_and_si512(pairs, _mm512_set1_epi32(-1 << 16))
            } else {
                _mm512_slli_epi32(pairs, 16)
            })
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above; this one needs AVX-512 BF16 besides, where alone it is called.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn unsigned(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn signed(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, x) }
    }
}

/// AVX2 with FMA and F16C: two vectors of eight rows.
pub struct Avx2;

type Two = [__m256i; 2];

/// As [`Simd::settled`]. A class of registers can be named only where the set is known.
#[target_feature(enable = "avx2")]
#[inline]
fn settle(mut i: Two) -> Two {
    let [a, b] = &mut i;
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!(
            "/* {0} {1} */",
            inout(ymm_reg) * a,
            inout(ymm_reg) * b,
            options(nomem, nostack, preserves_flags)
        )
    };
    i
}

// SAFETY: intrinsics of AVX2, FMA and F16C, where the caller promises them; pointers are the caller's promise.
unsafe impl Simd for Avx2 {
    type Bytes = Two;
    type Ints = Two;
    // Sixteen bits: `vpmaddubsw` adds two products, of at most 2 * 15 * 127 with four bits.
    type Pairs = Two;
    type Floats = [__m256; 2];
    const NARROW: bool = true;
    const GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Two {
        // SAFETY: the trait's promise; so in every function below.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Two) -> Two {
        // SAFETY: as above.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(b[0], mask), _mm256_and_si256(b[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Two) -> Two {
        // SAFETY: as above.
        unsafe { Self::low_nibbles([_mm256_srli_epi16(b[0], 4), _mm256_srli_epi16(b[1], 4)]) }
    }
    #[inline(always)]
    unsafe fn with_fifth(b: Two, mask: *const u8) -> Two {
        // SAFETY: as above. Each byte of the mask is spread over eight bytes, and each of those looks at its own bit.
        unsafe {
            let spread =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let part = |b: __m256i, mask: *const u8| {
                let bits = _mm256_set1_epi32(mask.cast::<i32>().read_unaligned());
                let bits = _mm256_and_si256(_mm256_shuffle_epi8(bits, spread), own);
                let set = _mm256_cmpeq_epi8(bits, own);
                _mm256_or_si256(b, _mm256_and_si256(set, _mm256_set1_epi8(16)))
            };
            [part(b[0], mask), part(b[1], mask.add(4))]
        }
    }
    #[inline(always)]
    unsafe fn with_sixth(b: Two, high: Two, step: usize) -> Two {
        // SAFETY: as above.
        unsafe {
            let part = |b: __m256i, high: __m256i| {
                let shifted = match step {
                    0 => _mm256_slli_epi16(high, 4),
                    1 => _mm256_slli_epi16(high, 2),
                    2 => high,
                    _ => _mm256_srli_epi16(high, 2),
                };
                _mm256_or_si256(b, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)))
            };
            [part(b[0], high[0]), part(b[1], high[1])]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as above; a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> Two {
        // SAFETY: as above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn whole(i: i32) -> Two {
        // SAFETY: as above.
        unsafe { [_mm256_set1_epi32(i); 2] }
    }
    #[inline(always)]
    unsafe fn no_pairs() -> Two {
        // SAFETY: as above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(sum: Two, b: Two, x: *const i8) -> Two {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let part = |sum: __m256i, b: __m256i| {
                let pairs = if EIGHT {
                    let b = _mm256_xor_si256(b, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(x, b))
                } else {
                    _mm256_maddubs_epi16(b, x)
                };
                _mm256_add_epi16(sum, pairs)
            };
            [part(sum[0], b[0]), part(sum[1], b[1])]
        }
    }
    #[inline(always)]
    unsafe fn widen(sum: Two, pairs: Two) -> Two {
        // SAFETY: as above.
        unsafe {
            let one = _mm256_set1_epi16(1);
            let part = |sum, pairs| _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, one));
            [part(sum[0], pairs[0]), part(sum[1], pairs[1])]
        }
    }
    #[inline(always)]
    unsafe fn settled(i: Two) -> Two {
        // SAFETY: as above.
        unsafe { settle(i) }
    }
    #[inline(always)]
    unsafe fn settled_pairs(pairs: Two) -> Two {
        // SAFETY: as above.
        unsafe { settle(pairs) }
    }
    #[inline(always)]
    unsafe fn floats(i: Two) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(i[0]), _mm256_cvtepi32_ps(i[1])] }
    }
    #[inline(always)]
    unsafe fn column(b: Two, i: usize) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (by, mask) = (_mm_cvtsi32_si128(8 * i as i32), _mm256_set1_epi32(255));
            let part = |b| _mm256_and_si256(_mm256_srl_epi32(b, by), mask);
            Self::floats([part(b[0]), part(b[1])])
        }
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)]
        }
    }
    #[inline(always)]
    unsafe fn brains(pairs: [__m256; 2], second: bool) -> [__m256; 2] {
        // SAFETY: as above. A bfloat16 is the upper half of an f32.
        unsafe {
            pairs.map(|pairs| {
                let pairs = _mm256_castps_si256(pairs);
                _mm256_castsi256_ps(if second {
                    _mm256_and_si256(pairs, _mm256_set1_epi32(-1 << 16))
                } else {
                    _mm256_slli_epi32(pairs, 16)
                })
            })
        }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_loadu_ps(from.cast()), _mm256_loadu_ps(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn unsigned(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast()));
            Self::floats([_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(b)])
        }
    }
    #[inline(always)]
    unsafe fn signed(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast()));
            Self::floats([_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(b)])
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [__m256; 2]) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
}
