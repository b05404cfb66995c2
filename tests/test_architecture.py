"""Who may import whom, how long things may be, and what no code here ever does."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import CHECKOUT, python

PACKAGE = CHECKOUT / "pai"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text()) for name, path in zip(NAMES, FILES, strict=True)}
# A module or package of pai imports only from lower layers: never upward, never sideways.
LAYERS = (
    {"console", "errors", "identity", "layouts", "modes", "paths", "precision", "processors",
     "version"},
    {"parallel", "distributed", "submitted", "metrics"},
    {"memory", "state", "finite", "causality", "substitution"},
    {"cache", "trust", "naming", "records", "seeding", "environment", "models",
     "saliency", "prunable", "objective", "warmup", "tracking", "clock", "histogram"},
    {"components", "data", "curvature", "reports", "flops", "gpus"},
    {"schema", "library", "scorers", "masking", "training", "export", "launchers",
     "logging_settings"},
    {"explain", "overrides", "hydra_settings"},
    {"compose", "plan", "output", "cache_command"},
    {"rounds", "run_directory", "scoring"},
    {"runner", "estimate"},
    {"job", "dry_run"},
    {"sweep"},
    {"cli"},
    {"__init__", "__main__"},
)  # fmt: skip
HEIGHT = {unit: height for height, layer in enumerate(LAYERS) for unit in layer}


def unit_of(name: str) -> str:
    """Return the module or package directly below ``pai`` that a file belongs to."""
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            assert node.module is not None
            yield node.module
            if node.module == "pai":
                yield from (f"pai.{alias.name}" for alias in node.names)


def units_imported(name: str) -> set[str]:
    found = {module.split(".")[1] for module in imports(TREES[name]) if module.startswith("pai.")}
    return found - {unit_of(name)}


def foreign(name: str) -> set[str]:
    """Return the top-level packages outside pai that a file imports."""
    return {module.split(".", maxsplit=1)[0] for module in imports(TREES[name])} - {"pai"}


def below(unit: str) -> set[str]:
    """Return a unit and everything that importing it may import in the end."""
    found, waiting = set(), [unit]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            for name in NAMES:
                if unit_of(name) == current:
                    waiting += units_imported(name)
    return found


def test_every_module_has_its_layer() -> None:
    assert {unit_of(name) for name in NAMES} == set(HEIGHT)


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_downward_only(name: str) -> None:
    own = HEIGHT[unit_of(name)]
    assert {unit for unit in units_imported(name) if HEIGHT[unit] >= own} == set()


def test_masking_knows_no_scorer() -> None:
    assert below("masking").isdisjoint({"scorers", "curvature", "saliency", "data", "training"})


def test_models_know_nothing_of_pai() -> None:
    assert below("models") == {"models"}


def test_reports_never_reach_torch() -> None:
    for name in NAMES:
        if unit_of(name) in below("reports"):
            assert foreign(name).isdisjoint({"torch", "torchvision", "safetensors", "timm"})


def test_reports_run_without_torch(tmp_path: Path) -> None:
    modules = [name for name in NAMES if unit_of(name) in ("reports", "records", "naming")]
    dotted = ["pai." + name.removesuffix(".py").replace("/", ".") for name in modules]
    script = f"import sys, {', '.join(dotted)}; print('torch' in sys.modules)"
    assert python("-c", script, cwd=tmp_path).stdout.strip() == "False"


def test_records_need_the_standard_library_only() -> None:
    assert foreign("records.py") <= sys.stdlib_module_names
    assert units_imported("records.py") == set()


@pytest.mark.parametrize(
    ("packages", "users"),
    [
        (
            {"hydra", "omegaconf"},
            {"cli", "compose", "explain", "job", "library", "overrides", "sweep"},
        ),
        ({"pydantic"}, {"components", "logging_settings", "schema"}),
        ({"wandb"}, {"tracking"}),
        ({"PIL", "sklearn"}, {"data"}),
        ({"torchvision"}, {"data", "models"}),
        ({"timm"}, {"models"}),
        ({"transformers"}, {"models"}),
        ({"tokenizers"}, {"data"}),
    ],
)
def test_a_library_is_used_where_it_belongs(packages: set[str], users: set[str]) -> None:
    assert {unit_of(name) for name in NAMES if foreign(name) & packages} <= users


@pytest.mark.parametrize("name", NAMES)
def test_files_have_at_most_300_lines(name: str) -> None:
    assert len((PACKAGE / name).read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", NAMES)
def test_functions_have_at_most_60_lines(name: str) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert long == {}


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(k, ast.Name) and k.id in ("Exception", "BaseException") for k in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_every_broad_except_raises_again_or_says_why_not(name: str) -> None:
    lines = (PACKAGE / name).read_text().splitlines()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node):
            again = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            reason = lines[node.lineno - 1].partition("# noqa: BLE001")[2].strip()
            assert again or len(reason) > 10, f"{name}:{node.lineno}"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("name", NAMES)
def test_no_code_executes_data(name: str) -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
    assert foreign(name).isdisjoint({"pickle", "cloudpickle", "dill", "marshal", "shelve"})
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            where = f"{name}:{node.lineno}"
            assert called not in forbidden, where
            assert "shell" not in options, where
            if called == "torch.load":
                safe = options.get("weights_only")
                assert isinstance(safe, ast.Constant), where
                assert safe.value is True, where


def test_no_source_file_is_ignored_by_git() -> None:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    folders = ["pai", "conf", "tests", "scripts", "benchmarks", "docs"]
    listing = ["git", "-C", str(CHECKOUT), "ls-files", "--others", "--ignored"]
    done = subprocess.run(
        [*listing, "--exclude-standard", "--", *folders], capture_output=True, text=True, check=True
    )
    sources = (".py", ".yaml", ".md", ".typed")
    assert [line for line in done.stdout.splitlines() if line.endswith(sources)] == []


def test_test_files_have_names_of_their_own() -> None:
    counts = Counter(path.name for path in (CHECKOUT / "tests").rglob("*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
