#!/usr/bin/env python3
"""Writes tests/golden/text/templates.json: chat templates of ours and what Jinja2 renders of them.

Jinja2 is set up as `transformers` does it. A case whose rendering fails there is kept with "error": true; ours must fail too.
Needs PyPI jinja2 3.1. Usage: make_template_golden.py [SAMPLE_CHECKPOINT_DIR] > tests/golden/text/templates.json
"""
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a place — \"now\"",
     "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Größe <b> & 'x'"},
                                                     "days": {"type": "integer", "default": 1}},
                    "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, wrapped=True):
    body = {"name": name, "arguments": arguments}
    return {"type": "function", "id": "call_1", "function": body} if wrapped else body


CONVERSATIONS = {
    "one turn": ([user("Hello")], None, {}),
    "no prompt": ([user("Hello")], None, {"add_generation_prompt": False}),
    "system": ([{"role": "system", "content": "  Be brief.\n"}, user("  Hi \n")], None, {}),
    "system late": ([user("Hi"), {"role": "system", "content": "late"}], None, {}),
    "turns": ([user("1+1?"), assistant("2"), user("2+2?"), assistant("4"), user("3+3?")], None, {}),
    "no thinking": ([user("Hi")], None, {"enable_thinking": False}),
    "thinking": ([user("Hi")], None, {"enable_thinking": True}),
    "thoughts in text": ([user("a"), assistant("<think>\nhm\n</think>\n\nyes"), user("b")], None, {}),
    "thoughts kept": ([user("a"), assistant("<think>\nhm\n</think>\n\nyes"), user("b")], None, {"preserve_thinking": True}),
    "thoughts apart": ([user("a"), assistant("yes", reasoning_content="hm\n")], None, {}),
    "thoughts null": ([user("a"), assistant("yes", reasoning_content=None)], None, {}),
    "tools": ([user("Weather?")], TOOLS, {}),
    "tools and system": ([{"role": "system", "content": "S"}, user("Weather?")], TOOLS, {}),
    "empty tools": ([user("Weather?")], [], {}),
    "tool call": ([user("Weather?"), assistant("", tool_calls=[call("get_weather", {"city": "Köln", "days": 2})]),
                   {"role": "tool", "content": "{\"t\": 21.5}"}, assistant("Warm."), user("Thanks")], TOOLS, {}),
    "tool calls": ([user("W?"), assistant("Let me see.", tool_calls=[
        call("get_weather", {"city": "A", "deep": {"x": [1, 2.5, None, True]}}), call("add", {}, wrapped=False)]),
        {"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}], TOOLS, {}),
    "tool call as text": ([user("W?"), assistant(None, tool_calls=[call("add", "{\"a\": 1}")]),
                           {"role": "tool", "content": "1"}], TOOLS, {}),
    "only tool answers": ([user("<tool_response>\nx\n</tool_response>")], None, {}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"},
                                            {"type": "text", "text": "what?"}]}], None, {}),
    "scripts": ([user("नमस्ते 世界 👩‍👩‍👧 \u00a0é"), assistant("\t好\u3000")], None, {}),
    "quotes": ([user("He said \"it's\" \\ <b>&amp;</b> {{ x }} {% y %}")], None, {}),
    "control": ([user("a\r\nb\x00\x1f\x7f\u2028c")], None, {}),
    "empty": ([], None, {}),
    "empty text": ([user(""), assistant(""), user("")], None, {}),
    "numbers": ([user("n")], None, {"n": 7, "x": 2.5, "big": 9007199254740993, "e": 1e16, "tiny": 1e-7, "neg": -3}),
    "odd role": ([{"role": "developer", "content": "D"}, user("u")], None, {}),
    "names": ([{"role": "user", "name": "ann", "content": "hi"}, user("b")], None, {"names": ["b", "A", "c", "B"]}),
    "missing content": ([{"role": "user"}], None, {}),
    "long": ([user("x" * 3000), assistant("y\n" * 500), user("z")], None, {}),
    "many": ([user("q") if i % 2 == 0 else assistant(f"answer {i}") for i in range(41)], None, {}),
}

