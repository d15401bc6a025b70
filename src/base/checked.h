#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>

namespace nibble {

// Arithmetic on numbers that came out of a file. Nothing else may add or multiply those: an
// overflow here has been a heap overflow elsewhere (CVE-2025-53630 and its bypass CVE-2026-27940).

template <std::unsigned_integral T>
constexpr std::optional<T> CheckedAdd(T a, T b) {
  T sum{};
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

template <std::unsigned_integral T>
constexpr std::optional<T> CheckedMul(T a, T b) {
  T product{};
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// The product of all dims times `unit`; nothing when it does not fit 64 bits. A zero dim gives 0
/// whatever the others are.
constexpr std::optional<uint64_t> CheckedProduct(std::span<const uint64_t> dims,
                                                 uint64_t unit = 1) {
  uint64_t product = unit;
  for (uint64_t d : dims) {
    if (d == 0) return 0;
  }
  for (uint64_t d : dims) {
    auto next = CheckedMul(product, d);
    if (!next) return std::nullopt;
    product = *next;
  }
  return product;
}

constexpr uint64_t DivUp(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }
constexpr uint64_t RoundUp(uint64_t a, uint64_t b) { return DivUp(a, b) * b; }

}  // namespace nibble
