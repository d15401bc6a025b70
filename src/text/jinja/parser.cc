#include "text/jinja/parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <initializer_list>

#include "base/quoted.h"
#include "text/jinja/filters.h"
#include "text/jinja/lexer.h"
#include "text/jinja/tests.h"

namespace nibble::text::jinja {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;
constexpr int kMaxNesting = 100;  // of brackets and blocks, while parsing
constexpr int kMaxHeight = 120;   // of an expression's tree: a long chain is as deep as it is long

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Ast> Run() {
    NIBBLE_TRY(ast_.body, ParseBody({}));
    return std::move(ast_);
  }

 private:
  using ExprPtr = const Expr*;

  // --- Tokens ---
  const Token& current() const { return tokens_[pos_]; }
  const Token& Look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  void Next() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }
  static bool IsOp(const Token& t, std::string_view op) {
    return t.kind == TokenKind::kOperator && t.text == op;
  }
  static bool IsName(const Token& t, std::string_view name) {
    return t.kind == TokenKind::kName && t.text == name;
  }
  bool AtOp(std::string_view op) const { return IsOp(current(), op); }
  bool AtName(std::string_view name) const { return IsName(current(), name); }
  bool SkipOp(std::string_view op) {
    if (!AtOp(op)) return false;
    Next();
    return true;
  }
  bool SkipName(std::string_view name) {
    if (!AtName(name)) return false;
    Next();
    return true;
  }
  Error Fail(ErrorCode code, std::string what) const {
    return Error{code, std::move(what), fmt::format("line {}", current().line), {}};
  }
  Error Unexpected(std::string_view expected) const {
    const Token& t = current();
    const std::string found = t.kind == TokenKind::kEnd           ? "the end"
                              : t.kind == TokenKind::kBlockEnd    ? "\"%}\""
                              : t.kind == TokenKind::kVariableEnd ? "\"}}\""
                                                                  : Quoted(t.text);
    return Fail(ErrorCode::kCorruptFile, fmt::format("found {}, expected {}", found, expected));
  }
  Result<void> ExpectOp(std::string_view op) {
    if (!SkipOp(op)) return Unexpected(fmt::format("\"{}\"", op));
    return {};
  }
  Result<std::string> ExpectName() {
    if (current().kind != TokenKind::kName) return Unexpected("a name");
    std::string name = current().text;
    Next();
    return name;
  }
  Result<void> ExpectBlockEnd() {
    if (current().kind != TokenKind::kBlockEnd) return Unexpected("\"%}\"");
    Next();
    return {};
  }

  // --- Nodes ---
  Result<ExprPtr> Make(Expr expr, int line) {
    expr.line = line;
    for (ExprPtr arg : expr.args) expr.height = std::max(expr.height, arg ? 1 + arg->height : 1);
    for (const auto& [name, arg] : expr.named) expr.height = std::max(expr.height, 1 + arg->height);
    if (expr.height > kMaxHeight) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("an expression nests deeper than {}", kMaxHeight));
    }
    return &ast_.exprs.emplace_back(std::move(expr));
  }
  Result<ExprPtr> Make(ExprKind kind, int line, std::vector<ExprPtr> args, std::string text = {}) {
    Expr expr;
    expr.kind = kind;
    expr.args = std::move(args);
    expr.text = std::move(text);
    return Make(std::move(expr), line);
  }
  Result<ExprPtr> Constant(Value value, int line) {
    Expr expr;
    expr.value = std::move(value);
    return Make(std::move(expr), line);
  }

  /// Counts how deep we are in our own recursion.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
    ~Nesting() { --depth_; }
    bool TooDeep() const { return depth_ > kMaxNesting; }

   private:
    int& depth_;
  };
  Error TooDeep() const {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("brackets or blocks nest deeper than {}", kMaxNesting));
  }

  // --- Statements (parser_statements below) ---
  Result<Body> ParseBody(std::initializer_list<std::string_view> ends);
  Result<void> ParseStatement(Body& body);
  Result<void> ParseIf(Body& body);
  Result<void> ParseFor(Body& body);
  Result<void> ParseSet(Body& body);
  Result<void> ParseMacro(Body& body);
  Result<void> ParseWith(Body& body);
  Result<void> ParseFilterBlock(Body& body);
  Result<void> ParseGeneration(Body& body);
  Result<Body> ParseBlockBody(std::string_view end);
  Result<void> ParseTargets(Stmt& stmt, bool attributes, bool in_for);
  Stmt Begin(StmtKind kind) const {
    Stmt stmt;
    stmt.kind = kind;
    stmt.line = current().line;
    return stmt;
  }
  void Add(Body& body, Stmt stmt) { body.push_back(&ast_.stmts.emplace_back(std::move(stmt))); }

  // --- Expressions, loosest first ---
  Result<ExprPtr> ParseTuple(bool conditional, bool in_brackets = false);
  Result<ExprPtr> ParseExpression(bool conditional = true);
  Result<ExprPtr> ParseOr();
  Result<ExprPtr> ParseAnd();
  Result<ExprPtr> ParseNot();
  Result<ExprPtr> ParseCompare();
  Result<ExprPtr> ParseSum();
  Result<ExprPtr> ParseConcat();
  Result<ExprPtr> ParseProduct();
  Result<ExprPtr> ParsePower();
  Result<ExprPtr> ParseUnary(bool with_filter = true);
  Result<ExprPtr> ParsePrimary();
  Result<ExprPtr> ParseNumber();
  Result<ExprPtr> ParseList();
  Result<ExprPtr> ParseDict();
  Result<ExprPtr> ParsePostfix(ExprPtr node);
  Result<ExprPtr> ParseAttribute(ExprPtr node);
  Result<ExprPtr> ParseSubscript(ExprPtr node);
  Result<ExprPtr> ParseFilters(ExprPtr node);
  Result<ExprPtr> ParseFilter(ExprPtr node);
  Result<ExprPtr> ParseTest(ExprPtr node);
  Result<ExprPtr> ParseCall(ExprPtr node);
  Result<void> ParseArguments(Expr& call);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  Ast ast_;
  int depth_ = 0;
  int for_depth_ = 0;
  bool in_macro_ = false;
};

