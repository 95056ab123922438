// bfloat16 weights times bfloat16 activations, summed in float32.
#include "linear.h"
#include "product.h"

using namespace gemline;

namespace {

#ifdef __AVX512BF16__
constexpr bool PAIRS = true;  // VDPBF16PS takes pairs of bfloat16 as they lie
#else
constexpr bool PAIRS = false;
#endif

struct Bf16 {
  using Sum = float;
  struct Row {};
  static constexpr int64_t CHUNK_INPUTS = 16, CHUNK_BYTES = 1024, LINES = 1, BLOCK_CHUNKS = 32;


  // With VDPBF16PS only the first 32 bytes of a line are used.
  template <class T>
  static void pack(const T* x, int64_t num_inputs, uint8_t* out, int64_t step, Row&) {
    for (int64_t i = 0; i < num_inputs; i += LANES, out += step) {
      const __m512 values = load(x + i, first_lanes(num_inputs - i));
      if (PAIRS) {
        store((bf16*)out, values);
      } else {
        store((float*)out, values);
      }
    }
  }

  struct Columns {
    Columns(const Packed&, int64_t) {}
    __m512 value(int, const Row&, const float* sums) const { return load(sums); }
  };

  template <int ROWS>
  static void kernel(const Work<float>& work) {
    __m512 sum[ROWS][2];
    const __mmask16 before = work.fresh ? 0 : 0xFFFF;
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      sum[r][0] = _mm512_maskz_load_ps(before, work.sums + r * PANEL);
      sum[r][1] = _mm512_maskz_load_ps(before, work.sums + r * PANEL + LANES);
    }
    const char* next = work.next;
    const uint8_t *x = work.x, *panel = work.panel;
    for (int64_t chunk = 0; chunk < work.chunks; chunk++, x += ROWS * 64, panel += CHUNK_BYTES) {
      next = fetch(work, next);
#pragma GCC unroll 8
      for (int pair = 0; pair < 8; pair++) {
#ifdef __AVX512BF16__
        const __m512bh first = (__m512bh)_mm512_load_si512(panel + pair * 128);
        const __m512bh second = (__m512bh)_mm512_load_si512(panel + pair * 128 + 64);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
          const __m512bh both = (__m512bh)_mm512_set1_epi32(*(const int*)(x + r * 64 + pair * 4));
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], both, first);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], both, second);
        }
#else
        __m512 weight[2][2];  // of the pair's even and odd input
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          const __m512i both = _mm512_load_si512(panel + pair * 128 + h * 64);
          weight[0][h] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
          weight[1][h] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xFFFF0000)));
        }
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
#pragma GCC unroll 12
          for (int r = 0; r < ROWS; r++) {
            const __m512 input = _mm512_set1_ps(((const float*)(x + r * 64))[pair * 2 + odd]);
            sum[r][0] = _mm512_fmadd_ps(input, weight[odd][0], sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(input, weight[odd][1], sum[r][1]);
          }
        }
#endif
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      _mm512_store_ps(work.sums + r * PANEL, sum[r][0]);
      _mm512_store_ps(work.sums + r * PANEL + LANES, sum[r][1]);
    }
  }
};

}  // namespace

namespace gemline {

void linear_bf16(const Packed& w, const Input& in, const Output& out) {
  Product<Bf16> product(w, out, in.num_rows);
  in.is_bf16 ? product.run((const bf16*)in.x) : product.run((const float*)in.x);
}

}  // namespace gemline