TEMPLATES = {}

# The feature set of the Qwen3 family of 2025: tools as JSON lines, a backwards search for the last real question, thoughts cut
# from old turns, tool answers that share a turn.
TEMPLATES["hermes"] = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "You can call these:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\nAnswer with {\"name\": ..., \"arguments\": ...}<|im_end|>\n" }}
{%- else %}
    {%- if messages and messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thoughts)) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# The feature set of the Qwen3.6 family: a macro over content parts that is piped, items, previtem and nextitem, exceptions.
TEMPLATES["coder"] = r"""
{%- set counts = namespace(images=0) %}
{%- macro text_of(content, count, for_system=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if 'image' in part or part.type == 'image' %}
                {%- if for_system %}
                    {{- raise_exception('No images in a system message.') }}
                {%- endif %}
                {%- if count %}
                    {%- set counts.images = counts.images + 1 %}
                {%- endif %}
                {{- '[image ' ~ counts.images ~ ']' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('Unknown part.') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- else %}
        {{- raise_exception('Unknown content.') }}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}
    {{- raise_exception('No messages.') }}
{%- endif %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- '\n</tools>' }}
    {%- if messages[0].role == 'system' %}
        {%- set content = text_of(messages[0].content, false, true)|trim %}
        {%- if content %}
            {{- '\n\n' + content }}
        {%- endif %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {%- set content = text_of(messages[0].content, false, true)|trim %}
    {{- '<|im_start|>system\n' + content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set content = text_of(message.content, false)|trim %}
        {%- if not(content.startswith('<tool_response>') and content.endswith('</tool_response>')) %}
            {%- set ns.multi_step_tool = false %}
            {%- set ns.last_query_index = index %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if ns.multi_step_tool %}
    {{- raise_exception('No user query found.') }}
{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content, true)|trim %}
    {%- if message.role == "system" %}
        {%- if not loop.first %}
            {{- raise_exception('System message must be first.') }}
        {%- endif %}
    {%- elif message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- set reasoning = reasoning|trim %}
        {%- if (preserve_thinking is defined and preserve_thinking is true) or (loop.index0 > ns.last_query_index) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls and message.tool_calls is iterable and message.tool_calls is not mapping %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function is defined %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {%- if loop.first %}
                    {%- if content|trim %}
                        {{- '\n\n<tool_call>\n<function=' + tool_call.name + '>\n' }}
                    {%- else %}
                        {{- '<tool_call>\n<function=' + tool_call.name + '>\n' }}
                    {%- endif %}
                {%- else %}
                    {{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}
                {%- endif %}
                {%- if tool_call.arguments is mapping %}
                    {%- for name, value in tool_call.arguments|items %}
                        {{- '<parameter=' + name + '>\n' }}
                        {%- set value = value | string if value is string else value | tojson | safe %}
                        {{- value }}
                        {{- '\n</parameter>\n' }}
                    {%- endfor %}
                {%- endif %}
                {{- '</function>\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('Unexpected role: ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- else %}
        {{- '<think>\n' }}
    {%- endif %}
{%- endif %}
"""

TEMPLATES["white space"] = (
    "\n  {% if true %}  \nkept\n  {% endif %}\n{# gone #}\n x {# inside #} y\n\t{#- c -#}  \n z{%+ if true +%}\n a {%- if true -%} \n b \n"
    "{%- endif %}\n  {%+ endif %}\n  {{ 'v' }}  \n{{- 'w' -}}\n  \u00a0\n{% raw %}{{ not }} {% done %}{% endraw %}\n"
    "  {%- raw -%}  {{ x }}  {%- endraw -%}  end {% for i in [1,2] %}{{i}}\n{% endfor %}\r\nline\rlast\n\n")

