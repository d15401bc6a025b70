#include "text/jinja/expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#include "base/quoted.h"
#include "text/jinja/filters.h"
#include "text/jinja/tests.h"

namespace nibble::text::jinja {

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseTuple(bool conditional, bool in_brackets) {
  const int line = current().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  while (true) {
    if (current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd ||
        AtOp(")"))
      break;
    NIBBLE_TRY(const ExprPtr item, ParseExpression(conditional));
    items.push_back(item);
    if (!SkipOp(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return items[0];
  if (!is_tuple && !in_brackets) return Unexpected("an expression");
  return Make(ExprKind::kTuple, line, std::move(items));
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseExpression(bool conditional) {
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  NIBBLE_TRY(ExprPtr node, ParseOr());
  while (conditional && AtName("if")) {
    const int line = current().line;
    Next();
    NIBBLE_TRY(const ExprPtr condition, ParseOr());
    ExprPtr otherwise = nullptr;
    if (SkipName("else")) {
      NIBBLE_TRY(otherwise, ParseExpression());
    }
    NIBBLE_TRY(node, Make(ExprKind::kConditional, line, {node, condition, otherwise}));
  }
  return node;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseOr() {
  NIBBLE_TRY(ExprPtr left, ParseAnd());
  while (AtName("or")) {
    const int line = current().line;
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseAnd());
    NIBBLE_TRY(left, Make(ExprKind::kOr, line, {left, right}));
  }
  return left;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseAnd() {
  NIBBLE_TRY(ExprPtr left, ParseNot());
  while (AtName("and")) {
    const int line = current().line;
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseNot());
    NIBBLE_TRY(left, Make(ExprKind::kAnd, line, {left, right}));
  }
  return left;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseNot() {
  if (!AtName("not")) return ParseCompare();
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  const int line = current().line;
  Next();
  NIBBLE_TRY(const ExprPtr inner, ParseNot());
  return Make(ExprKind::kNot, line, {inner});
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseCompare() {
  Expr compare;
  compare.kind = ExprKind::kCompare;
  const int line = current().line;
  NIBBLE_TRY(const ExprPtr first, ParseSum());
  compare.args = {first};
  while (true) {
    constexpr std::array<std::string_view, 6> kComparisons = {"==", "!=", "<", "<=", ">", ">="};
    if (current().kind == TokenKind::kOperator &&
        std::find(kComparisons.begin(), kComparisons.end(), current().text) != kComparisons.end()) {
      compare.operators.push_back(current().text);
      Next();
    } else if (SkipName("in")) {
      compare.operators.emplace_back("in");
    } else if (AtName("not") && IsName(Look(), "in")) {
      Next();
      Next();
      compare.operators.emplace_back("not in");
    } else {
      break;
    }
    NIBBLE_TRY(const ExprPtr operand, ParseSum());
    compare.args.push_back(operand);
  }
  if (compare.operators.empty()) return first;
  return Make(std::move(compare), line);
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseSum() {
  NIBBLE_TRY(ExprPtr left, ParseConcat());
  while (AtOp("+") || AtOp("-")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseConcat());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseConcat() {
  const int line = current().line;
  NIBBLE_TRY(const ExprPtr first, ParseProduct());
  std::vector<ExprPtr> parts = {first};
  while (SkipOp("~")) {
    NIBBLE_TRY(const ExprPtr part, ParseProduct());
    parts.push_back(part);
  }
  if (parts.size() == 1) return first;
  return Make(ExprKind::kConcat, line, std::move(parts));
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseProduct() {
  NIBBLE_TRY(ExprPtr left, ParsePower());
  while (AtOp("*") || AtOp("/") || AtOp("//") || AtOp("%")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParsePower());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParsePower() {
  NIBBLE_TRY(ExprPtr left, ParseUnary());
  while (AtOp("**")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseUnary());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseUnary(bool with_filter) {
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  const int line = current().line;
  ExprPtr node = nullptr;
  if (AtOp("-") || AtOp("+")) {
    const ExprKind kind = AtOp("-") ? ExprKind::kNegative : ExprKind::kPositive;
    Next();
    NIBBLE_TRY(const ExprPtr inner, ParseUnary(false));
    NIBBLE_TRY(node, Make(kind, line, {inner}));
  } else {
    NIBBLE_TRY(node, ParsePrimary());
  }
  NIBBLE_TRY(node, ParsePostfix(node));
  if (!with_filter) return node;
  return ParseFilters(node);
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseNumber() {
  const Token token = current();
  Next();
  if (token.kind == TokenKind::kFloat)
    return Constant(Value(std::strtod(token.text.c_str(), nullptr)), token.line);
  if (token.text.size() > 1 && token.text[0] == '0' &&
      token.text.find_first_not_of('0') != std::string::npos) {
    return Fail(ErrorCode::kCorruptFile, "a number with a leading zero");
  }
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
  if (error != std::errc{})
    return Fail(ErrorCode::kUnsupported, fmt::format("the number {}", token.text.substr(0, 40)));
  return Constant(Value(value), token.line);
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParsePrimary() {
  const Token token = current();
  switch (token.kind) {
    case TokenKind::kName:
      Next();
      if (token.text == "true" || token.text == "True") return Constant(Value(true), token.line);
      if (token.text == "false" || token.text == "False") return Constant(Value(false), token.line);
      if (token.text == "none" || token.text == "None") return Constant(Value(None{}), token.line);
      return Make(ExprKind::kName, token.line, {}, token.text);
    case TokenKind::kString: {
      std::string text;
      for (; current().kind == TokenKind::kString; Next()) text += current().text;
      return Constant(Value(std::move(text)), token.line);
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ParseNumber();
    default:
      break;
  }
  if (AtOp("[")) return ParseList();
  if (AtOp("{")) return ParseDict();
  if (!SkipOp("(")) return Unexpected("an expression");
  NIBBLE_TRY(const ExprPtr node, ParseTuple(true, true));
  NIBBLE_CHECK_OK(ExpectOp(")"));
  return node;
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseList() {
  const int line = current().line;
  Next();
  std::vector<ExprPtr> items;
  while (!AtOp("]")) {
    if (!items.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    if (AtOp("]")) break;
    NIBBLE_TRY(const ExprPtr item, ParseExpression());
    items.push_back(item);
  }
  Next();
  return Make(ExprKind::kList, line, std::move(items));
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseDict() {
  const int line = current().line;
  Next();
  std::vector<ExprPtr> items;
  while (!AtOp("}")) {
    if (!items.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    if (AtOp("}")) break;
    NIBBLE_TRY(const ExprPtr key, ParseExpression());
    NIBBLE_CHECK_OK(ExpectOp(":"));
    NIBBLE_TRY(const ExprPtr value, ParseExpression());
    items.push_back(key);
    items.push_back(value);
  }
  Next();
  return Make(ExprKind::kDict, line, std::move(items));
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParsePostfix(ExprPtr node) {
  while (true) {
    if (AtOp(".")) {
      NIBBLE_TRY(node, ParseAttribute(node));
    } else if (AtOp("[")) {
      NIBBLE_TRY(node, ParseSubscript(node));
    } else if (AtOp("(")) {
      NIBBLE_TRY(node, ParseCall(node));
    } else {
      return node;
    }
  }
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseAttribute(ExprPtr node) {
  const int line = current().line;
  Next();
  if (current().kind == TokenKind::kInteger) {
    NIBBLE_TRY(const ExprPtr index, ParseNumber());
    return Make(ExprKind::kItem, line, {node, index});
  }
  NIBBLE_TRY(std::string name, ExpectName());
  if (name.find("__") == 0) {  // starts_with makes g++ 12 see an uninitialised byte
    return Fail(ErrorCode::kUnsupported, fmt::format("the attribute {} is not safe", Quoted(name)));
  }
  return Make(ExprKind::kAttribute, line, {node}, std::move(name));
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseSubscript(ExprPtr node) {
  const int line = current().line;
  Next();
  std::vector<ExprPtr> bounds;  // start, stop, step
  const auto bound = [&]() -> Result<void> {
    ExprPtr expr = nullptr;
    if (!AtOp(":") && !AtOp("]")) {
      NIBBLE_TRY(expr, ParseExpression());
    }
    bounds.push_back(expr);
    return {};
  };
  NIBBLE_CHECK_OK(bound());
  while (bounds.size() < 3 && SkipOp(":")) NIBBLE_CHECK_OK(bound());
  NIBBLE_CHECK_OK(ExpectOp("]"));
  if (bounds.size() == 1) {
    if (!bounds[0]) return Fail(ErrorCode::kCorruptFile, "an empty subscript");
    return Make(ExprKind::kItem, line, {node, bounds[0]});
  }
  bounds.resize(3);
  return Make(ExprKind::kSlice, line, {node, bounds[0], bounds[1], bounds[2]});
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseFilters(ExprPtr node) {
  while (true) {
    if (AtOp("|")) {
      NIBBLE_TRY(node, ParseFilter(node));
    } else if (AtName("is")) {
      NIBBLE_TRY(node, ParseTest(node));
    } else if (AtOp("(")) {
      NIBBLE_TRY(node, ParseCall(node));
    } else {
      return node;
    }
  }
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseFilter(ExprPtr node) {
  Next();  // "|"
  Expr filter;
  filter.kind = ExprKind::kFilter;
  filter.args = {node};
  const int line = current().line;
  NIBBLE_TRY(filter.text, ExpectName());
  if (!FindFilter(filter.text)) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("the filter {} is not known here", Quoted(filter.text)));
  }
  if (AtOp("(")) NIBBLE_CHECK_OK(ParseArguments(filter));
  return Make(std::move(filter), line);
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseTest(ExprPtr node) {
  Next();  // "is"
  const bool negated = SkipName("not");
  Expr test;
  test.kind = ExprKind::kTest;
  test.args = {node};
  const int line = current().line;
  NIBBLE_TRY(test.text, ExpectName());
  if (!FindTest(test.text)) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("the test {} is not known here", Quoted(test.text)));
  }
  const TokenKind kind = current().kind;
  if (AtOp("(")) {
    NIBBLE_CHECK_OK(ParseArguments(test));
  } else if ((kind == TokenKind::kName && !AtName("else") && !AtName("or") && !AtName("and")) ||
             kind == TokenKind::kString || kind == TokenKind::kInteger ||
             kind == TokenKind::kFloat || AtOp("[") || AtOp("{")) {
    if (AtName("is")) return Unexpected("no chain of tests");
    NIBBLE_TRY(ExprPtr argument, ParsePrimary());
    NIBBLE_TRY(argument, ParsePostfix(argument));
    test.args.push_back(argument);
  }
  NIBBLE_TRY(const ExprPtr result, Make(std::move(test), line));
  if (!negated) return result;
  return Make(ExprKind::kNot, line, {result});
}

Result<ExpressionParser::ExprPtr> ExpressionParser::ParseCall(ExprPtr node) {
  Expr call;
  call.kind = ExprKind::kCall;
  call.args = {node};
  const int line = current().line;
  NIBBLE_CHECK_OK(ParseArguments(call));
  return Make(std::move(call), line);
}

Result<void> ExpressionParser::ParseArguments(Expr& call) {
  Next();  // "("
  bool first = true;
  while (!AtOp(")")) {
    if (!first) NIBBLE_CHECK_OK(ExpectOp(","));
    if (AtOp(")")) break;
    first = false;
    if (AtOp("*") || AtOp("**"))
      return Fail(ErrorCode::kUnsupported, "arguments from a list or mapping are not known here");
    if (current().kind == TokenKind::kName && IsOp(Look(), "=")) {
      std::string name = current().text;
      Next();
      Next();
      NIBBLE_TRY(const ExprPtr value, ParseExpression());
      call.named.emplace_back(std::move(name), value);
    } else {
      if (!call.named.empty())
        return Fail(ErrorCode::kCorruptFile, "a plain argument follows a named one");
      NIBBLE_TRY(const ExprPtr value, ParseExpression());
      call.args.push_back(value);
    }
  }
  Next();
  return {};
}

}  // namespace nibble::text::jinja
