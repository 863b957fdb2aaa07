"""Count what HOUSE-keeping looks at: python scripts/figures.py [FOLDER OF THE PACKAGE]

Rooms, imports between them, public functions that only their own module names, and docstrings that begin with a verb.
"""

import ast
import re
import sys
from pathlib import Path

WORDS = """
add advance align allow answer append apply ask assemble attach await bend bin bound bring build call cast centre
change check choose classify clear close collect compare compose compute convert copy count cover create cut decide
decode decompose delete describe detach dispatch distil divide do download draw drop embed encode end ensure estimate
evaluate expand explain export extract fetch fill find fit fix flatten forget format freeze fuse gather get give go
group guard guess handle hash hold import infer inspect invert iterate join judge keep land launch leave list load
locate lock log look lower make map mark match mean measure mend merge move name normalise note open order pad pair
parse pass pin plot pool predict prefetch prepare print probe project prove prune pull push put quote raise rank
read rebuild record refuse register release remove rename render repeat replace report reset resolve resume return
reverse run sample save say scale score search see select send serve set share shorten show sort split start state
stitch stop store strip sum take tell test time train translate trim try turn undo unpack update upload use validate
verify wait walk warn wrap write yield
"""
VERBS = frozenset(WORDS.split())


def public_definitions(tree: ast.Module):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
                yield from (method for method in methods if not method.name.startswith("_"))


def main() -> None:
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "hf_relstitch")
    files = {file: file.read_text() for file in sorted(package.rglob("*.py"))}
    trees = {file: ast.parse(text) for file, text in files.items()}
    rooms = {file.relative_to(package).parts[0].removesuffix(".py") for file in files} - {"__init__"}
    imports = sum(
        len({node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             and (node.module or "").startswith(package.name)})
        for tree in trees.values()
    )  # fmt: skip
    documented = verbs = 0
    missing: list[str] = []
    own_only: list[str] = []
    for file, tree in trees.items():
        for node in public_definitions(tree):
            if doc := ast.get_docstring(node):
                documented += 1
                first = re.split(r"\W+", doc, maxsplit=1)[0].lower()
                verbs += first in VERBS
                if first not in VERBS:
                    missing.append(f"{file}:{node.lineno} {doc.splitlines()[0]}")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not node.decorator_list:
                named = re.compile(rf"\b{node.name}\b")
                others = [other for other, text in files.items() if other != file and named.search(text)]
                if not others:
                    own_only.append(f"{file}: {node.name}")
    print(f"rooms                                       {len(rooms)}: {', '.join(sorted(rooms))}")
    lines = sum(text.count("\n") for text in files.values())
    print(f"modules, lines                              {len(files)}, {lines}")
    print(f"imports of modules by modules               {imports}")
    print(f"public docstrings that begin with a verb    {verbs} of {documented}, {verbs / documented:.0%}")
    print(f"public functions named in their module only {len(own_only)}")
    if "-v" in sys.argv:
        print("\n".join([*missing, *own_only]))


if __name__ == "__main__":
    main()
