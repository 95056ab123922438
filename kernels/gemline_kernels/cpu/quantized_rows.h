// Activations in eight bits, a row at a time: scale = max|x| / 127, value = round(x * (1 / scale)), ties to even.
#pragma once

#include "panels.h"
#include "simd.h"

namespace gemline {

// Of a row that is infinite or NaN somewhere the scale is so too, and with it every result.
template <class T>
float row_scale(const T* x, int64_t count) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += LANES) {
    const __m512i bits = _mm512_castps_si512(load(x + i, first_lanes(count - i)));
    most = _mm512_max_epu32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
  }
  const float scale = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)_mm512_reduce_max_epu32(most)))) / 127.0f;
  return scale < 1.17549435e-38f ? 1.0f : scale;
}

// Sixteen values as int32 from -127 to 127.
template <class T>
__m512i quantize(const T* x, __mmask16 mask, __m512 inverse_scale) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(load(x, mask), inverse_scale));
}

}  // namespace gemline
