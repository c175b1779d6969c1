"""The shape of the package: no import circles, functions one can read, imports inside functions only with a reason."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parents[1] / "unihetero_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.name
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES
}
#: Lines of a function; a kernel or a whole compiled program may have more.
LONGEST, LONGEST_KERNEL = 60, 100
KERNELS = ("model/attention/", "parallel/", "train/step")
# May be imported inside a function by any file: not everybody has them.
OPTIONAL = {
    *("IPython", "apache_beam", "datasets", "libtpu", "lmms_eval", "pandas", "pyarrow", "tensorflow_datasets", "torch"),
    *("resource", "tensorboardX", "tensorflow", "transformers", "wandb"),
}
# Take up to a second to import. A file that does without them may import them, and ours that need them, in functions.
HEAVY = {
    *("PIL", "array_record", "flax", "grain", "jax", "matplotlib", "ml_collections", "numpy", "optax", "orbax"),
    *("scipy", "sentencepiece"),
}


def _functions(file: Path):
    tree = ast.parse(file.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_no_file_is_imported_by_what_it_imports():
    graph = grimp.build_graph("unihetero_jax", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) - {name} for name in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import circle: " + " -> ".join(reversed(error.args[1])))


def test_few_files_at_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_functions_and_files_are_short():
    too_long = []
    for file in FILES:
        name = file.relative_to(PACKAGE).as_posix()
        limit = LONGEST_KERNEL if name.startswith(KERNELS) else LONGEST
        for function in _functions(file):
            if (lines := function.end_lineno - function.lineno + 1) > limit:
                too_long.append(f"{name}: {function.name} has {lines} lines")
        if (lines := len(file.read_text("utf-8").splitlines())) > 500:
            too_long.append(f"{name} has {lines} lines")
    assert not too_long


def test_constructors_take_few_parameters():
    wide = []
    for file in FILES:
        for function in _functions(file):
            arguments = function.args
            if function.name == "__init__" and len(arguments.args) + len(arguments.kwonlyargs) - 1 > 8:
                wide.append(f"{file.relative_to(PACKAGE)}:{function.lineno}")
    assert not wide


@functools.cache
def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text("utf-8"), str(MODULES[name]))


def imported(name: str, node: ast.Import | ast.ImportFrom) -> set[str]:
    """Full names that a statement imports; of ours the modules, of others what is written."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, f"{name}:{node.lineno}: a relative import"
    assert node.module is not None
    whole = {f"{node.module}.{alias.name}" for alias in node.names}
    return {each if each in MODULES else node.module for each in whole}


@functools.cache
def imports(name: str) -> tuple[tuple[ast.Import | ast.ImportFrom, str], ...]:
    """Every import statement of a file, and where it stands: "module", "typing" or "function"."""
    found: list[tuple[ast.Import | ast.ImportFrom, str]] = []

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, where))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "function"
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            where = "typing"
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(parse(name), "module")
    return tuple(found)


def with_parents(name: str) -> set[str]:
    """A module of ours and the packages whose ``__init__`` runs before it."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)} & MODULES.keys()


@functools.cache
def heavy(name: str) -> frozenset[str]:
    """Heavy and optional packages that are imported with a name; a module of ours imports what its imports do."""
    top = name.split(".")[0]
    if name not in MODULES:
        return frozenset({top} & (HEAVY | OPTIONAL))
    seen: set[str] = set()
    found: set[str] = set()
    ahead = [name]
    while ahead:
        for each in with_parents(ahead.pop()) - seen:
            seen.add(each)
            targets = {target for node, where in imports(each) if where == "module" for target in imported(each, node)}
            ahead += targets & MODULES.keys()
            found |= {target.split(".")[0] for target in targets} & (HEAVY | OPTIONAL)
    return frozenset(found)


def lazily_imported(name: str) -> Iterator[str]:
    """Complaints about the imports inside functions of a file."""
    lines = MODULES[name].read_text("utf-8").splitlines()
    inside = [(node, imported(name, node)) for node, where in imports(name) if where == "function"]
    # One reason for a package is enough in a file.
    explained = {
        target.split(".")[0]
        for node, targets in inside
        for target in targets
        if any("#" in line for line in lines[node.lineno - 4 : node.end_lineno])
    }
    for node, targets in inside:
        for target in targets:
            package = target.split(".")[0]
            if package not in OPTIONAL and not heavy(target) - heavy(name):
                yield f"{name}:{node.lineno}: {target} belongs at the top of the file"
            elif package not in explained:
                yield f"{name}:{node.lineno}: why inside a function? Say it in a comment above"


def test_imports_inside_functions_are_of_what_is_optional_or_heavy():
    wrong = [complaint for name in MODULES if name != ROOT for complaint in lazily_imported(name)]
    assert not wrong
