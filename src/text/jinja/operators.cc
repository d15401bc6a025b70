#include <algorithm>
#include <cmath>

#include "text/jinja/runtime.h"

namespace nibble::text::jinja {
namespace {

Error NoOperator(std::string_view op, const Value& a, const Value& b) {
  return Err(ErrorCode::kInvalidArgument, "{} {} {} makes no sense", a.TypeName(), op,
             b.TypeName());
}

Error TooLarge() { return Err(ErrorCode::kUnsupported, "a number beyond 64 bits"); }
Error DivisionByZero() { return Err(ErrorCode::kInvalidArgument, "a division by zero"); }

// Python's // and % round towards minus infinity.
int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

Result<Value> IntPower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  if (base == 0 || base == 1 || base == -1) {
    return Value(exponent == 0 ? int64_t{1} : base == -1 && exponent % 2 == 0 ? int64_t{1} : base);
  }
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(result, base, &result)) return TooLarge();
  }
  return Value(result);
}

Result<Value> IntBinary(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "/") {
    if (b == 0) return DivisionByZero();
    return Value(static_cast<double>(a) / static_cast<double>(b));
  }
  if (op == "//" || op == "%") {
    if (b == 0) return DivisionByZero();
    if (b == -1) {
      if (op == "%") return Value(int64_t{0});
      if (__builtin_sub_overflow(int64_t{0}, a, &result)) return TooLarge();
      return Value(result);
    }
    const int64_t quotient = FloorDiv(a, b);
    return Value(op == "//" ? quotient : a - quotient * b);
  }
  if (op == "**") {
    if (b >= 0) return IntPower(a, b);
    if (a == 0) return DivisionByZero();
    return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  const bool overflow = op == "+"   ? __builtin_add_overflow(a, b, &result)
                        : op == "-" ? __builtin_sub_overflow(a, b, &result)
                                    : __builtin_mul_overflow(a, b, &result);
  if (overflow) return TooLarge();
  return Value(result);
}

Result<Value> FloatBinary(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    if ((a == 0 && b < 0) || (a < 0 && b != std::floor(b))) return DivisionByZero();
    return Value(std::pow(a, b));
  }
  if (b == 0) return DivisionByZero();
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == "%") return Value(rest == 0 ? std::copysign(0.0, b) : rest);
  return Value(std::round((a - rest) / b));
}

Result<Value> Repeat(Runtime& runtime, const Value& what, int64_t times) {
  const auto n = static_cast<uint64_t>(std::max<int64_t>(times, 0));
  const uint64_t size =
      what.is_string() ? what.string().size() : what.items().size() * sizeof(Value);
  if (size != 0 && n > runtime.limits().work / size) {
    return Err(ErrorCode::kInvalidArgument, "a repetition of {} items {} times", size, n);
  }
  NIBBLE_CHECK_OK(runtime.Spend(size * n));
  if (what.is_string()) {
    std::string text;
    text.reserve(size * n);
    for (uint64_t i = 0; size != 0 && i < n; ++i) text += what.string();
    return Value(std::move(text));
  }
  std::vector<Value> items;
  for (uint64_t i = 0; size != 0 && i < n; ++i) {
    items.insert(items.end(), what.items().begin(), what.items().end());
  }
  return MakeList(std::move(items), what.As<Value::List>()->is_tuple);
}

Result<bool> Contains(Runtime& runtime, const Value& item, const Value& container) {
  if (container.is_string()) {
    if (item.is_undefined()) return UndefinedError(item);
    if (!item.is_string()) return NoOperator("in", item, container);
    NIBBLE_CHECK_OK(runtime.Spend(container.string().size()));
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) {
    NIBBLE_CHECK_OK(runtime.Spend(1 + container.dict().items.size() / 8));
    return item.is_string() && container.dict().Find(item.string()) != nullptr;
  }
  if (container.is_undefined()) return false;
  if (!container.is_list()) return NoOperator("in", item, container);
  for (const Value& other : container.items()) {
    NIBBLE_TRY(const bool equal, runtime.Equal(item, other));
    if (equal) return true;
  }
  return false;
}

}  // namespace

Result<Value> Binary(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (a.is_int() && b.is_int()) return IntBinary(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return FloatBinary(op, a.number(), b.number());
  if (op == "+" && a.is_string() && b.is_string()) return runtime.NewText(a.string() + b.string());
  if (op == "+" && a.is_list() && b.is_list() &&
      a.As<Value::List>()->is_tuple == b.As<Value::List>()->is_tuple) {
    std::vector<Value> items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return runtime.NewList(std::move(items), a.As<Value::List>()->is_tuple);
  }
  if (op == "*" && (a.is_string() || a.is_list()) && b.is_int())
    return Repeat(runtime, a, b.integer());
  if (op == "*" && (b.is_string() || b.is_list()) && a.is_int())
    return Repeat(runtime, b, a.integer());
  if (op == "%" && a.is_string())
    return Err(ErrorCode::kUnsupported, "formatting a string with % is not known here");
  return NoOperator(op, a, b);
}

Result<Value> Negate(const Value& value) {
  if (value.is_undefined()) return UndefinedError(value);
  if (value.Is<double>()) return Value(-value.As<double>());
  if (!value.is_int())
    return Err(ErrorCode::kInvalidArgument, "-{} makes no sense", value.TypeName());
  return IntBinary("-", 0, value.integer());
}

Result<bool> Compare(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return runtime.Equal(a, b);
  if (op == "!=") {
    NIBBLE_TRY(const bool equal, runtime.Equal(a, b));
    return !equal;
  }
  if (op == "in" || op == "not in") {
    NIBBLE_TRY(const bool found, Contains(runtime, a, b));
    return found == (op == "in");
  }
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (op == "<") return runtime.Less(a, b);
  if (op == ">") return runtime.Less(b, a);
  if (a.is_number() && b.is_number() && !(a.is_int() && b.is_int())) {  // a NaN is neither
    return op == "<=" ? a.number() <= b.number() : a.number() >= b.number();
  }
  NIBBLE_TRY(const bool less, op == "<=" ? runtime.Less(b, a) : runtime.Less(a, b));
  return !less;
}

}  // namespace nibble::text::jinja
