// What attention needs beyond simd.h: faster curves that are exact enough for it, sums of four, and a transposition.
#pragma once

#include "simd.h"

namespace gemline::attention {

// 2^x, relative error under 2e-7: a polynomial on [-1/2, 1/2] fitted for the least relative error. NaN stays NaN.
inline __m512 exp2_poly(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.3276471884e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6755415186e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5507132754e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022119720e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314696706e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0000000717f));
  return _mm512_scalef_ps(y, whole);
}

// tanh, relative error under 4e-7: x P(x^2) / Q(x^2) fitted on [-8, 8], where it is 1 to the last bit. NaN stays NaN.
inline __m512 tanh_rational(__m512 x) {
  // The minimum of two operands is the second when either is NaN, so x stands second.
  x = _mm512_max_ps(_mm512_set1_ps(-8.0f), _mm512_min_ps(_mm512_set1_ps(8.0f), x));
  const __m512 u = _mm512_mul_ps(x, x);
  __m512 p = _mm512_set1_ps(2.35087155e-11f);
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-1.47042614e-8f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(9.87867349e-6f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(2.98586338e-3f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(1.29792247e-1f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(9.99999981e-1f));
  __m512 q = _mm512_set1_ps(2.37203436e-4f);
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(2.40279305e-2f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(4.63125408e-1f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(1.0f));
  __m512 inverse = _mm512_rcp14_ps(q);  // one Newton step makes 14 bits 24
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(q, inverse, _mm512_set1_ps(2.0f)));
  return _mm512_mul_ps(_mm512_mul_ps(x, p), inverse);
}

// The four sums over all lanes, side by side.
inline __m128 sums_of_4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d ab_pairs = _mm512_castps_pd(ab), cd_pairs = _mm512_castps_pd(cd);
  const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pairs, cd_pairs)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pairs, cd_pairs)));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// Rows become columns: lane c of row r goes to lane r of row c.
inline void transpose_16x16(__m512 rows[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      const __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  // Row 4q + c now holds, in each 128-bit part p, column 4p + c of the rows 4q .. 4q + 3.
  for (int c = 0; c < 4; c++) {
    const __m512 even01 = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
    t[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    t[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    t[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
  for (int i = 0; i < 16; i++) rows[i] = t[i];
}

}  // namespace gemline::attention
