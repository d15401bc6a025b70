#include "text/jinja/tests.h"

#include <algorithm>

namespace nibble::text::jinja {
namespace {

template <bool (*kIs)(const Value&)>
Result<bool> Unary(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  return kIs(args[0]);
}

bool Defined(const Value& v) { return !v.is_undefined(); }
bool NotDefined(const Value& v) { return v.is_undefined(); }
bool IsNone(const Value& v) { return v.is_none(); }
bool IsString(const Value& v) { return v.is_string(); }
bool IsMapping(const Value& v) { return v.is_dict(); }
bool IsNumber(const Value& v) { return v.is_number(); }
bool IsInteger(const Value& v) { return v.Is<int64_t>(); }
bool IsFloat(const Value& v) { return v.Is<double>(); }
bool IsBoolean(const Value& v) { return v.Is<bool>(); }
bool IsTrue(const Value& v) { return v.Is<bool>() && v.As<bool>(); }
bool IsFalse(const Value& v) { return v.Is<bool>() && !v.As<bool>(); }
bool IsLoop(const Value& v) { return v.Is<std::shared_ptr<LoopState>>(); }
// An undefined value has a length and iterates, as nothing.
bool IsSequence(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_list() || v.is_dict();
}
bool IsIterable(const Value& v) { return IsSequence(v) || IsLoop(v); }
bool IsCallable(const Value& v) {
  return v.Is<const Stmt*>() || v.Is<Global>() || v.Is<Method>() || IsLoop(v);
}

template <int kRest>
Result<bool> Parity(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const Value rest, Binary(runtime, "%", args[0], Value(int64_t{2})));
  return runtime.Equal(rest, Value(int64_t{kRest}));
}

Result<bool> DivisibleBy(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "num"}, 2));
  NIBBLE_TRY(const Value rest, Binary(runtime, "%", args[0], args[1]));
  return runtime.Equal(rest, Value(int64_t{0}));
}

enum class Op : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn };
constexpr std::string_view kOpNames[] = {"==", "!=", "<", "<=", ">", ">=", "in"};

template <Op kOp>
Result<bool> Comparison(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"a", "b"}, 2));
  return Compare(runtime, kOpNames[static_cast<int>(kOp)], args[0], args[1]);
}

Result<bool> IsCase(const Arguments& arguments, bool upper) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  std::string text;
  NIBBLE_CHECK_OK(AppendStr(text, args[0]));
  bool letters = false;
  for (char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80)
      return Err(ErrorCode::kUnsupported, "letter case of a text that is not all ASCII");
    const bool is_upper = c >= 'A' && c <= 'Z';
    const bool is_lower = c >= 'a' && c <= 'z';
    if (upper ? is_lower : is_upper) return false;
    letters |= is_upper || is_lower;
  }
  return letters;
}
Result<bool> IsUpper(Runtime&, const Arguments& arguments) { return IsCase(arguments, true); }
Result<bool> IsLower(Runtime&, const Arguments& arguments) { return IsCase(arguments, false); }

struct Row {
  std::string_view name;
  TestFunction run;
};
constexpr Row kTests[] = {{"defined", Unary<Defined>},
                          {"undefined", Unary<NotDefined>},
                          {"none", Unary<IsNone>},
                          {"string", Unary<IsString>},
                          {"mapping", Unary<IsMapping>},
                          {"number", Unary<IsNumber>},
                          {"integer", Unary<IsInteger>},
                          {"float", Unary<IsFloat>},
                          {"boolean", Unary<IsBoolean>},
                          {"true", Unary<IsTrue>},
                          {"false", Unary<IsFalse>},
                          {"sequence", Unary<IsSequence>},
                          {"iterable", Unary<IsIterable>},
                          {"callable", Unary<IsCallable>},
                          {"odd", Parity<1>},
                          {"even", Parity<0>},
                          {"divisibleby", DivisibleBy},
                          {"eq", Comparison<Op::kEq>},
                          {"equalto", Comparison<Op::kEq>},
                          {"ne", Comparison<Op::kNe>},
                          {"lt", Comparison<Op::kLt>},
                          {"lessthan", Comparison<Op::kLt>},
                          {"le", Comparison<Op::kLe>},
                          {"gt", Comparison<Op::kGt>},
                          {"greaterthan", Comparison<Op::kGt>},
                          {"ge", Comparison<Op::kGe>},
                          {"in", Comparison<Op::kIn>},
                          {"upper", IsUpper},
                          {"lower", IsLower}};

}  // namespace

TestFunction FindTest(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTests), std::end(kTests),
                                   [&](const Row& r) { return r.name == name; });
  return found == std::end(kTests) ? nullptr : found->run;
}

}  // namespace nibble::text::jinja
