// Weights into panels, quantised on the way: one panel is one piece of work, and nothing else is held in memory.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "panels.h"
#include "simd.h"

using namespace gemline;

namespace {

constexpr uint32_t INFINITE = 0x7F800000;    // bits of |x|: as integers, what is not finite is not less
constexpr float SMALLEST = 1.17549435e-38f;  // a scale below is taken for zero
constexpr float INT4_STEPS[] = {8.0f, 8.5f, 9.0f, 9.5f};

// Up to 32 rows of the weight; a null row is padding.
template <class T>
struct Rows {
  const T* row[PANEL];
};

template <class T>
Rows<T> rows_of(const Packed& w, const T* first, const T* second, int64_t stride, int64_t panel) {
  Rows<T> rows;
  for (int64_t column = 0; column < PANEL; column++) {
    const bool up = w.activation != NOT_GATED && column >= PANEL / 2;
    const int64_t output = panel * panel_outputs(w) + column - (up ? PANEL / 2 : 0);
    rows.row[column] = output < w.num_outputs ? (up ? second : first) + output * stride : nullptr;
  }
  return rows;
}

__m512i magnitude(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)); }

// 32 rows of 32-bit units, [32][stride], to [units][32].
void interleave(const uint32_t* rows, int64_t stride, int64_t units, uint32_t* out) {
  const __m512i step = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                          _mm512_set1_epi32((int)stride));
  for (int64_t unit = 0; unit < units; unit++) {
    for (int64_t half = 0; half < PANEL; half += LANES) {
      const __m512i column = _mm512_i32gather_epi32(step, (const int*)(rows + half * stride + unit), 4);
      _mm512_storeu_si512(out + unit * PANEL + half, column);
    }
  }
}

// Rows in one piece each, `padded` values of type U apart, zeros where the weight has nothing.
template <class U>
struct Staging {
  explicit Staging(int64_t padded) : stride(padded), values(PANEL * padded) {}
  U* row(int64_t column) { return values.data() + column * stride; }
  int64_t stride;
  std::vector<U> values;
};

void stage(const bf16* row, int64_t count, bf16* out) { std::memcpy(out, row, count * sizeof(bf16)); }

void stage(const float* row, int64_t count, bf16* out) {
  for (int64_t i = 0; i < count; i += LANES) {
    const __mmask16 mask = first_lanes(count - i);
    store(out + i, load(row + i, mask), mask);
  }
}

// Bits of the largest magnitude of a row; INFINITE or more when one is infinite or NaN.
template <class T>
uint32_t largest(const T* row, int64_t count) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += LANES) {
    most = _mm512_max_epu32(most, magnitude(load(row + i, first_lanes(count - i))));
  }
  return _mm512_reduce_max_epu32(most);
}

float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
bool pack_bf16(const Packed& w, const Rows<T>& rows, uint8_t* out) {
  Staging<bf16> staging(num_chunks(w) * chunk_inputs(BF16));
  for (int64_t column = 0; column < PANEL; column++) {
    if (rows.row[column]) stage(rows.row[column], w.num_inputs, staging.row(column));
  }
  interleave((const uint32_t*)staging.values.data(), staging.stride / 2, staging.stride / 2, (uint32_t*)out);
  return true;
}

template <class T>
bool pack_int8(const Packed& w, const Rows<T>& rows, uint8_t* out, float* scale) {
  Staging<uint8_t> staging(num_chunks(w) * chunk_inputs(INT8));
  for (int64_t column = 0; column < PANEL; column++) {
    const T* row = rows.row[column];
    const uint32_t most = row ? largest(row, w.num_inputs) : 0;
    if (most >= INFINITE) return false;
    scale[column] = as_float(most) / 127.0f < SMALLEST ? 1.0f : as_float(most) / 127.0f;
    const __m512 divisor = _mm512_set1_ps(scale[column]);
    for (int64_t i = 0; row && i < w.num_inputs; i += LANES) {
      const __mmask16 mask = first_lanes(w.num_inputs - i);
      const __m512i value = _mm512_cvtps_epi32(_mm512_div_ps(load(row + i, mask), divisor));
      const __m512i stored = _mm512_add_epi32(value, _mm512_set1_epi32(128));
      _mm_mask_storeu_epi8(staging.row(column) + i, mask, _mm512_cvtusepi32_epi8(stored));
    }
  }
  interleave((const uint32_t*)staging.values.data(), staging.stride / 4, staging.stride / 4, (uint32_t*)out);
  return true;
}

