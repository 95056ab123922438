// The linears as the Python side calls them, and single rows of an embedding.
#include "linear.h"

#include "simd.h"

using namespace gemline;

namespace {

// One row of the weight, float32, 16 inputs at a time.
template <class Put>
void read_row(const Packed& w, int64_t row, Put put) {
  const int64_t panel = row / PANEL, column = row % PANEL;
  const uint32_t* units = (const uint32_t*)(w.panels + panel * panel_bytes(w)) + column;
  const __m512i step = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                          _mm512_set1_epi32(PANEL));
  const int64_t per_unit = w.format == BF16 ? 2 : 4;
  for (int64_t i = 0; i < w.num_inputs; i += LANES * per_unit, units += LANES * PANEL) {
    // Panels end on whole chunks: of bf16 that is 8 units, half of what is taken here.
    const __mmask16 there = first_lanes((up_to(w.num_inputs, chunk_inputs(w.format)) - i) / per_unit);
    const __m512i taken = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, step, units, 4);
    for (int64_t part = 0; part < per_unit; part++) {
      if (i + part * LANES >= w.num_inputs) return;
      if (w.format == BF16) {
        const __m256i bits = part ? _mm512_extracti64x4_epi64(taken, 1) : _mm512_castsi512_si256(taken);
        put(i + part * LANES, widen(bits));
      } else {
        alignas(64) uint8_t bytes[64];
        _mm512_store_si512(bytes, taken);
        const __m512i value = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)(bytes + part * LANES)));
        const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(value, _mm512_set1_epi32(128)));
        put(i + part * LANES, _mm512_mul_ps(exact, _mm512_set1_ps(w.scale[row])));
      }
    }
  }
}

template <class T>
void rows(const Packed& w, const int64_t* ids, int64_t count, T* out, float scale) {
#pragma omp parallel for schedule(static) if (count > 4)
  for (int64_t t = 0; t < count; t++) {
    T* row = out + t * w.num_inputs;
    read_row(w, ids[t], [&](int64_t i, __m512 x) {
      store(row + i, _mm512_mul_ps(x, _mm512_set1_ps(scale)), first_lanes(w.num_inputs - i));
    });
  }
}

}  // namespace

extern "C" {

// y = x . weight^T with what belongs to it; cap 0 is none. y has num_rows rows of num_outputs values.
void gemline_linear(const Packed* w, const void* x, int64_t num_rows, int64_t x_is_bf16, void* y, int64_t y_is_bf16,
                    float cap) {
  const Input in{x, num_rows, x_is_bf16 != 0};
  const Output out{y, y_is_bf16 != 0, cap};
  if (num_rows == 0) return;
  switch (w->format) {
    case BF16: return linear_bf16(*w, in, out);
    case INT8: return linear_int8(*w, in, out);
    default: return linear_int4(*w, in, out);
  }
}

// Rows `ids` of a bf16 or int8 weight times scale; -1. Or the place of the first id that is none of its rows, and then
// nothing is written.
int64_t gemline_rows(const Packed* w, const int64_t* ids, int64_t count, void* out, int64_t out_is_bf16, float scale) {
  for (int64_t t = 0; t < count; t++) {
    if (ids[t] < 0 || ids[t] >= w->num_outputs) return t;
  }
  out_is_bf16 ? rows(*w, ids, count, (bf16*)out, scale) : rows(*w, ids, count, (float*)out, scale);
  return -1;
}
}