TEMPLATES["expressions"] = r"""
{{ 1 + 2 * 3 - -4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 ** 2 }} {{ 2 ** -1 }} {{ 6 / 3 }} {{ -2 ** 2 }}
{{ 1.5 + 1 }} {{ 1e16 }} {{ 1e15 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1_000 }} {{ 10 % 3.5 }} {{ 5.0 }}
{{ 'a' ~ 1 ~ none ~ true ~ 2.0 ~ undefined_name }} {{ 'a' 'b' "c" }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }} {{ (1, 2) + (3,) }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'é' > 'z' }} {{ 1 != 2 }} {{ 3 >= 3 }}
{{ 'b' in 'abc' }} {{ 'x' not in 'abc' }} {{ 2 in [1, 2] }} {{ 'k' in {'k': 1} }} {{ 2 in (1,) }} {{ 'a' in missing }} {{ '' in 'x' }}
{{ true and 'x' }} {{ '' or 'y' }} {{ not '' }} {{ none or 0 }} {{ 0 and 1 }} {{ not true or true }} {{ not (1 > 2) }}
{{ 'yes' if 1 else 'no' }} {{ 'yes' if 0 else 'no' }} [{{ 'x' if 0 }}] {{ 'a' if 0 else 'b' if 0 else 'c' }}
{{ [1, 'two', none, true, 3.0, [4], {'k': "it's"}] }} {{ ('a',) }} {{ () }} {{ {'a': 1, "b": [1, 2]} }} {{ "say \"x\" 'y'" }} {{ ['say "x"', "it's", "b\"o'th", 'n\nl\t\\'] }}
{{ [1, 2, 3][0] }} {{ [1, 2, 3][-1] }} [{{ [1][5] }}] {{ 'héllo'[1] }} {{ 'héllo'[-1] }} {{ {'a': {'b': [5]}}.a.b[0] }} {{ {'a': 1}['a'] }} {{ [[7, 8]].0.1 }}
{{ [1, 2, 3, 4, 5][1:3] }} {{ [1, 2, 3][::-1] }} {{ [1, 2, 3, 4][::2] }} {{ [1, 2, 3][-2:] }} {{ [1, 2, 3][:-1] }} {{ [1, 2, 3][5:] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ [1,2,3,4,5][4:1:-2] }} {{ [1,2,3][-9:9] }} {{ (1,2,3)[:2] }} {{ [1,2,3][2:0:-1] }} {{ 'abc'[-9:-1] }}
{{ missing is defined }} {{ messages is defined }} {{ missing is undefined }} {{ none is none }} {{ 1 is not none }} {{ 'x' is string }} {{ {} is mapping }} {{ [] is iterable }} {{ 'x' is iterable }} {{ 1 is iterable }} {{ [] is sequence }} {{ 1 is number }} {{ true is number }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 1 is in [1] }} {{ 2 is gt 1 }} {{ 'A' is upper }} {{ 'a' is lower }} {{ range is callable }} {{ missing is iterable }}
{{ -1|abs }} {{ (-1)|abs }} {{ 3|string + '!' }} {{ 'a' is string and 'b' is string }} {{ not 'a' is none }} {{ (1 + 1) ~ 'x' }} {{ '%' ~ 5 }}
{{ "tab\there \x41 \u00e9 \101 \q \
joined" }} {{ range(3) | list }} {{ range(5, 1, -2) | list }} {{ dict(a=1, b='x') }} {{ dict({'a': 1}, b=2) }}
{{ none }} {{ true }} {{ False }} {{ None }} {{ 1, 2 }} {{ ('one') }} {{ [ ] }} {{ {'a': 1,} }} {{ [1,] }}
{{ {'items': 5}['items'] }} {{ {'x': 1}.y is defined }} {{ [].x is defined }} {{ none.x is defined }} {{ ''.strip is defined }} {{ {'a': none}.a is none }}
"""

