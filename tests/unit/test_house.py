"""The rules of the house that no other tool checks: layout, sizes, calls, names, drift."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
TREES = ("services", "gateway")
SERVICES = ("router", "vision-encoder", "agent-decoder", "tool-executor", "aggregator")
LIFE = ROOT / "docs" / "life-of-a-contemplation.md"
KIT = frozenset(
    "lifecycle errors interceptors channels config telemetry trace_store metrics metric_registry "
    "auth clock tasks orca identity renewing access listening calls logs span_sender".split()
)

CORE_LINES = 400
SERVER_LINES = 200
KIT_LINES = 250
MAIN_LINES = 30
FUNCTION_LINES = 60
# Functions that are longer and why; keep it short.
LONG_FUNCTIONS: dict[str, str] = {}

FORBIDDEN_IMPORTS = frozenset(
    "pickle cPickle marshal shelve dill cloudpickle joblib jsonpickle telnetlib".split()
)
# Calls that run or trust what they are given. Dotted names as they are written in the code.
FORBIDDEN_CALLS = frozenset(
    "eval exec compile __import__ torch.load torch.jit.load torch.hub.load yaml.load "
    "yaml.unsafe_load os.system os.popen tempfile.mktemp subprocess.getoutput "
    "subprocess.getstatusoutput asyncio.create_subprocess_shell".split()
)
FORBIDDEN_ARGUMENTS = {("allow_pickle", True), ("shell", True), ("trust_remote_code", True)}
CLIENT_MAY_IMPORT = frozenset({"cogitate", "grpc", "google"})
ONLY_IN_THE_CONTRACT = ("cogitate.v1", "cogitate.client")


def sources(*trees: str) -> Iterator[Path]:
    """Yields the Python files under the trees, in order."""
    for tree in trees:
        yield from sorted(p for p in (ROOT / tree).rglob("*.py") if "__pycache__" not in p.parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    line = getattr(node, "lineno", None)
    return f"{path.relative_to(ROOT)}" + (f":{line}" if line else "")


def dotted(node: ast.expr) -> str:
    """Returns `a.b.c` for an attribute chain, and an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


# -- layout ------------------------------------------------------------------------------------


def test_the_namespace_has_no_init() -> None:
    found = [where(p) for tree in (*TREES, "protos") for p in (ROOT / tree).rglob("cogitate/*.py")]
    assert found == [], "a file right under cogitate/ breaks the namespace package"
    assert not list(ROOT.glob("cogitate*")), "there is no top-level package"


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_the_same_files(service: str) -> None:
    folder = ROOT / "services" / service
    package = folder / "cogitate" / service.replace("-", "_")
    wanted = [folder / "README.md", package / "core"]
    names = ("__init__", "__main__", "config", "server", "wire", "runtime")
    wanted += [package / f"{name}.py" for name in names]
    assert [where(path) for path in wanted if not path.exists()] == []


def test_the_kit_holds_what_was_agreed_and_nothing_else() -> None:
    files = {p.stem for p in (ROOT / "services/kit/cogitate/kit").glob("*.py")}
    assert files - {"__init__"} == KIT, "an addition to the kit needs an ADR"


def test_no_module_is_called_after_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "misc", "manager"}
    assert [where(p) for p in sources(*TREES) if p.stem in empty] == []


# -- sizes -------------------------------------------------------------------------------------


def budget(path: Path) -> int | None:
    if "core" in path.parts:
        return CORE_LINES
    if path.name == "server.py":
        return SERVER_LINES
    if path.parent.name == "kit":
        return KIT_LINES
    return MAIN_LINES if path.name == "__main__.py" else None


def test_files_keep_to_their_budget() -> None:
    sizes = [(p, line_count(p), budget(p)) for p in sources(*TREES)]
    over = [f"{where(p)}: {n} > {limit}" for p, n, limit in sizes if limit and n > limit]
    assert over == []


def test_functions_keep_to_their_budget() -> None:
    over = []
    for path in sources(*TREES):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES and node.name not in LONG_FUNCTIONS:
                    over.append(f"{where(path, node)} {node.name}: {lines}")
    assert over == []


# -- what must not be called ---------------------------------------------------------------------


