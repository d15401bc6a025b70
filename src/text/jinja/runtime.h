#pragma once

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::text::jinja {

/// What one render may cost. A template comes with the weights, from a stranger.
struct Limits {
  uint64_t steps = 100'000;           // statements, loop rounds and calls
  uint64_t work = uint64_t{1} << 28;  // expressions evaluated, bytes and items looked at or made
  size_t output_bytes = size_t{4} << 20;
  // Of our own recursion: expressions, blocks and macros together. At most 2 MB of stack, also with
  // AddressSanitizer.
  int depth = 250;
};

/// The budget and the things of one render that values point to.
class Runtime {
 public:
  explicit Runtime(const Limits& limits) : limits_(limits) {}

  /// errors kInvalidArgument: the template does too much
  Result<void> Step();
  Result<void> Spend(uint64_t work);

  // The operations that go through a whole value, paid for by its weight.
  Result<bool> Equal(const Value& a, const Value& b);
  Result<bool> Less(const Value& a, const Value& b);
  Result<std::string> Str(const Value& value);
  Result<Value> NewText(std::string text);
  Result<Value> NewList(std::vector<Value> items, bool is_tuple = false);

  /// Lives until the runtime ends.
  Namespace* NewNamespace() { return &namespaces_.emplace_back(); }
  const Limits& limits() const { return limits_; }

 private:
  Limits limits_;
  uint64_t steps_ = 0;
  uint64_t work_ = 0;
  std::deque<Namespace> namespaces_;
};

/// The arguments of a filter, test, method, function or macro; of a filter and a test the first is
/// what it is applied to.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;

  /// One value a parameter, undefined where nothing was given.
  /// errors   kInvalidArgument (too many, unknown, twice, or fewer than `required`)
  Result<std::vector<Value>> Bind(std::initializer_list<std::string_view> parameters,
                                  size_t required) const;
};

/// errors that a template's own logic causes
Error UndefinedError(const Value& undefined);

// --- access.cc: what . [] [:] in and for do ---

/// `name` must outlive the render: an absent attribute is called by it in errors.
Result<Value> GetAttribute(Runtime& runtime, const Value& object, std::string_view name);
Result<Value> GetItem(Runtime& runtime, const Value& object, const Value& key);
/// Bounds are none or undefined where absent.
Result<Value> GetSlice(Runtime& runtime, const Value& object, const Value& start, const Value& stop,
                       const Value& step);
/// The items that a for would see: of a list, the keys of a mapping, the characters of a string.
Result<Value::List> Iterate(Runtime& runtime, const Value& value);
Result<int64_t> LengthOf(const Value& value);

// --- operators.cc ---

/// op: + - * / // % **
Result<Value> Binary(Runtime& runtime, std::string_view op, const Value& a, const Value& b);
Result<Value> Negate(const Value& value);
/// op: == != < <= > >= in "not in"
Result<bool> Compare(Runtime& runtime, std::string_view op, const Value& a, const Value& b);

}  // namespace nibble::text::jinja
