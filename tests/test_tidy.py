"""The rules of the house that no linter checks.

Each rule is a pure function from a file's text to its faults. One test holds the rule against the whole tree, another
against a sample that breaks it, so that a rule which finds nothing is known to be able to find something.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
SKIPPED = {".git", ".venv", ".tools", "node_modules", "__pycache__", "dist", "build", "data"}
TEXT_SUFFIXES = {
    ".cfg", ".css", ".html", ".ini", ".js", ".json", ".lock", ".md", ".proto", ".py", ".pyi",
    ".sh", ".toml", ".txt", ".yaml", ".yml",
}  # fmt: skip
INDEX_HOSTS = tuple(
    "".join(parts)
    for parts in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("registry.", "npmjs"),
        ("registry.", "yarnpkg"),
        ("--index", "-url"),
        ("--find", "-links"),
    )
)

Rule = Callable[[str], list[str]]


def files(*tops: str) -> Iterator[Path]:
    """Yield the project's own files below `tops`: no generated stubs, no tools' leavings, each file once."""
    for top in tops:
        for path in sorted((ROOT / top).rglob("*")):
            kept = SKIPPED.isdisjoint(path.relative_to(ROOT).parts) and "_pb2" not in path.name
            if kept and path.is_file() and not linked(path):
                yield path


def linked(path: Path) -> bool:
    return path.resolve() != path


def sources() -> Iterator[Path]:
    tops = ("server", "client", "bench", "src/tickwheel", "tests")
    return (path for path in files(*tops) if path.suffix == ".py")


def texts() -> Iterator[Path]:
    """Yield every text file that is committed, whichever directory it lies in."""
    for path in sorted(ROOT.iterdir()):
        if path.name in SKIPPED or path.name.endswith("_cache"):
            continue
        if path.is_dir():
            yield from (p for p in files(path.name) if p.suffix in TEXT_SUFFIXES or not p.suffix)
        elif path.is_file():
            yield path


def faults(paths: Iterator[Path], rule: Rule) -> list[str]:
    seen = 0
    found: list[str] = []
    for path in paths:
        seen += 1
        found += [f"{path.relative_to(ROOT)}: {fault}" for fault in rule(read(path))]
    assert seen, "the rule was held against no file at all"
    return found


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""


# --- the rules -------------------------------------------------------------------------------


def long_file(text: str) -> list[str]:
    lines = len(text.splitlines())
    return [f"{lines} lines, at most {FILE_LINES_MAX}"] if lines > FILE_LINES_MAX else []


def long_functions(text: str) -> list[str]:
    """Find functions that are too long, their docstrings not counted."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = span(node)
            if ast.get_docstring(node) is not None:
                lines -= span(node.body[0])
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{node.lineno} {node.name}: {lines} lines")
    return found