// --- Statements ---

Result<Body> Parser::ParseBody(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  Body body;
  while (true) {
    switch (current().kind) {
      case TokenKind::kData: {
        Stmt stmt = Begin(StmtKind::kText);
        stmt.text = current().text;
        Add(body, std::move(stmt));
        Next();
        break;
      }
      case TokenKind::kVariableBegin: {
        Stmt stmt = Begin(StmtKind::kOutput);
        Next();
        NIBBLE_TRY(const ExprPtr expr, ParseTuple(true));
        stmt.exprs = {expr};
        if (current().kind != TokenKind::kVariableEnd) return Unexpected("\"}}\"");
        Next();
        Add(body, std::move(stmt));
        break;
      }
      case TokenKind::kBlockBegin:
        Next();
        if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return AtName(end); }))
          return body;
        NIBBLE_CHECK_OK(ParseStatement(body));
        break;
      case TokenKind::kEnd:
        if (ends.size() != 0) return Unexpected(fmt::format("\"{}\"", *std::prev(ends.end())));
        return body;
      default:
        return Unexpected("text or a tag");
    }
  }
}

/// The body up to "{% end %}", all of which is taken.
Result<Body> Parser::ParseBlockBody(std::string_view end) {
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  NIBBLE_TRY(Body body, ParseBody({end}));
  Next();
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  return body;
}

Result<void> Parser::ParseStatement(Body& body) {
  const std::string name = current().kind == TokenKind::kName ? current().text : "";
  if (name == "if") return ParseIf(body);
  if (name == "for") return ParseFor(body);
  if (name == "set") return ParseSet(body);
  if (name == "macro") return ParseMacro(body);
  if (name == "with") return ParseWith(body);
  if (name == "filter") return ParseFilterBlock(body);
  if (name == "generation") return ParseGeneration(body);
  if (name == "break" || name == "continue") {
    if (for_depth_ == 0)
      return Fail(ErrorCode::kCorruptFile, fmt::format("\"{}\" outside of a for", name));
    Stmt stmt = Begin(name == "break" ? StmtKind::kBreak : StmtKind::kContinue);
    Next();
    Add(body, std::move(stmt));
    return ExpectBlockEnd();
  }
  constexpr std::array<std::string_view, 11> kKnownElsewhere = {
      "call",       "include", "import", "from",  "extends", "block",
      "autoescape", "do",      "trans",  "debug", "print"};
  if (std::find(kKnownElsewhere.begin(), kKnownElsewhere.end(), name) != kKnownElsewhere.end()) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("the statement \"{}\" is not known here", name));
  }
  return Unexpected("a statement");
}

