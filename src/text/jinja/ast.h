#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::text::jinja {

enum class ExprKind : uint8_t {
  kConst,        // value
  kName,         // text
  kList,         // args
  kTuple,        // args
  kDict,         // args: key, value, key, value, ...
  kAttribute,    // args[0] . text
  kItem,         // args[0] [ args[1] ]
  kSlice,        // args[0] [ args[1] : args[2] : args[3] ], any of the three null
  kCall,         // args[0] ( args[1...], named )
  kFilter,       // args[0] | text ( args[1...], named )
  kTest,         // args[0] is text ( args[1...], named )
  kNot,          // args[0]
  kNegative,     // args[0]
  kPositive,     // args[0]
  kAnd,          // args[0], args[1]
  kOr,           // args[0], args[1]
  kBinary,       // args[0] text args[1]; text is + - * / // % **
  kConcat,       // args joined by ~
  kCompare,      // args[0] operators[0] args[1] operators[1] args[2] ...
  kConditional,  // args[0] if args[1] else args[2], which may be null
  kBlockText,    // the text of the set or filter block that is being left
};

/// A node of an expression. All nodes of a template lie in its Ast, so that freeing a long chain
/// does not recurse; `height` bounds how deep evaluating one does.
struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int height = 1;
  std::string text;
  Value value;
  std::vector<const Expr*> args;
  std::vector<std::pair<std::string, const Expr*>> named;
  std::vector<std::string> operators;
};

using Body = std::vector<const Stmt*>;

/// What `set`, `for` and `with` bind: a name, or an attribute of a namespace.
struct Target {
  std::string name;
  std::string attribute;  // empty: the name itself
};

enum class StmtKind : uint8_t {
  kText,         // text
  kOutput,       // exprs[0]
  kIf,           // bodies[i] if exprs[i]; bodies[exprs.size()], if there, is the else
  kFor,          // targets; exprs: iterable, filter or null; bodies: loop, else
  kSet,          // targets = exprs[0]; is_tuple says whether to unpack
  kSetBlock,     // targets[0] = exprs[0] over kBlockText; bodies[0]
  kMacro,        // text: name; targets: parameters; exprs: defaults of the last of them; bodies[0]
  kWith,         // targets[i] = exprs[i]; bodies[0]
  kFilterBlock,  // exprs[0] over kBlockText; bodies[0]
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  std::string text;
  std::vector<Target> targets;
  bool is_tuple = false;
  std::vector<const Expr*> exprs;
  std::vector<Body> bodies;
};

/// A parsed template. Moving it keeps the nodes where they are.
struct Ast {
  std::deque<Expr> exprs;
  std::deque<Stmt> stmts;
  Body body;
};

}  // namespace nibble::text::jinja
