#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "base/json.h"

namespace nibble::text {

// There is no C++ Jinja to take: Debian 12 and PyPI package none that has macros and namespaces,
// hence text/jinja.

/// A chat template: Jinja2 3.1 as `transformers` sets it up (trim_blocks, lstrip_blocks, loop
/// controls, the immutable sandbox, its own tojson), bounded in steps, depth, memory and output,
/// since templates come with weights from strangers. What is not known here is refused by name;
/// what renders, renders byte for byte as there. Immutable, cheap to copy, safe for use from many
/// threads.
class ChatTemplate {
 public:
  /// errors   kCorruptFile (syntax), kUnsupported (a statement, filter or test by name); both with
  ///          the line
  static Result<ChatTemplate> Parse(std::string source);

  /// The text of a conversation. `messages` is an array of objects, `tools` an array or null;
  /// `extra` holds further variables (chat_template_kwargs), which win over the tokenizer's own
  /// (bos_token, ...) but may not name what the caller or the template engine sets.
  /// errors   kInvalidArgument (the template refuses, or cannot make sense of the messages; a
  ///          forbidden variable; a limit), kUnsupported; with the template's line
  Result<std::string> Render(const Json& messages, const Json& tools, bool add_generation_prompt,
                             const Json::Object& extra = {}) const;

  struct Data;

 private:
  friend Result<ChatTemplate> LoadChatTemplate(const std::string& dir);
  std::shared_ptr<const Data> data_;
};

/// The template of a checkpoint's folder: chat_template.jinja, else "chat_template" of
/// tokenizer_config.json, which is a text or a list of {name, template} ("default", and "tool_use"
/// for when there are tools). The special tokens of tokenizer_config.json become variables.
/// errors   kNotFound (no template), kIo, and those of Parse with the file's name
Result<ChatTemplate> LoadChatTemplate(const std::string& dir);

}  // namespace nibble::text
