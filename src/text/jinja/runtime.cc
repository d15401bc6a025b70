#include "text/jinja/runtime.h"

#include <algorithm>

#include "base/quoted.h"

namespace nibble::text::jinja {

Result<void> Runtime::Step() {
  if (++steps_ <= limits_.steps) return Spend(1);
  return Err(ErrorCode::kInvalidArgument, "the template takes more than {} steps", limits_.steps);
}

Result<void> Runtime::Spend(uint64_t work) {
  work_ += std::min(work, limits_.work + 1);
  if (work_ <= limits_.work) return {};
  return Err(ErrorCode::kInvalidArgument, "the template looks at more than {} bytes", limits_.work);
}

Result<bool> Runtime::Equal(const Value& a, const Value& b) {
  NIBBLE_CHECK_OK(Spend(std::min(a.Weight(), b.Weight())));
  return jinja::Equal(a, b);
}

Result<bool> Runtime::Less(const Value& a, const Value& b) {
  NIBBLE_CHECK_OK(Spend(std::min(a.Weight(), b.Weight())));
  return jinja::Less(a, b);
}

Result<std::string> Runtime::Str(const Value& value) {
  NIBBLE_CHECK_OK(Spend(value.Weight()));
  std::string out;
  NIBBLE_CHECK_OK(AppendStr(out, value));
  return out;
}

Result<Value> Runtime::NewText(std::string text) {
  NIBBLE_CHECK_OK(Spend(text.size()));
  return Value(std::move(text));
}

Result<Value> Runtime::NewList(std::vector<Value> items, bool is_tuple) {
  NIBBLE_CHECK_OK(Spend(sizeof(Value) * items.size()));
  return MakeList(std::move(items), is_tuple);
}

Result<std::vector<Value>> Arguments::Bind(std::initializer_list<std::string_view> parameters,
                                           size_t required) const {
  if (positional.size() > parameters.size()) {
    return Err(ErrorCode::kInvalidArgument, "{} arguments, expected at most {}", positional.size(),
               parameters.size());
  }
  std::vector<Value> values(parameters.size());
  std::vector<bool> given(parameters.size());
  for (size_t i = 0; i < positional.size(); ++i) {
    values[i] = positional[i];
    given[i] = true;
  }
  for (const auto& [name, value] : named) {
    const auto found = std::find(parameters.begin(), parameters.end(), name);
    const auto at = static_cast<size_t>(found - parameters.begin());
    if (found == parameters.end() || given[at]) {
      return Err(ErrorCode::kInvalidArgument, "the argument {} is unknown or given twice",
                 Quoted(name));
    }
    values[at] = value;
    given[at] = true;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!given[i]) {
      return Err(ErrorCode::kInvalidArgument, "the argument {} is missing",
                 Quoted(parameters.begin()[i]));
    }
  }
  return values;
}

Error UndefinedError(const Value& undefined) {
  const std::string_view name = undefined.As<Undefined>().name;
  return Err(ErrorCode::kInvalidArgument, "{} is undefined",
             name.empty() ? "an item" : Quoted(name));
}

}  // namespace nibble::text::jinja