def span(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def no_floor(text: str) -> list[str]:
    opening = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return [] if re.match(r"Floor [0-7]\b", opening) else ["does not open with 'Floor <n>. ...'"]


def unbounded_queues(text: str) -> list[str]:
    """Find queues without a limit. Where a limit stands elsewhere, a comment on the line says `bounded: ...`."""
    lines = text.splitlines()
    return [
        f"{node.lineno} a queue without a limit"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and unbounded(node)
        and "# bounded:" not in lines[node.lineno - 1]
    ]


def unbounded(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    keywords = {keyword.arg for keyword in call.keywords}
    match name:
        case "Queue" | "LifoQueue" | "PriorityQueue":
            return not call.args and "maxsize" not in keywords
        case "SimpleQueue":
            return True
        case "deque":
            return len(call.args) < 2 and "maxlen" not in keywords
        case _:
            return False


def second_names(text: str) -> list[str]:
    """Find imports of `server` or `client` by their directories: one file under two names is two modules."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        roots = {name.partition(".")[0] for name in names}
        found += [f"imports {root}, not tickwheel.{root}" for root in roots & {"server", "client"}]
    return found


def index_hosts(text: str) -> list[str]:
    """Find addresses of package indexes: where packages come from is the business of each machine."""
    return [f"names {host}" for host in INDEX_HOSTS if host in text]


def titles(text: str) -> list[str]:
    prose = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    count = len(re.findall(r"^# ", prose, re.MULTILINE))
    return [] if count == 1 else [f"{count} titles, not one"]


def says_pure(text: str) -> bool:
    """Whether a room promises to be pure: in its opening line, or by "no I/O" where it says what it must not import."""
    docstring = ast.get_docstring(ast.parse(text)) or ""
    opening = docstring.partition("\n")[0]
    return re.search(r"\bpure\b", opening.lower()) is not None or "no I/O" in docstring


# --- held against the tree -------------------------------------------------------------------


@pytest.mark.parametrize("rule", [long_file, long_functions, second_names])
def test_every_source_obeys(rule: Rule) -> None:
    assert faults(sources(), rule) == []


def test_every_room_names_its_floor() -> None:
    rooms = (p for p in files("server") if p.suffix == ".py" and p.name != "__init__.py")
    assert faults(rooms, no_floor) == []


def test_every_queue_of_the_server_has_a_limit() -> None:
    assert faults((p for p in files("server") if p.suffix == ".py"), unbounded_queues) == []


def test_no_text_names_a_package_index() -> None:
    assert faults(texts(), index_hosts) == []


def test_every_page_has_one_title() -> None:
    assert faults((p for p in texts() if p.suffix == ".md"), titles) == []


def test_the_gate_of_coverage_names_every_room_that_says_it_is_pure() -> None:
    pure = [p for p in files("server") if p.suffix == ".py" and says_pure(read(p))]
    assert sorted(str(p.relative_to(ROOT)) for p in pure) == gated()


def test_the_core_that_may_do_no_io_is_under_the_gate() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    (core,) = (c for c in contracts if c["name"].startswith("the core is pure"))
    rooms = {p for p in (ROOT / "server").glob("*.py") if p.name != "__init__.py"}
    drivers = {p for p in rooms if f"tickwheel.server.{p.stem} -> **" in core["ignore_imports"]}
    assert drivers
    assert {str(p.relative_to(ROOT)) for p in rooms - drivers} <= set(gated())


def gated() -> list[str]:
    """The rooms of which `make cover` wants every branch."""
    report = pyproject()["tool"]["coverage"]["report"]
    assert report["fail_under"] == 100
    include: list[str] = report["include"]
    return include


def pyproject() -> dict[str, Any]:
    return tomllib.loads(read(ROOT / "pyproject.toml"))


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_links_for_the_editable_install_stand(name: str) -> None:
    link = ROOT / "src" / "tickwheel" / name
    assert link.is_symlink(), "a checkout without symbolic links: git config core.symlinks true"
    assert link.resolve() == ROOT / name


# --- held against samples that break it ------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (long_file, "x = 1\n" * 601, "x = 1\n" * 600),
        (
            long_functions,
            "def f():\n" + "    x = 1\n" * 70,
            'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 69,
        ),
        (no_floor, '"""The wheel."""', '"""Floor 1. The wheel."""'),
        (unbounded_queues, "q = asyncio.Queue()", "q = asyncio.Queue(maxsize=10)"),
        (unbounded_queues, "q = queue.SimpleQueue()", "q = queue.Queue(10)"),
        (unbounded_queues, "q = deque([1])", "q = deque([1], maxlen=3)"),
        (unbounded_queues, "q = deque()", "q = deque()  # bounded: by the window"),
        (second_names, "import server.wheel", "import tickwheel.server.wheel"),
        (second_names, "from client import Client", "from tickwheel.client import Client"),
        (index_hosts, INDEX_HOSTS[0], "an index"),
        (titles, "# One\n# Two\n", "# One\n```sh\n# a comment\n```\n"),
        (titles, "no title\n", "# One\n## Part\n"),
    ],
)
def test_a_rule_finds_what_breaks_it(rule: Rule, bad: str, good: str) -> None:
    assert rule(bad) != []
    assert rule(good) == []


@pytest.mark.parametrize(
    ("docstring", "pure"),
    [
        ("Floor 1, pure. Which jobs are not there.", True),
        ("Floor 3. Values of the port and etcd's messages. Pure.", True),
        ("Floor 0. Values.\n\nMust never import: `model`; no I/O, no clock.", True),
        ("Floor 3. Carries plans out.\n\n`plan` is pure.", False),
        ("Floor 3. What is purely ours.", False),
    ],
)
def test_a_room_is_pure_when_its_docstring_says_so(docstring: str, *, pure: bool) -> None:
    assert says_pure(f'"""{docstring}"""') == pure
    assert not says_pure("x = 'pure, no I/O'")