Result<void> Parser::ParseIf(Body& body) {
  Stmt stmt = Begin(StmtKind::kIf);
  while (true) {
    Next();  // "if" or "elif"
    NIBBLE_TRY(const ExprPtr condition, ParseTuple(false));
    stmt.exprs.push_back(condition);
    NIBBLE_CHECK_OK(ExpectBlockEnd());
    NIBBLE_TRY(Body branch, ParseBody({"elif", "else", "endif"}));
    stmt.bodies.push_back(std::move(branch));
    if (!AtName("elif")) break;
  }
  if (SkipName("else")) {
    NIBBLE_TRY(Body branch, ParseBlockBody("endif"));
    stmt.bodies.push_back(std::move(branch));
  } else {
    Next();
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseTargets(Stmt& stmt, bool attributes, bool in_for) {
  const bool brackets = SkipOp("(");
  while (true) {
    Target target;
    NIBBLE_TRY(target.name, ExpectName());
    if (attributes && SkipOp(".")) {
      NIBBLE_TRY(target.attribute, ExpectName());
    }
    constexpr std::array<std::string_view, 6> kReserved = {"true", "false", "none",
                                                           "True", "False", "None"};
    if (std::find(kReserved.begin(), kReserved.end(), target.name) != kReserved.end()) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("\"{}\" cannot be set", target.name));
    }
    stmt.targets.push_back(std::move(target));
    if (!SkipOp(",")) break;
    stmt.is_tuple = true;
    if (AtOp(")") || AtOp("=") || (in_for && AtName("in"))) break;
  }
  if (brackets) NIBBLE_CHECK_OK(ExpectOp(")"));
  return {};
}