// Scale of a group of 128 (as bf16 bits) and value + 8 of each: the candidate with the least squared error.
bf16 quantize_group(const __m512 (&x)[8], uint8_t* values) {
  __m512i most = _mm512_setzero_si512();
  for (const __m512& part : x) most = _mm512_max_epu32(most, magnitude(part));
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float furthest = as_float(bits);
  for (const __m512& part : x) {
    const __mmask16 here = _mm512_cmpeq_epu32_mask(magnitude(part), _mm512_set1_epi32((int)bits));
    if (here) {
      const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(part));
      furthest = (negative >> __builtin_ctz(here)) & 1 ? -furthest : furthest;
      break;
    }
  }
  const __m512 lowest = _mm512_set1_ps(-8.0f), highest = _mm512_set1_ps(7.0f);
  float best_error = __builtin_inff();
  bf16 best{0x3F80};
  for (const float step : INT4_STEPS) {
    bf16 rounded[LANES];
    store(rounded, _mm512_set1_ps(furthest / -step));
    const float magnitude_of = to_float(rounded[0]) < 0 ? -to_float(rounded[0]) : to_float(rounded[0]);
    const bf16 candidate = magnitude_of < SMALLEST ? bf16{0x3F80} : rounded[0];
    const __m512 scale = _mm512_set1_ps(to_float(candidate));
    __m512 error = _mm512_setzero_ps();
    for (const __m512& part : x) {
      const __m512 exact = _mm512_div_ps(part, scale);
      const __m512 whole = _mm512_roundscale_ps(exact, _MM_FROUND_TO_NEAREST_INT);
      const __m512 off = _mm512_sub_ps(_mm512_min_ps(_mm512_max_ps(whole, lowest), highest), exact);
      error = _mm512_fmadd_ps(off, off, error);
    }
    // In units of the furthest value: of very large weights or very small ones squares are not float32 any more.
    const float unit = to_float(candidate) / furthest, sum = _mm512_reduce_add_ps(error) * unit * unit;
    if (sum < best_error) {
      best_error = sum;
      best = candidate;
    }
  }
  const __m512 scale = _mm512_set1_ps(to_float(best));
  for (int part = 0; part < 8; part++) {
    const __m512 exact = _mm512_roundscale_ps(_mm512_div_ps(x[part], scale), _MM_FROUND_TO_NEAREST_INT);
    const __m512 value = _mm512_min_ps(_mm512_max_ps(exact, lowest), highest);
    const __m512i stored = _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(8));
    _mm_storeu_si128((__m128i*)(values + part * LANES), _mm512_cvtepi32_epi8(stored));
  }
  return best;
}

template <class T>
bool pack_int4(const Packed& w, const Rows<T>& rows, uint8_t* out) {
  uint8_t values[PANEL][GROUP];
  uint32_t nibbles[PANEL][GROUP / 8];
  for (int64_t first = 0; first < w.num_inputs; first += GROUP, out += GROUP_BYTES) {
    for (int64_t column = 0; column < PANEL; column++) {
      const T* row = rows.row[column];
      __m512 x[8];
      __m512i most = _mm512_setzero_si512();
      for (int part = 0; part < 8; part++) {
        const int64_t left = std::max<int64_t>(w.num_inputs - first - part * LANES, 0);
        const bool any = row && left > 0;
        x[part] = any ? load(row + first + part * LANES, first_lanes(left)) : _mm512_setzero_ps();
        most = _mm512_max_epu32(most, magnitude(x[part]));
      }
      if (_mm512_reduce_max_epu32(most) >= INFINITE) return false;
      ((bf16*)out)[column] = quantize_group(x, values[column]);
      for (int64_t unit = 0; unit < GROUP / 8; unit++) {
        uint32_t low, high;
        std::memcpy(&low, &values[column][unit * 8], 4);
        std::memcpy(&high, &values[column][unit * 8 + 4], 4);
        nibbles[column][unit] = low | high << 4;
      }
    }
    interleave(&nibbles[0][0], GROUP / 8, GROUP / 8, (uint32_t*)(out + PANEL * 2));
  }
  return true;
}

template <class T>
bool pack(const Packed& w, const T* first, const T* second, int64_t stride) {
  std::atomic<bool> finite{true};
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t panel = 0; panel < num_panels(w); panel++) {
    if (!finite.load(std::memory_order_relaxed)) continue;
    const Rows<T> rows = rows_of(w, first, second, stride, panel);
    uint8_t* out = w.panels + panel * panel_bytes(w);
    const bool good = w.format == BF16   ? pack_bf16(w, rows, out)
                      : w.format == INT8 ? pack_int8(w, rows, out, w.scale + panel * PANEL)
                                         : pack_int4(w, rows, out);
    if (!good) finite.store(false, std::memory_order_relaxed);
  }
  return finite;
}

}  // namespace

extern "C" {

int64_t gemline_num_panels(const Packed* w) { return num_panels(*w); }
int64_t gemline_panel_bytes(const Packed* w) { return panel_bytes(*w); }

// Fills panels (and scale) from the rows of `first`, and of `second` for a gated pair, `stride` values apart.
// 0, or 1 when a value to be quantised is not finite.
int64_t gemline_pack(const Packed* w, const void* first, const void* second, int64_t stride, int64_t is_bf16) {
  const bool good = is_bf16 ? pack(*w, (const bf16*)first, (const bf16*)second, stride)
                            : pack(*w, (const float*)first, (const float*)second, stride);
  return good ? 0 : 1;
}
}
