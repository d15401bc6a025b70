// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nibble {

/// What kind of thing went wrong. One table (ExitCodeOf) maps it to the command's exit code.
enum class ErrorCode : uint8_t {
  kInvalidArgument,  // the caller asked for something that makes no sense
  kNotFound,         // a file, tensor or name that should exist does not
  kCorruptFile,      // a file says something that cannot be true
  kUnsupported,      // valid, but nothing here can run it exactly
  kOutOfMemory,
  kIo,
  kDevice,
  kCancelled,
  kInternal,
};

/// The name of a code as programs read it, e.g. "CorruptFile".
std::string_view NameOf(ErrorCode code);

/// The exit code of the `nibble` command for a code: 1 internal, 2 usage, 3 bad input file, 5
/// unsupported, 6 out of memory, 7 device, 130 interrupted.
int ExitCodeOf(ErrorCode code);

/// One of several that could have served, and every reason why it does not.
struct Candidate {
  std::string name;
  std::vector<std::string> reasons;
};

/// An error as a value: what was found and expected, where, and what to do about it.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string what;   // "tensor "…": shape [512,7], expected [512,8] (K=128, group 16)"
  std::string where;  // "model-00002.safetensors, byte 88412160"; may be empty
  std::string hint;   // "the shard looks truncated; download it again"; may be empty
  std::vector<Candidate> candidates = {};  // of a choice in which nothing fitted; for programs

  /// One line: where, what, hint.
  std::string Message() const;
  /// The same error, said to have happened at `outer` (before its own place).
  Error At(std::string_view outer) &&;
};

/// A value or the Error that kept it from being made. Never both, never neither.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const { return state_.index() == 0; }
  bool ok() const { return state_.index() == 0; }

  T& operator*() & { return std::get<0>(state_); }
  const T& operator*() const& { return std::get<0>(state_); }
  T&& operator*() && { return std::get<0>(std::move(state_)); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }

  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}

  explicit operator bool() const { return ok_; }
  bool ok() const { return ok_; }
  const Error& error() const& { return error_; }
  Error&& error() && { return std::move(error_); }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace nibble

#define NIBBLE_CAT_(a, b) a##b
#define NIBBLE_CAT(a, b) NIBBLE_CAT_(a, b)
#define NIBBLE_TRY_(r, decl, expr)     \
  auto r = (expr);                     \
  if (!r) return std::move(r).error(); \
  decl = *std::move(r)

/// NIBBLE_TRY(auto x, MakeX()): declares x from a Result, or returns its Error from the enclosing
/// function.
#define NIBBLE_TRY(decl, expr) NIBBLE_TRY_(NIBBLE_CAT(nibble_try_, __COUNTER__), decl, expr)
/// The same for a Result<void>.
#define NIBBLE_CHECK_OK(expr)                          \
  do {                                                 \
    if (auto nibble_status = (expr); !nibble_status) { \
      return std::move(nibble_status).error();         \
    }                                                  \
  } while (false)