TEMPLATES["filters"] = r"""
{{ '  a b ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 'abc' | length }} {{ 'héé' | length }} {{ [1, 2] | count }} {{ {'a': 1} | length }}
{{ 'aBc' | upper }} {{ 'aBc' | lower }} {{ 'hello WORLD' | capitalize }} {{ "it's a foo-bar (baz)" | title }} {{ 'a-b-c' | replace('-', '+') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'ab' | replace('', '.') }}
{{ [1, 'a', none] | join(', ') }} {{ ['a', 'b'] | join }} {{ [{'n': 1}, {'n': 2}] | join('-', attribute='n') }} {{ 'abc' | join('.') }}
{{ [3, 1, 2] | first }} {{ [3, 1, 2] | last }} {{ 'abc' | first }} [{{ [] | first }}] {{ 'abc' | list }} {{ {'a': 1, 'b': 2} | list }} {{ (1, 2) | list }}
{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) }} {{ ['b', 'A', 'c', 'B'] | sort }} {{ ['b', 'A', 'c', 'B'] | sort(case_sensitive=true) }} {{ [{'k': 2, 'v': 'x'}, {'k': 1, 'v': 'y'}] | sort(attribute='k') }} {{ [('b', 1), ('a', 2)] | sort }} {{ [{'k': 1, 'v': 'x'}, {'k': 1, 'v': 'y'}] | sort(attribute='k', reverse=true) }}
{{ [1, 2, 1, 3] | unique | list }} {{ ['a', 'A', 'b'] | unique | list }} {{ [1, 5, 3] | max }} {{ [4, 2, 8] | min }} {{ [1, 2, 3] | sum }} {{ [{'n': 1}, {'n': 5}] | sum(attribute='n') }} {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }}
{{ [1, 2, 3, 4] | select('odd') | list }} {{ [1, 2, 3, 4] | reject('odd') | list }} {{ [0, 1, '', 'x'] | select | list }} {{ [1, 2, 3] | select('gt', 1) | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ messages | map(attribute='role') | join(',') }} {{ [' a ', 'b '] | map('trim') | list }} {{ [{'a': {'b': 1}}, {}] | map(attribute='a.b', default=0) | list }} {{ ['a', 'b'] | map('replace', 'a', 'c') | list }} {{ messages | selectattr('name') | list | length }}
{{ missing | default('d') }} {{ '' | default('d') }}| {{ '' | default('d', true) }} {{ missing | d }}| {{ none | default('d') }} {{ missing | default }}|
{{ '42' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '3.9' | int }} {{ 3.9 | int }} {{ ' 5 ' | int }} {{ '2.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ true | int }} {{ -3 | abs }} {{ -2.5 | abs }}
{{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'A': 2} | items | list }} {{ missing | items | list }} {{ {'a': 1} | string }} {{ 5 | string | length }} {{ '<b>' | safe }}
{{ "a\nb\n\nc" | indent }}| {{ "a\nb\n\nc" | indent(2, true) }}| {{ "a\n\nb" | indent(1, blank=true) }}| {{ "a\nb" | indent('> ', first=true) }}
{{ {'z': 1, 'a': [1, 2.0, none, true, 'é"\\/\n\x7f\u2028'], 'e': [], 'o': {}} | tojson }}
{{ {'z': 1, 'a': [1, {'b': []}]} | tojson(indent=2) }} {{ {'z': 1, 'a': 'é😀\x7f'} | tojson(ensure_ascii=true, sort_keys=true) }} {{ [1, 'a'] | tojson(separators=(',', ':')) }} {{ 'x' | tojson }} {{ none | tojson }} {{ 1.0 | tojson }} {{ (1, 2) | tojson }} {{ [[], {}] | tojson(indent=4) }}
{% filter upper | trim %}  shout {{ 1 }} {% endfilter %}{{ n | default(3) + 1 }}
{{ messages | tojson }} {{ tools | tojson(indent=4) }}
"""