def test_no_forbidden_import() -> None:
    found = []
    for path in sources(*TREES):
        for node in ast.walk(parsed(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            hits = {name for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS}
            found += [f"{where(path, node)} imports {name}" for name in sorted(hits)]
    assert found == []


def test_no_forbidden_call() -> None:
    found = []
    for path in sources(*TREES):
        for call in calls(path):
            name = dotted(call.func)
            safe = name == "torch.load" and "training" in path.parts and is_weights_only(call)
            if name in FORBIDDEN_CALLS and not safe:
                found.append(f"{where(path, call)} calls {name}")
            for keyword in call.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in FORBIDDEN_ARGUMENTS:
                    found.append(f"{where(path, call)} sets {keyword.arg}={value!r}")
    assert found == []


def is_weights_only(call: ast.Call) -> bool:
    """Training reads its own checkpoints, and tensors only; nothing that is installed does."""
    return any(
        k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def test_the_scan_finds_what_it_looks_for(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("import pickle\ntorch.load(x)\neval(y)\nrun(z, shell=True)\nm.eval()\n")
    names = [dotted(call.func) for call in calls(planted)]
    assert names == ["torch.load", "eval", "run", "m.eval"]
    assert [n for n in names if n in FORBIDDEN_CALLS] == ["torch.load", "eval"]


def test_nothing_listens_on_every_interface_by_itself() -> None:
    found = [
        where(path, node)
        for path in sources(*TREES)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"(0\.0\.0\.0|\[::\]|::)(:|$)", node.value)
    ]
    assert found == []


def test_the_client_imports_the_contract_and_grpc_only() -> None:
    foreign = []
    for path in sources("gateway/cogitate/client"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                ours = top == "cogitate" and not name.startswith(ONLY_IN_THE_CONTRACT)
                if ours or (top not in CLIENT_MAY_IMPORT and top not in sys.stdlib_module_names):
                    foreign.append(f"{where(path, node)} imports {name}")
    assert foreign == []


# -- names ---------------------------------------------------------------------------------------


def test_spans_events_and_attributes_come_from_the_registry() -> None:
    """A name of a span or an attribute is a member of Span or Attr, never a text of its own."""
    found = []
    for path in sources(*TREES):
        if "kit" in path.parts:
            continue
        for call in calls(path):
            name = dotted(call.func)
            kind = name.rpartition(".")[2]
            opens = name in ("telemetry.span", "telemetry.start_span", "telemetry.event")
            if (opens or kind in ("set_attribute", "add_event")) and call.args:
                if isinstance(call.args[0], ast.Constant | ast.JoinedStr):
                    found.append(where(path, call))
            if kind == "set_attributes" or opens:
                tables = [a for a in call.args if isinstance(a, ast.Dict)]
                found += [
                    where(path, key)
                    for table in tables
                    for key in table.keys
                    if isinstance(key, ast.Constant | ast.JoinedStr)
                ]
    assert found == []


def test_invariants_of_cores_name_tests_that_exist() -> None:
    tests = set(
        re.findall(r"\w+", "\n".join(p.read_text(encoding="utf-8") for p in sources("tests")))
    )
    tests |= {p.stem for p in sources("tests")}
    missing = []
    for path in sources(*TREES):
        if "core" not in path.parts:
            continue
        text = ast.get_docstring(parsed(path)) or ""
        functions = re.findall(r"\btest_\w+\b(?!\.py)", text)
        missing += [f"{where(path)} names {n}" for n in functions if n not in tests]
        named = re.findall(r"tests/[\w/]+\.py", text)
        missing += [f"{where(path)} names {n}" for n in named if not (ROOT / n).exists()]
    assert missing == []


def test_symbols_of_the_life_of_a_contemplation_exist() -> None:
    """Every file the page names is there, and so is every name: in its file if it follows one.

    Short paths belong to the package of a full path before them, the nearest first.
    """
    words = set(re.findall(r"\w+", "\n".join(code_and_contract())))
    contract = {n for p in (ROOT / "protos/cogitate").rglob("*.proto") for n in symbols(p)}
    missing, packages, path = [], [ROOT], ROOT
    text = re.sub(r"```.*?```", "", LIFE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for before, span in re.findall(r"([^`]*)`([^`]+)`", text):
        if re.fullmatch(r"[\w./-]+\.(py|proto|md|sh)", span):
            found = [p / span for p in packages if (p / span).exists()]
            path = found[0] if found else ROOT
            missing += [] if found else [span]
            if "cogitate" in path.parts:
                packages.insert(0, Path(*path.parts[: path.parts.index("cogitate") + 2]))
        elif path.is_file() and re.fullmatch(r":\s+", before):
            known = span in short_symbols(path) | contract
            missing += [] if known else [f"{span} in {where(path)}"]
        elif re.fullmatch(r"\w+", span) and span not in words:
            missing.append(span)
    assert missing == []


def code_and_contract() -> Iterator[str]:
    yield from (p.read_text(encoding="utf-8") for p in sources(*TREES))
    yield from (p.read_text(encoding="utf-8") for p in (ROOT / "protos/cogitate").rglob("*.proto"))


def short_symbols(path: Path) -> set[str]:
    """Returns the names a file defines, with and without the class they are in."""
    return {part for name in symbols(path) for part in (name, name.rpartition(".")[2])}


def symbols(path: Path) -> set[str]:
    """Returns the names a Python file or a proto defines, methods dotted."""
    if path.suffix == ".proto":
        text = path.read_text(encoding="utf-8")
        return set(re.findall(r"^\s*(?:message|enum|service|rpc)\s+(\w+)", text, re.MULTILINE))
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign | ast.AnnAssign) and not prefix.count("."):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    walk(parsed(path), "")
    return found


def test_no_tracked_file_names_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    pattern = re.compile(rb"/(?:work|root)/\w|https?://[^ \"']*/simple\b")
    hits = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        small = path.is_file() and path.stat().st_size < 1_000_000
        if small and pattern.search(path.read_bytes()) and path != Path(__file__):
            hits.append(name)
    assert hits == []


# -- the contract --------------------------------------------------------------------------------


def test_every_proto_is_linted(buf: str) -> None:
    listed = subprocess.run(
        [buf, "ls-files", "protos"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    protos = {where(p) for p in (ROOT / "protos").rglob("*.proto")}
    assert {str(Path(line)) for line in listed.stdout.split()} == protos
    subprocess.run([buf, "lint", "protos"], cwd=ROOT, check=True)


@pytest.fixture
def buf() -> str:
    found = shutil.which(
        "buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip("buf is not installed: it comes with the extra `dev`")
    return found


def test_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    """Generates with the pinned old generator and compares byte for byte."""
    if sys.version_info >= (3, 14):
        pytest.skip("the pinned generator has no wheel for this Python")
    run = subprocess.run(
        ["bash", str(ROOT / "protos/generate.sh"), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode and "No matching distribution" in run.stderr + run.stdout:
        pytest.skip("the pinned generator cannot be installed here: no package index")
    assert run.returncode == 0, run.stderr
    committed, fresh = tree(ROOT / "protos/gen"), tree(tmp_path)
    assert sorted(committed) == sorted(fresh)
    changed = [name for name in committed if committed[name] != fresh[name]]
    assert changed == [], "run `make protos` and commit protos/gen"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