Result<void> Parser::ParseFor(Body& body) {
  Stmt stmt = Begin(StmtKind::kFor);
  Next();
  NIBBLE_CHECK_OK(ParseTargets(stmt, false, true));
  if (!SkipName("in")) return Unexpected("\"in\"");
  NIBBLE_TRY(const ExprPtr iterable, ParseTuple(false));
  ExprPtr filter = nullptr;
  if (SkipName("if")) {
    NIBBLE_TRY(filter, ParseExpression());
  }
  stmt.exprs = {iterable, filter};
  if (AtName("recursive"))
    return Fail(ErrorCode::kUnsupported, "a recursive for is not known here");
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  ++for_depth_;
  NIBBLE_TRY(Body loop, ParseBody({"else", "endfor"}));
  --for_depth_;
  stmt.bodies.push_back(std::move(loop));
  if (SkipName("else")) {
    NIBBLE_TRY(Body otherwise, ParseBlockBody("endfor"));
    stmt.bodies.push_back(std::move(otherwise));
  } else {
    Next();
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseSet(Body& body) {
  Stmt stmt = Begin(StmtKind::kSet);
  Next();
  NIBBLE_CHECK_OK(ParseTargets(stmt, true, false));
  if (SkipOp("=")) {
    NIBBLE_TRY(const ExprPtr value, ParseTuple(true));
    stmt.exprs = {value};
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  } else {
    if (stmt.is_tuple) return Unexpected("\"=\"");
    stmt.kind = StmtKind::kSetBlock;
    NIBBLE_TRY(ExprPtr value, Make(ExprKind::kBlockText, stmt.line, {}));
    while (AtOp("|")) {
      NIBBLE_TRY(value, ParseFilter(value));
    }
    stmt.exprs = {value};
    NIBBLE_TRY(Body inner, ParseBlockBody("endset"));
    stmt.bodies.push_back(std::move(inner));
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseMacro(Body& body) {
  Stmt stmt = Begin(StmtKind::kMacro);
  Next();
  // A macro sees the names around it for as long as it lives; here that is the whole template's, so it must stand there.
  if (for_depth_ > 0 || in_macro_)
    return Fail(ErrorCode::kUnsupported, "a macro inside a for or a macro is not known here");
  NIBBLE_TRY(stmt.text, ExpectName());
  NIBBLE_CHECK_OK(ExpectOp("("));
  while (!AtOp(")")) {
    if (!stmt.targets.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    if (AtOp(")")) break;
    NIBBLE_TRY(std::string parameter, ExpectName());
    stmt.targets.push_back({std::move(parameter), {}});
    if (SkipOp("=")) {
      NIBBLE_TRY(const ExprPtr value, ParseExpression());
      stmt.exprs.push_back(value);
    } else if (!stmt.exprs.empty()) {
      return Fail(ErrorCode::kCorruptFile, "a parameter without default follows one with");
    }
  }
  Next();
  in_macro_ = true;
  NIBBLE_TRY(Body inner, ParseBlockBody("endmacro"));
  in_macro_ = false;
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseWith(Body& body) {
  Stmt stmt = Begin(StmtKind::kWith);
  Next();
  while (current().kind != TokenKind::kBlockEnd) {
    if (!stmt.targets.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    NIBBLE_TRY(std::string name, ExpectName());
    stmt.targets.push_back({std::move(name), {}});
    NIBBLE_CHECK_OK(ExpectOp("="));
    NIBBLE_TRY(const ExprPtr value, ParseExpression());
    stmt.exprs.push_back(value);
  }
  // Its names are of a scope that a macro's call would not see.
  ++for_depth_;
  NIBBLE_TRY(Body inner, ParseBlockBody("endwith"));
  --for_depth_;
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseFilterBlock(Body& body) {
  Stmt stmt = Begin(StmtKind::kFilterBlock);
  NIBBLE_TRY(ExprPtr value, Make(ExprKind::kBlockText, stmt.line, {}));
  do {
    NIBBLE_TRY(value, ParseFilter(value));  // takes "filter" or "|" first
  } while (AtOp("|"));
  stmt.exprs = {value};
  NIBBLE_TRY(Body inner, ParseBlockBody("endfilter"));
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

/// {% generation %}: marks the assistant's text for training; renders as its body.
Result<void> Parser::ParseGeneration(Body& body) {
  Next();
  NIBBLE_TRY(const Body inner, ParseBlockBody("endgeneration"));
  body.insert(body.end(), inner.begin(), inner.end());
  return {};
}

// --- Expressions ---

Result<Parser::ExprPtr> Parser::ParseTuple(bool conditional, bool in_brackets) {
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

Result<Parser::ExprPtr> Parser::ParseExpression(bool conditional) {
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

Result<Parser::ExprPtr> Parser::ParseOr() {
  NIBBLE_TRY(ExprPtr left, ParseAnd());
  while (AtName("or")) {
    const int line = current().line;
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseAnd());
    NIBBLE_TRY(left, Make(ExprKind::kOr, line, {left, right}));
  }
  return left;
}

Result<Parser::ExprPtr> Parser::ParseAnd() {
  NIBBLE_TRY(ExprPtr left, ParseNot());
  while (AtName("and")) {
    const int line = current().line;
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseNot());
    NIBBLE_TRY(left, Make(ExprKind::kAnd, line, {left, right}));
  }
  return left;
}

Result<Parser::ExprPtr> Parser::ParseNot() {
  if (!AtName("not")) return ParseCompare();
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  const int line = current().line;
  Next();
  NIBBLE_TRY(const ExprPtr inner, ParseNot());
  return Make(ExprKind::kNot, line, {inner});
}

Result<Parser::ExprPtr> Parser::ParseCompare() {
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

Result<Parser::ExprPtr> Parser::ParseSum() {
  NIBBLE_TRY(ExprPtr left, ParseConcat());
  while (AtOp("+") || AtOp("-")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseConcat());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<Parser::ExprPtr> Parser::ParseConcat() {
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

Result<Parser::ExprPtr> Parser::ParseProduct() {
  NIBBLE_TRY(ExprPtr left, ParsePower());
  while (AtOp("*") || AtOp("/") || AtOp("//") || AtOp("%")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParsePower());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<Parser::ExprPtr> Parser::ParsePower() {
  NIBBLE_TRY(ExprPtr left, ParseUnary());
  while (AtOp("**")) {
    const Token op = current();
    Next();
    NIBBLE_TRY(const ExprPtr right, ParseUnary());
    NIBBLE_TRY(left, Make(ExprKind::kBinary, op.line, {left, right}, op.text));
  }
  return left;
}

Result<Parser::ExprPtr> Parser::ParseUnary(bool with_filter) {
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

Result<Parser::ExprPtr> Parser::ParseNumber() {
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

Result<Parser::ExprPtr> Parser::ParsePrimary() {
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

Result<Parser::ExprPtr> Parser::ParseList() {
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

Result<Parser::ExprPtr> Parser::ParseDict() {
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

Result<Parser::ExprPtr> Parser::ParsePostfix(ExprPtr node) {
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

Result<Parser::ExprPtr> Parser::ParseAttribute(ExprPtr node) {
  const int line = current().line;
  Next();
  if (current().kind == TokenKind::kInteger) {
    NIBBLE_TRY(const ExprPtr index, ParseNumber());
    return Make(ExprKind::kItem, line, {node, index});
  }
  NIBBLE_TRY(std::string name, ExpectName());
  if (name.starts_with("__")) {
    return Fail(ErrorCode::kUnsupported, fmt::format("the attribute {} is not safe", Quoted(name)));
  }
  return Make(ExprKind::kAttribute, line, {node}, std::move(name));
}

Result<Parser::ExprPtr> Parser::ParseSubscript(ExprPtr node) {
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

Result<Parser::ExprPtr> Parser::ParseFilters(ExprPtr node) {
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

Result<Parser::ExprPtr> Parser::ParseFilter(ExprPtr node) {
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

Result<Parser::ExprPtr> Parser::ParseTest(ExprPtr node) {
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

Result<Parser::ExprPtr> Parser::ParseCall(ExprPtr node) {
  Expr call;
  call.kind = ExprKind::kCall;
  call.args = {node};
  const int line = current().line;
  NIBBLE_CHECK_OK(ParseArguments(call));
  return Make(std::move(call), line);
}

Result<void> Parser::ParseArguments(Expr& call) {
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

}  // namespace

Result<Ast> Parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return Err(ErrorCode::kUnsupported, "a template of {} bytes, expected at most {}",
               source.size(), kMaxSourceBytes);
  }
  NIBBLE_TRY(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace nibble::text::jinja
