"""The native CPU backend: C++ for AVX-512, compiled once at install or at first use, called through ctypes."""
