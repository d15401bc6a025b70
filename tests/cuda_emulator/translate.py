#!/usr/bin/env python3
"""Turns CUDA sources into C++ that the emulator runs: translate.py SOURCE_ROOT OUTPUT_ROOT FILE...

Four things in a .cu are no C++: inline PTX, `kernel<<<...>>>(args)`, __shared__ variables, and launches that forget a
kernel's type. Each is replaced in place, and the line numbers stay."""
import pathlib
import re
import sys


def closing(text, at, pair="()"):
    """The index after the bracket that closes the one at `at`; strings are stepped over."""
    depth = 0
    while at < len(text):
        c = text[at]
        if c == '"':
            at += 1
            while text[at] != '"':
                at += 2 if text[at] == "\\" else 1
        elif c == pair[0]:
            depth += 1
        elif c == pair[1]:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise SystemExit("unbalanced brackets")


def split(text, by):
    """text at the characters `by` outside of brackets and strings."""
    parts, start, at = [], 0, 0
    while at < len(text):
        c = text[at]
        if c == '"':
            at = text.index('"', at + 1)
        elif c in "([{":
            at = closing(text, at, {"(": "()", "[": "[]", "{": "{}"}[c]) - 1
        elif c == by:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return parts + [text[start:]]


def operands(section):
    for operand in split(section, ","):
        match = re.match(r'\s*"([=+]?)(\w)"\s*\((.*)\)\s*$', operand, re.S)
        if match:
            yield match.groups()


def translate_asm(text):
    out, at = [], 0
    for match in re.finditer(r"\basm\b(\s+volatile)?\s*\(", text):
        if match.start() < at:
            continue
        end = closing(text, match.end() - 1)
        body = text[match.end():end - 1].replace("::", ": :")
        # The names inside the template have :: too; they are put back.
        template, *sections = split(body, ":")
        literal = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace(": :", "::")
        listed = []
        for section in sections[:2]:
            for mode, kind, value in operands(section.replace(": :", "::")):
                listed.append(f"emulator::{'Out' if mode else 'In'}({value.strip()})")
        lines = "\n" * text[match.start():end].count("\n")
        arguments = "".join(", " + o for o in listed)
        out += [text[at:match.start()],
                f'do {{ static const emulator::Ptx ptx("{literal}"); emulator::RunPtx(ptx{arguments}); }} while (0)', lines]
        at = end
    return "".join(out) + text[at:]


def translate_launches(text):
    pattern = re.compile(r"([A-Za-z_]\w*(?:::\w+)*(?:<[^<>;(){}]*(?:<[^<>]*>)?[^<>;(){}]*>)?)\s*<<<")
    while match := pattern.search(text):
        end = text.index(">>>", match.end())
        config = text[match.end():end]
        after = closing(text, text.index("(", end))
        arguments = text[text.index("(", end) + 1:after - 1]
        text = (text[:match.start()] +
                f"emulator::LaunchWith(emulator::Config({config}), {match.group(1)}, {arguments})" + text[after:])
    return text


def translate_shared(text):
    text = re.sub(r"extern __shared__\s+(?:__align__\((\w+)\)\s+)?([\w:]+)\s+(\w+)\[\];",
                  r"auto* const \3 = static_cast<\2*>(emulator::DynamicShared());", text)

    def replace(match):
        kind, names = match.group(2), split(match.group(3), ",")
        made = []
        for name in names:
            name, dims = re.match(r"\s*(\w+)\s*((?:\[[^\]]*\])*)", name).groups()
            made.append(f"static const int {name}_place = emulator::NewStaticShared(); "
                        f"auto& {name} = emulator::StaticShared<emulator::Same<{kind}>{dims}>({name}_place);")
        return " ".join(made)

    return re.sub(r"__shared__\s+(__align__\(\w+\)\s+)?([\w:]+(?:<[^;=]*?>)?)\s+([^;]*);", replace, text)


def translate(text):
    text = translate_asm(text)
    text = translate_shared(text)
    text = translate_launches(text)
    return re.sub(r"(cudaLaunchKernelExC\([^;]*?)reinterpret_cast<const void\*>\((\w+)\)", r"emulator::\1\2", text,
                  flags=re.S).replace("cudaLaunchKernelEx(", "emulator::LaunchEx(")


def main():
    source, output = map(pathlib.Path, sys.argv[1:3])
    for name in sys.argv[3:]:
        path = source / name
        to = output / (name[:-3] + ".cu.cc" if name.endswith(".cu") else name)
        to.parent.mkdir(parents=True, exist_ok=True)
        made = f'#line 1 "{path}"\n' + translate(path.read_text())
        if not to.exists() or to.read_text() != made:
            to.write_text(made)


main()
