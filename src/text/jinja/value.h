#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace nibble::text::jinja {

class Value;
struct Stmt;
struct LoopState;

/// What a name that nobody set stands for. `name` lives as long as the template or the render.
struct Undefined {
  std::string_view name;
};
struct None {};

using Text = std::shared_ptr<const std::string>;

/// Lists and tuples. Nothing in a template can change one once it is made (as in the sandbox that
/// the reference renders in), so values share freely and hold no cycles.
struct Sequence {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;        // of nesting
  uint64_t weight = 1;  // see Value::Weight
};
struct Mapping {
  std::vector<std::pair<std::string, Value>> items;  // in order; a key once
  int depth = 1;
  uint64_t weight = 1;

  const Value* Find(std::string_view key) const;
};

/// namespace(...): the one thing with attributes that can be set. The render owns all of them until
/// its end; values only point to them.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;

  const Value* Find(std::string_view name) const;
};

enum class Global : uint8_t { kRange, kNamespace, kDict, kRaise };

/// A method that was looked up and not called. It is defined and callable, and nothing else.
struct Method {};

/// A value of a template, by Python's rules.
class Value {
 public:
  using List = std::shared_ptr<const Sequence>;
  using Dict = std::shared_ptr<const Mapping>;

  Value() = default;
  Value(Undefined v) : v_(v) {}
  Value(None v) : v_(v) {}
  Value(bool v) : v_(v) {}
  Value(int64_t v) : v_(v) {}
  Value(double v) : v_(v) {}
  Value(std::string v) : v_(std::make_shared<const std::string>(std::move(v))) {}
  Value(std::string_view v) : Value(std::string(v)) {}
  Value(const char*) = delete;  // would be a bool
  Value(List v) : v_(std::move(v)) {}
  Value(Dict v) : v_(std::move(v)) {}
  Value(Namespace* v) : v_(v) {}
  Value(const Stmt* macro) : v_(macro) {}
  Value(Global v) : v_(v) {}
  Value(Method v) : v_(v) {}
  Value(std::shared_ptr<LoopState> v) : v_(std::move(v)) {}

  template <class T>
  bool Is() const {
    return std::holds_alternative<T>(v_);
  }
  template <class T>
  const T& As() const {
    return std::get<T>(v_);
  }

  bool is_undefined() const { return Is<Undefined>(); }
  bool is_none() const { return Is<None>(); }
  bool is_string() const { return Is<Text>(); }
  bool is_list() const { return Is<List>(); }
  bool is_dict() const { return Is<Dict>(); }
  bool is_int() const { return Is<int64_t>() || Is<bool>(); }  // a bool is an int to Python
  bool is_number() const { return is_int() || Is<double>(); }

  const std::string& string() const { return *As<Text>(); }
  const std::vector<Value>& items() const { return As<List>()->items; }
  const Mapping& dict() const { return *As<Dict>(); }
  int64_t integer() const { return Is<bool>() ? As<bool>() : As<int64_t>(); }
  double number() const { return is_int() ? static_cast<double>(integer()) : As<double>(); }

  /// What `bool()` says.
  bool Truthy() const;
  /// Of nesting: 0 for a scalar.
  int Depth() const;
  /// What going through all of it costs: one an item and one a byte of text. A part that is shared
  /// counts each time, so a small template cannot build what takes years to print.
  uint64_t Weight() const;
  /// "string", "list", ...: for error texts.
  std::string_view TypeName() const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, Text, List, Dict, Namespace*, const Stmt*,
               Global, Method, std::shared_ptr<LoopState>>
      v_;
};

/// The `loop` of a for.
struct LoopState {
  Value::List items;
  size_t index = 0;
};

/// Containers nest at most so deep: comparing, printing and freeing them recurses.
inline constexpr int kMaxValueDepth = 100;
inline constexpr uint64_t kMaxValueWeight = uint64_t{1} << 28;

/// errors kInvalidArgument: nested too deeply, or too heavy
Result<Value> MakeList(std::vector<Value> items, bool is_tuple = false);
Result<Value> MakeDict(std::vector<std::pair<std::string, Value>> items);
Result<Value> FromJson(const Json& json);

/// Python's ==.
bool Equal(const Value& a, const Value& b);
/// Python's <. errors kInvalidArgument: types without an order
Result<bool> Less(const Value& a, const Value& b);

/// Appends Python's str() of a value. errors kUnsupported: a value whose text is Python's internals
Result<void> AppendStr(std::string& out, const Value& value);

struct JsonFormat {
  int indent = -1;  // below 0: one line
  std::string_view comma = ", ";
  std::string_view colon = ": ";
  bool ascii = false;
  bool sort_keys = false;
};
/// Appends json.dumps(value, ...). errors kInvalidArgument: a value that JSON has no word for
Result<void> AppendJson(std::string& out, const Value& value, const JsonFormat& format);

}  // namespace nibble::text::jinja
