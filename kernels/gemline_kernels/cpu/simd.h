// Sixteen lanes at a time: bfloat16 <-> float32, exp, tanh. Everything here is inline and needs AVX-512 F/BW/VL/DQ.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gemline {

// A bfloat16 is the upper half of a float32; it is a type of its own so that loads and stores can be overloaded.
struct bf16 {
  uint16_t bits;
};

constexpr int LANES = 16;

inline __mmask16 first_lanes(int64_t count) { return count >= LANES ? 0xFFFF : (__mmask16)((1u << count) - 1); }

inline __m512 widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }

// Round to nearest, ties to even; NaN stays NaN.
inline __m256i narrow(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
inline void store(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }

// The lanes of `mask` only; the others are read as 0 and not written.
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const bf16* p, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, p)); }
inline void store(float* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }
inline void store(bf16* p, __m512 x, __mmask16 mask) { _mm256_mask_storeu_epi16(p, mask, narrow(x)); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)((uint32_t)x.bits << 16))));
}

// e^x within 2 units in the last place; 0 below -104, infinity above 89, NaN of NaN.
inline __m512 exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));  // this order keeps NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two pieces, the first exact
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.38145406e-3f);  // of degree 6 with the least greatest error on |r| <= ln 2 / 2: 4e-9
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.36874545e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16683890e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66665211e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.99999940e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// tanh x within 2e-7: sign(x) * (1 - 2 / (e^(2|x|) + 1)).
inline __m512 tanh(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f), sign = _mm512_set1_ps(-0.0f);
  const __m512 e = exp(_mm512_mul_ps(two, _mm512_andnot_ps(sign, x)));
  const __m512 y = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
  return _mm512_or_ps(y, _mm512_and_ps(sign, x));
}

// cap * tanh(x / cap), given cap and 1 / cap.
inline __m512 softcap(__m512 x, __m512 cap, __m512 inverse_cap) {
  return _mm512_mul_ps(cap, tanh(_mm512_mul_ps(x, inverse_cap)));
}

}  // namespace gemline