TEMPLATES["methods"] = r"""
{% set s = '  Hello, World  ' %}[{{ s.strip() }}] [{{ s.lstrip() }}] [{{ s.rstrip() }}] [{{ 'xxhixx'.strip('x') }}] [{{ 'a\n\n'.rstrip('\n') }}] [{{ '\u00a0\u3000x\x1c'.strip() }}]
{{ s.upper() }} {{ s.lower() }} {{ 'hELLO wORLD'.title() }} {{ "they're bill's".title() }} {{ 'hELLO'.capitalize() }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('') }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ ' a b  c '.split(none, 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b'.rsplit(',') }} {{ ''.split(',') }} {{ ''.split() }} {{ 'x</think>y'.split('</think>')[-1] }} {{ 'a--b'.split('-') }} {{ 'a b'.split(sep=' ', maxsplit=0) }}
{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }} {{ 'abab'.replace('a', 'x') }} {{ 'abab'.replace('a', 'x', 1) }} {{ '-'.join(['a', 'b']) }} {{ 'héllo'.find('l') }} {{ 'hello'.rfind('l') }} {{ 'x'.find('y') }} {{ 'banana'.count('an') }} {{ 'aaa'.count('aa') }} {{ [1, 2, 1].count(1) }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ '12'.isdigit() }} {{ ''.isdigit() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }}
{% set d = {'b': 1, 'a': none} %}{{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d.get('b') }} {{ d.get('x') }} {{ d.get('x', 'y') }} {{ d.get('a', 5) }} {{ d['b'] }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }}{% endfor %}
"""

TEMPLATES["statements"] = r"""
{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.depth }} {{ loop.cycle('a', 'b', 'c') }} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ loop.nextitem.role if not loop.last }}
{% else %}nothing
{% endfor %}
{% for i in range(6) if i is odd %}{{ i }}{{ loop.length }}{% endfor %} {% for a, b in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %} {% for c in 'héy' %}{{ c }}.{% endfor %} {% for x in missing %}x{% else %}none{% endfor %} {% for (k, v) in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %} {% for i in [1, 2] %}{% for j in [3, 4] %}{{ i * j }}{{ loop.depth }}{% if loop.first %}{% break %}{% endif %}{% endfor %};{% endfor %}
{% set x = 1 %}{% for i in [1, 2, 3] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }} {% set ns = namespace(n=0, l=[]) %}{% for i in [1, 2, 3] %}{% set ns.n = ns.n + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.n }} {{ ns.l }} {{ ns.nothing is defined }}
{% if x %}{% set x = 5 %}{% endif %}{{ x }} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% set t = 1, 2 %}{{ t }} {% set (p, q) = [3, 4] %}{{ p }}{{ q }} {% set block %}in {{ x }}{% endset %}[{{ block }}] {% set piped | upper | trim %} shout {% endset %}[{{ piped }}] {% set ns.block %}b{% endset %}{{ ns.block }}
{% with y = 7, z = x %}{{ y }}{{ z }}{% set y = 8 %}{{ y }}{% endwith %}{{ y is defined }}
{% macro greet(name, greeting='Hello', mark=greeting[0]) %}{{ greeting }} {{ name }}{{ mark }}{{ x }}{% endmacro %}{{ greet('A') }} {{ greet('B', greeting='Hi') }} {{ greet(name='C', mark='?') }} {{ greet() }} {{ greet('d') | upper }} {{ (greet('e') ~ '!').strip() }}
{% macro walk(v, depth=0) %}{% if v is mapping %}{% for k, w in v | items %}{{ '  ' * depth }}{{ k }}:
{{ walk(w, depth + 1) }}{% endfor %}{% elif v is iterable and v is not string %}{% for w in v %}{{ walk(w, depth + 1) }}{% endfor %}{% else %}{{ '  ' * depth }}{{ v }}
{% endif %}{% endmacro %}{{ walk({'a': {'b': [1, {'c': none}]}, 'd': 'x'}) }}{{ walk(tools) if tools }}
{% if messages | length > 3 %}many{% elif messages %}some{% else %}none{% endif %} {% if false %}{% elif true %}elif{% endif %} {% generation %}generated {{ 1 }}{% endgeneration %}
{% for i in [1, 2] %}{% set loop_x = loop %}{{ loop_x.index }}{% endfor %}{% set ns2 = namespace({'a': 1}, b=2) %}{{ ns2.a }}{{ ns2.b }} {{ bos_token is defined }} {{ n is defined }}{% if n is defined %}{{ n + x }} {{ big }} {{ e }} {{ tiny }} {{ neg }}{% endif %} {{ names | sort if names }}
{% macro shadow(messages) %}{{ messages }}{% endmacro %}{{ shadow('own') }} {{ shadow(messages | length) }} {% set messages = messages[1:] %}{{ messages | length }}
"""

