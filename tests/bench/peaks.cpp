// What this machine can do at most: multiply-adds in registers, reads from memory. All threads at once; one figure a line.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <immintrin.h>
#include <omp.h>

namespace {

constexpr int kRounds = 7;              // the best one counts: others may use the machine too
constexpr long kSteps = 20'000'000;     // of kChains operations each
constexpr int kChains = 12;             // independent, to hide an operation's latency
constexpr size_t kReadBytes = 1u << 30;  // far over any cache

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Run> double best_seconds(Run run) {
    double best = 1e30;
    for (int round = 0; round < kRounds; ++round) {
        const double begun = seconds();
        run();
        const double took = seconds() - begun;
        best = took < best ? took : best;
    }
    return best;
}

// `step(accumulator)` is one operation; the asm keeps the compiler from folding the loop.
template <class Vector, class Step> double operations_per_second(Vector start, Step step) {
    const double took = best_seconds([&] {
#pragma omp parallel
        {
            Vector chains[kChains];
            for (auto &chain : chains) chain = start;
            for (long i = 0; i < kSteps / kChains; ++i)
                for (auto &chain : chains) {
                    chain = step(chain);
                    asm volatile("" : "+v"(chain));
                }
        }
    });
    return double(kSteps / kChains) * kChains * omp_get_max_threads() / took;
}

double bytes_per_second() {
    auto *data = static_cast<uint64_t *>(std::aligned_alloc(64, kReadBytes));
    const long count = kReadBytes / sizeof(uint64_t);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; ++i) data[i] = uint64_t(i);
    volatile uint64_t sink = 0;
    const double took = best_seconds([&] {
        uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
        for (long i = 0; i < count; ++i) sum += data[i];
        sink = sum;
    });
    std::free(data);
    return double(kReadBytes) / took;
}

}  // namespace

int main() {
    std::printf("threads %d\n", omp_get_max_threads());
#if defined(__AVX512F__)
    const __m512 ones = _mm512_set1_ps(1.0f);
    std::printf("fp32_gflops %.1f\n", 2e-9 * 16 * operations_per_second(ones, [&](__m512 sum) { return _mm512_fmadd_ps(sum, ones, ones); }));
#elif defined(__FMA__)
    const __m256 ones = _mm256_set1_ps(1.0f);
    std::printf("fp32_gflops %.1f\n", 2e-9 * 8 * operations_per_second(ones, [&](__m256 sum) { return _mm256_fmadd_ps(sum, ones, ones); }));
#endif
#if defined(__AVX512BF16__)
    const __m512bh pairs = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    std::printf("bf16_gflops %.1f\n", 2e-9 * 32 * operations_per_second(ones, [&](__m512 sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); }));
#endif
#if defined(__AVX512VNNI__)
    const __m512i bytes = _mm512_set1_epi32(0x01010101);
    std::printf("int8_gops %.1f\n", 2e-9 * 64 * operations_per_second(bytes, [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, bytes, bytes); }));
#endif
    std::printf("read_gbytes %.1f\n", 1e-9 * bytes_per_second());
}
