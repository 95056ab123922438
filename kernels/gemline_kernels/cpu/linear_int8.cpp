// int8 weights times activations quantised to eight bits row by row, summed exactly in int32.
#include "linear.h"
#include "product.h"
#include "quantized_rows.h"

using namespace gemline;

namespace {

struct Int8 {
  using Sum = int32_t;
  struct Row {
    float scale;
    int32_t sum;  // of the quantised values: the panels hold weight + 128
  };
  static constexpr int64_t CHUNK_INPUTS = 64, CHUNK_BYTES = 2048, LINES = 1, BLOCK_CHUNKS = 16;


  template <class T>
  static void pack(const T* x, int64_t num_inputs, uint8_t* out, int64_t step, Row& row) {
    row.scale = row_scale(x, num_inputs);
    const __m512 inverse = _mm512_set1_ps(1.0f / row.scale);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < num_inputs; i += 64, out += step) {
      for (int64_t part = 0; part < 64; part += LANES) {
        __m512i value = _mm512_setzero_si512();
        if (i + part < num_inputs) value = quantize(x + i + part, first_lanes(num_inputs - i - part), inverse);
        sum = _mm512_add_epi32(sum, value);
        _mm_store_si128((__m128i*)(out + part), _mm512_cvtepi32_epi8(value));
      }
    }
    row.sum = _mm512_reduce_add_epi32(sum);
  }

  struct Columns {
    Columns(const Packed& w, int64_t panel) {
      for (int half = 0; half < 2; half++) scale[half] = load(w.scale + panel * PANEL + half * LANES);
    }
    __m512 value(int half, const Row& row, const int32_t* sums) const {
      const __m512i exact = _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_set1_epi32(128 * row.sum));
      return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale[half], _mm512_set1_ps(row.scale)));
    }
    __m512 scale[2];
  };

  template <int ROWS>
  static void kernel(const Work<int32_t>& work) {
    __m512i sum[ROWS][2];
    const __mmask16 before = work.fresh ? 0 : 0xFFFF;
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      sum[r][0] = _mm512_maskz_load_epi32(before, work.sums + r * PANEL);
      sum[r][1] = _mm512_maskz_load_epi32(before, work.sums + r * PANEL + LANES);
    }
    const char* next = work.next;
    const uint8_t *x = work.x, *panel = work.panel;
    for (int64_t chunk = 0; chunk < work.chunks; chunk++, x += ROWS * 64, panel += CHUNK_BYTES) {
      next = fetch(work, next);
#pragma GCC unroll 16
      for (int four = 0; four < 16; four++) {
        const __m512i first = _mm512_load_si512(panel + four * 128);
        const __m512i second = _mm512_load_si512(panel + four * 128 + 64);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
          const __m512i inputs = _mm512_set1_epi32(((const int32_t*)(x + r * 64))[four]);
          sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], first, inputs);
          sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], second, inputs);
        }
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      _mm512_store_si512(work.sums + r * PANEL, sum[r][0]);
      _mm512_store_si512(work.sums + r * PANEL + LANES, sum[r][1]);
    }
  }
};

}  // namespace

namespace gemline {

void linear_int8(const Packed& w, const Input& in, const Output& out) {
  Product<Int8> product(w, out, in.num_rows);
  in.is_bf16 ? product.run((const bf16*)in.x) : product.run((const float*)in.x);
}

}  // namespace gemline
