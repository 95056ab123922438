// What the machine can do at most, measured by the benchmarks, and how many threads a call uses.
#include <omp.h>

#include "simd.h"

using namespace gemline;

extern "C" {

int64_t gemline_num_threads() { return omp_get_max_threads(); }

// Runs `rounds` x 16 independent float32 FMAs of 16 lanes on every thread: 512 flop per round and thread.
float gemline_fma_rounds(int64_t rounds) {
  float sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    __m512 a[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_set1_ps(i * 1e-3f);
    const __m512 x = _mm512_set1_ps(.999f), y = _mm512_set1_ps(1e-9f);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
    }
    for (int i = 0; i < 16; i++) sum += _mm512_reduce_add_ps(a[i]);
  }
  return sum;
}

#ifdef __AVX512BF16__
// The same with VDPBF16PS: 1024 flop per round and thread.
float gemline_bf16_rounds(int64_t rounds) {
  float sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    __m512 a[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_set1_ps(i * 1e-3f);
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3F803F80);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) a[i] = _mm512_dpbf16_ps(a[i], ones, ones);
    }
    for (int i = 0; i < 16; i++) sum += _mm512_reduce_add_ps(a[i]);
  }
  return sum;
}
#endif

// The same with VPDPBUSD: 2048 integer operations per round and thread.
int64_t gemline_vnni_rounds(int64_t rounds) {
  int64_t sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    __m512i a[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_set1_epi32(i);
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) asm("vpdpbusd %1, %1, %0" : "+v"(a[i]) : "v"(ones));  // in place, no moves
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sum += _mm512_reduce_add_epi32(a[i]);
  }
  return sum;
}

// Reads num_bytes (a multiple of 256) once, each thread a piece of its own.
int64_t gemline_read_bytes(const char* bytes, int64_t num_bytes) {
  int64_t sum = 0;
#pragma omp parallel for reduction(+ : sum) schedule(static)
  for (int64_t block = 0; block < num_bytes / 65536; block++) {
    const char* p = bytes + block * 65536;
    __m512i x[4] = {};
    for (int64_t i = 0; i < 65536; i += 256) {
      for (int j = 0; j < 4; j++) {
        _mm_prefetch(p + i + 2048 + 64 * j, _MM_HINT_T0);
        x[j] = _mm512_add_epi64(x[j], _mm512_loadu_si512(p + i + 64 * j));
      }
    }
    for (int j = 0; j < 4; j++) sum += _mm512_reduce_add_epi64(x[j]);
  }
  return sum;
}
}