# Each of these must fail, in both.
REFUSED = {
    "undefined attribute": "{{ missing.x }}",
    "undefined sum": "{{ missing + 1 }}",
    "undefined call": "{{ missing() }}",
    "type sum": "{{ 'a' + 1 }}",
    "type order": "{{ 1 < 'a' }}",
    "no iteration": "{% for x in 5 %}{% endfor %}",
    "none iteration": "{% for x in none %}{% endfor %}",
    "unpacking": "{% for a, b in [1] %}{% endfor %}",
    "unpacking count": "{% set a, b = [1, 2, 3] %}",
    "unclosed if": "{% if true %}",
    "unclosed tag": "{{ 1 ",
    "unclosed string": "{{ 'a }}",
    "unclosed comment": "{# a",
    "unknown filter": "{{ 1 | nosuchfilter }}",
    "unknown test": "{{ 1 is nosuchtest }}",
    "unknown statement": "{% nosuch %}",
    "stray end": "{% endif %}",
    "brackets": "{{ (1] }}",
    "exception": "{{ raise_exception('no ' ~ 1) }}",
    "append": "{% set l = [] %}{{ l.append(1) }}",
    "division": "{{ 1 // 0 }}",
    "too many arguments": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "unknown argument": "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "attribute of no namespace": "{% set d = {} %}{% set d.x = 1 %}",
    "in undefined": "{{ missing in 'abc' }}",
    "length of a number": "{{ 5 | length }}",
    "json of undefined": "{{ missing | tojson }}",
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "double": "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}
OURS_ONLY = {"endless", "double"}  # Jinja2 would try


def main():
    if len(sys.argv) > 1:
        TEMPLATES["sample"] = (pathlib.Path(sys.argv[1]) / "chat_template.jinja").read_text()
    env = environment()
    conversations = [{"name": name, "messages": m, "tools": t, "add_generation_prompt": e.get("add_generation_prompt", True),
                      "extra": {k: v for k, v in e.items() if k != "add_generation_prompt"}}
                     for name, (m, t, e) in CONVERSATIONS.items()]
    cases = []
    for template_name, source in TEMPLATES.items():
        template = env.from_string(source)
        for i, c in enumerate(conversations):
            try:
                text = template.render(messages=c["messages"], tools=c["tools"], documents=None,
                                       add_generation_prompt=c["add_generation_prompt"], **c["extra"])
            except (jinja2.TemplateError, TypeError) as error:
                print(f"{template_name} / {c['name']}: {error}", file=sys.stderr)
                text = None
            cases.append({"template": template_name, "conversation": i, "text": text})
    for name, source in REFUSED.items():
        if name in OURS_ONLY:
            continue
        try:
            env.from_string(source).render()
            sys.exit(f"{name}: Jinja2 takes it")
        except Exception as error:
            print(f"{name}: {type(error).__name__} {error}"[:150], file=sys.stderr)
    json.dump({"jinja2": jinja2.__version__, "templates": TEMPLATES, "conversations": conversations, "cases": cases,
               "refused": REFUSED}, sys.stdout, ensure_ascii=True, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
