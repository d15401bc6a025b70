#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>

namespace nibble::text::jinja {
namespace {

template <class Pairs>
auto* FindIn(Pairs& pairs, std::string_view key) {
  const auto found =
      std::find_if(pairs.begin(), pairs.end(), [&](const auto& p) { return p.first == key; });
  return found == pairs.end() ? nullptr : &found->second;
}

struct Extent {
  int depth = 1;
  uint64_t weight = 1;

  void Add(const Value& item) {
    depth = std::max(depth, 1 + item.Depth());
    weight = std::min(weight + item.Weight(), 2 * kMaxValueWeight);  // saturates: no overflow
  }
  Result<void> Check() const {
    if (depth > kMaxValueDepth) {
      return Err(ErrorCode::kInvalidArgument, "lists or mappings nest deeper than {}",
                 kMaxValueDepth);
    }
    if (weight > kMaxValueWeight) {
      return Err(ErrorCode::kInvalidArgument, "a list or mapping holds more than {} bytes",
                 kMaxValueWeight);
    }
    return {};
  }
};

bool EqualDicts(const Mapping& a, const Mapping& b) {
  if (a.items.size() != b.items.size()) return false;
  return std::all_of(a.items.begin(), a.items.end(), [&](const auto& item) {
    const Value* other = b.Find(item.first);
    return other && Equal(item.second, *other);
  });
}

}  // namespace

const Value* Mapping::Find(std::string_view key) const { return FindIn(items, key); }

const Value* Namespace::Find(std::string_view name) const { return FindIn(attributes, name); }

bool Value::Truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_int()) return integer() != 0;
  if (Is<double>()) return As<double>() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !items().empty();
  if (is_dict()) return !dict().items.empty();
  return true;
}

int Value::Depth() const {
  if (is_list()) return As<List>()->depth;
  if (is_dict()) return dict().depth;
  if (Is<std::shared_ptr<LoopState>>()) return 1 + As<std::shared_ptr<LoopState>>()->items->depth;
  return 0;
}

uint64_t Value::Weight() const {
  if (is_string()) return 1 + string().size();
  if (is_list()) return As<List>()->weight;
  if (is_dict()) return dict().weight;
  return 1;
}

std::string_view Value::TypeName() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "none";
  if (Is<bool>()) return "bool";
  if (Is<int64_t>()) return "int";
  if (Is<double>()) return "float";
  if (is_string()) return "string";
  if (is_list()) return As<List>()->is_tuple ? "tuple" : "list";
  if (is_dict()) return "mapping";
  if (Is<Namespace*>()) return "namespace";
  if (Is<std::shared_ptr<LoopState>>()) return "loop";
  return "function";
}

Result<Value> MakeList(std::vector<Value> items, bool is_tuple) {
  Extent extent;
  for (const Value& item : items) extent.Add(item);
  NIBBLE_CHECK_OK(extent.Check());
  return Value(std::make_shared<const Sequence>(
      Sequence{std::move(items), is_tuple, extent.depth, extent.weight}));
}

Result<Value> MakeDict(std::vector<std::pair<std::string, Value>> items) {
  Extent extent;
  for (const auto& [key, item] : items) {
    extent.Add(item);
    extent.weight += key.size();
  }
  NIBBLE_CHECK_OK(extent.Check());
  return Value(
      std::make_shared<const Mapping>(Mapping{std::move(items), extent.depth, extent.weight}));
}

Result<Value> FromJson(const Json& json) {
  if (json.is_null()) return Value(None{});
  if (json.is_bool()) return Value(json.boolean());
  if (json.is_int()) return Value(json.integer());
  if (json.is_double()) return Value(json.number());
  if (json.is_string()) return Value(json.string());
  if (json.is_array()) {
    std::vector<Value> items;
    items.reserve(json.array().size());
    for (const Json& item : json.array()) {
      NIBBLE_TRY(Value value, FromJson(item));
      items.push_back(std::move(value));
    }
    return MakeList(std::move(items));
  }
  std::vector<std::pair<std::string, Value>> items;
  items.reserve(json.object().size());
  for (const auto& [key, item] : json.object()) {
    NIBBLE_TRY(Value value, FromJson(item));
    items.emplace_back(key, std::move(value));
  }
  return MakeDict(std::move(items));
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_int() && b.is_int()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_undefined() || a.is_none()) {
    return a.is_undefined() == b.is_undefined() && a.is_none() == b.is_none();
  }
  if (a.is_list() && b.is_list()) {
    if (a.As<Value::List>()->is_tuple != b.As<Value::List>()->is_tuple) return false;
    return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                      Equal);
  }
  if (a.is_dict() && b.is_dict()) return EqualDicts(a.dict(), b.dict());
  if (a.Is<Namespace*>() && b.Is<Namespace*>()) return a.As<Namespace*>() == b.As<Namespace*>();
  return false;
}

Result<bool> Less(const Value& a, const Value& b) {
  if (a.is_int() && b.is_int()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  // Code points order as their UTF-8 bytes do.
  if (a.is_string() && b.is_string()) return a.string() < b.string();
  if (a.is_list() && b.is_list()) {
    const size_t common = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < common; ++i) {
      if (!Equal(a.items()[i], b.items()[i])) return Less(a.items()[i], b.items()[i]);
    }
    return a.items().size() < b.items().size();
  }
  return Err(ErrorCode::kInvalidArgument, "{} and {} have no order", a.TypeName(), b.TypeName());
}

}  // namespace nibble::text::jinja
