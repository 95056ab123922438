// int4 weights in groups of 128 times activations quantised to eight bits row by row; exact within a group.
#include "linear.h"
#include "product.h"
#include "quantized_rows.h"

using namespace gemline;

namespace {

struct Int4 {
  using Sum = float;
  struct Row {
    float scale;
  };
  // A group is two lines of values and, with the panels' values being weight + 8, one that holds -8 times their sum.
  static constexpr int64_t CHUNK_INPUTS = GROUP, CHUNK_BYTES = GROUP_BYTES, LINES = 3, BLOCK_CHUNKS = 8;


  template <class T>
  static void pack(const T* x, int64_t num_inputs, uint8_t* out, int64_t step, Row& row) {
    row.scale = row_scale(x, num_inputs);
    const __m512 inverse = _mm512_set1_ps(1.0f / row.scale);
    for (int64_t i = 0; i < num_inputs; i += GROUP, out += LINES * step) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t part = 0; part < GROUP; part += LANES) {
        __m512i value = _mm512_setzero_si512();
        if (i + part < num_inputs) value = quantize(x + i + part, first_lanes(num_inputs - i - part), inverse);
        sum = _mm512_add_epi32(sum, value);
        _mm_store_si128((__m128i*)(out + part / 64 * step + part % 64), _mm512_cvtepi32_epi8(value));
      }
      *(int32_t*)(out + 2 * step) = -8 * _mm512_reduce_add_epi32(sum);
    }
  }

  struct Columns {
    Columns(const Packed&, int64_t) {}
    __m512 value(int, const Row& row, const float* sums) const {
      return _mm512_mul_ps(load(sums), _mm512_set1_ps(row.scale));
    }
  };

  template <int ROWS>
  static void kernel(const Work<float>& work) {
    const char* next = work.next;
    const uint8_t *x = work.x, *panel = work.panel;
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    for (int64_t chunk = 0; chunk < work.chunks; chunk++, x += ROWS * LINES * 64, panel += CHUNK_BYTES) {
      next = fetch(work, next);
      __m512i sum[ROWS][2];
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        sum[r][0] = sum[r][1] = _mm512_set1_epi32(*(const int32_t*)(x + (2 * ROWS + r) * 64));
      }
#pragma GCC unroll 16
      for (int eight = 0; eight < 16; eight++) {
        __m512i weight[2][2];  // of the first four inputs and of the last four
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          const __m512i both = _mm512_load_si512(panel + PANEL * 2 + eight * 128 + h * 64);
          weight[0][h] = _mm512_and_si512(both, low_nibbles);
          weight[1][h] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_nibbles);
        }
#pragma GCC unroll 2
        for (int last = 0; last < 2; last++) {
#pragma GCC unroll 12
          for (int r = 0; r < ROWS; r++) {
            const uint8_t* line = x + (eight / 8 * ROWS + r) * 64;
            const __m512i inputs = _mm512_set1_epi32(((const int32_t*)line)[eight % 8 * 2 + last]);
            sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weight[last][0], inputs);
            sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weight[last][1], inputs);
          }
        }
      }
      const __mmask16 before = work.fresh && chunk == 0 ? 0 : 0xFFFF;
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m512 scale = load((const bf16*)panel + h * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
          float* total = work.sums + r * PANEL + h * LANES;
          const __m512 sums_before = _mm512_maskz_load_ps(before, total);
          _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][h]), scale, sums_before));
        }
      }
    }
  }
};

}  // namespace

namespace gemline {

void linear_int4(const Packed& w, const Input& in, const Output& out) {
  Product<Int4> product(w, out, in.num_rows);
  in.is_bf16 ? product.run((const bf16*)in.x) : product.run((const float*)in.x);
}

}  // namespace gemline
