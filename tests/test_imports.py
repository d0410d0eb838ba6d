"""Imports run one way. Read from the source, imports inside functions included."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "llmscale", "data_pipeline")


def _pipeline(rooms: str) -> set[str]:
    return {f"data_pipeline.{room}" for room in rooms.split()}


# A row: this part of the project may import these parts, and itself. A part is `package` or `package.subpackage`; an
# entry covers everything below it.
MAY_IMPORT = {
    "data_pipeline": set(),
    "data_pipeline.base": set(),
    "data_pipeline.batch": _pipeline("objectives"),
    "data_pipeline.document": set(),
    "data_pipeline.cleaning": _pipeline("base document"),
    "data_pipeline.layouts": _pipeline("base"),
    "data_pipeline.kinds": _pipeline("base"),
    "data_pipeline.tokenizer_kinds": set(),
    "data_pipeline.config": _pipeline("base cleaning kinds layouts tokenizer_kinds"),
    "data_pipeline.sources": _pipeline("base document cleaning config kinds layouts"),
    "data_pipeline.tokenizer": _pipeline("base document config sources tokenizer_kinds"),
    "data_pipeline.reading": _pipeline("base tokenizer"),
    "data_pipeline.objectives": _pipeline("base config document reading tokenizer"),
    "data_pipeline.samples": _pipeline("base config sources objectives"),
    "data_pipeline.stream": _pipeline("base document config sources tokenizer objectives samples"),
    "data_pipeline.finite": _pipeline("base batch document config sources tokenizer objectives samples stream"),
    "data_pipeline.prepare": _pipeline("base document cleaning config sources tokenizer objectives finite"),
    "data_pipeline.open_samples": _pipeline("base document config sources tokenizer objectives samples stream finite"),
    "data_pipeline.loader": _pipeline("base batch config sources tokenizer objectives samples stream open_samples"),
    "data_pipeline.ledger": _pipeline("base config tokenizer objectives samples stream open_samples"),
    "data_pipeline.seen": _pipeline("base config tokenizer objectives stream finite open_samples ledger"),
    "launcher": {
        "llmscale.config",
        "llmscale.plan",
        "llmscale.layout",
        "llmscale.distributed",
        "llmscale.train.run_directory",
        "llmscale.report.goodput",
        "data_pipeline.base.durable",
        "data_pipeline.base.errors",
        "data_pipeline.base.records",
        "data_pipeline.base.terminal",
    },
    "llmscale.distributed": {"data_pipeline"},
    "llmscale.doctor": {"launcher", "llmscale.distributed", "data_pipeline.base"},
    "llmscale.families": {"data_pipeline.base"},
    "llmscale.config": {"llmscale.families", "data_pipeline"},
    "llmscale.layout": {"llmscale.config", "llmscale.objectives", "llmscale.model.heads", "data_pipeline"},
    "llmscale.plan": {
        "llmscale.finetune.trained",
        "llmscale.model.attention",
        "llmscale.model.factors",
        "llmscale.config",
        "llmscale.layout",
        "llmscale.objectives",
        "llmscale.model.heads",
        "llmscale.parallel.plans",
        "data_pipeline",
    },
    "llmscale.model": {"llmscale.config", "llmscale.families.hugging_face", "data_pipeline"},
    "llmscale.slices": set(),
    "llmscale.finetune": {"llmscale.slices", "llmscale.parallel", "llmscale.model", "llmscale.config", "data_pipeline"},
    "llmscale.objectives": {"llmscale.model", "llmscale.config", "data_pipeline"},
    "llmscale.parallel": {"llmscale.slices", "llmscale.model", "llmscale.config", "data_pipeline"},
    "llmscale.checkpoint": {"llmscale.slices", "llmscale.model", "llmscale.config", "data_pipeline"},
    "llmscale.engine": {
        "llmscale.finetune",
        "llmscale.distributed",
        "llmscale.objectives",
        "llmscale.parallel",
        "llmscale.slices",
        "llmscale.model",
        "llmscale.config",
        "data_pipeline",
    },
    "llmscale.evaluate": {
        "llmscale.distributed",
        "llmscale.engine",
        "llmscale.generate",
        "llmscale.layout",
        "llmscale.model",
        "llmscale.objectives",
        "llmscale.checkpoint",
        "llmscale.parallel",
        "llmscale.config",
        "data_pipeline",
    },
    "llmscale.embeddings": {"llmscale.model", "llmscale.checkpoint", "data_pipeline"},
    "llmscale.generate": {
        "llmscale.model",
        "llmscale.objectives",
        "llmscale.checkpoint",
        "llmscale.parallel",
        "llmscale.config",
        "data_pipeline",
    },
    "llmscale.hugging_face": {
        "llmscale.slices",
        "llmscale.checkpoint",
        "llmscale.families",
        "llmscale.finetune.trained",
        "llmscale.model",
        "llmscale.objectives",
        "llmscale.parallel",
        "llmscale.config",
        "data_pipeline",
    },
    "llmscale.report": {
        "llmscale.config",
        "llmscale.evaluate",
        "data_pipeline.tokenizer",
        "llmscale.model.heads",
        "data_pipeline.base.records",
        "data_pipeline.base.errors",
        "data_pipeline.base.durable",
    },
    "llmscale.topics": {"llmscale.embeddings", "llmscale.report.theme", "data_pipeline"},
    "llmscale.train": {
        "llmscale.slices",
        "llmscale.finetune",
        "llmscale.distributed",
        "llmscale.engine",
        "llmscale.checkpoint",
        "llmscale.evaluate",
        "llmscale.generate",
        "llmscale.report",
        "llmscale.objectives",
        "llmscale.parallel",
        "llmscale.model",
        "llmscale.config",
        "llmscale.layout",
        "llmscale.plan",
        "data_pipeline",
    },
    "llmscale.parity": {
        "llmscale.slices",
        "llmscale.distributed",
        "llmscale.train",
        "llmscale.engine",
        "llmscale.objectives",
        "llmscale.parallel",
        "llmscale.checkpoint",
        "llmscale.config",
        "llmscale.layout",
        "data_pipeline",
    },
    "llmscale": {"llmscale.interface"},
    "llmscale.interface": {"llmscale", "data_pipeline"},
    "llmscale.data_commands": {"llmscale.checkpoint", "llmscale.config", "data_pipeline"},
    "llmscale.commands": {"llmscale", "launcher", "data_pipeline"},
    "llmscale.cli": {"llmscale.commands", "llmscale.distributed.ending", "launcher.commands"},
    "llmscale.__main__": {"llmscale.cli"},
}
# The bare package, which holds the version, is free to all.
ONLY_WITHIN = {"deepspeed": "llmscale.engine"}
NEVER = {"launcher": {"torch"}, "llmscale.model": {"torch.distributed", "deepspeed"}}
READS_NO_ENVIRONMENT = "llmscale.model"
PYTHON_INTERFACE = "llmscale.interface"
LAZY = "llmscale.commands"
HEADS = "llmscale.model.heads"
LIGHT = ("data_pipeline.base", "llmscale.commands", "llmscale.distributed.ranks", "llmscale.distributed.exit_codes")


@dataclass(frozen=True)
class Import:
    """One import statement's target: a dotted name whose last parts may be attributes and not modules."""

    module: str
    line: int
    top_level: bool
    runs: bool = True
    """False where only type checkers see it."""


def below(name: str, ancestor: str) -> bool:
    return name == ancestor or name.startswith(ancestor + ".")


def part_of(module: str) -> str:
    """The row of MAY_IMPORT that a module belongs to."""
    return ".".join(module.split(".")[: 1 if below(module, "launcher") else 2])


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written; empty for any other expression. Unparsing all of them would take most of the time."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


@functools.cache
def imports(module: str, path: Path) -> list[Import]:
    return list(_imports(module, path))


def _imports(module: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for_types = {
        child
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and dotted(block.test) == "TYPE_CHECKING"
        for child in ast.walk(block)
    }
    within_functions = for_types | {
        child
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(block)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "__import__"):
            names = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        elif isinstance(node, ast.Attribute) and dotted(node) == "torch.distributed":
            names = ["torch.distributed"]  # reached through `import torch`
        for name in names:
            yield Import(name, node.lineno, node not in within_functions, node not in for_types)


def environment_reads(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv", "os.environb"):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in ("environ", "getenv", "environb"))


def complaint(module: str, imported: Import, known: dict[str, Path]) -> str | None:
    """Why this module may not import that, or None."""
    target = imported.module
    for name, home in ONLY_WITHIN.items():
        if below(target, name) and not below(module, home):
            return f"only {home} may import {name}"
    for name in NEVER.get(part_of(module), ()):
        if below(target, name):
            return f"{part_of(module)} may not import {name}"
    bare = target.rpartition(".")[0] == "llmscale" and target not in known  # such as llmscale.__version__
    if below(target, part_of(module)) or bare or target.split(".")[0] not in PACKAGES:
        return None
    return complaint_within_project(module, imported)


def complaint_within_project(module: str, imported: Import) -> str | None:
    part, target = part_of(module), imported.module
    if part not in MAY_IMPORT:
        return f"{part} has no row in MAY_IMPORT"
    if not any(below(target, allowed) for allowed in MAY_IMPORT[part]):
        return f"{part} may not import {target}"
    if below(module, LAZY) and imported.top_level and not any(below(target, light) for light in LIGHT):
        return f"{LAZY} may import {target} only inside a function, so that --help stays fast"
    return None


def violations(root: Path) -> list[str]:
    """Each forbidden import under `root` as `file:line: why`."""
    known = modules(root)
    found = []
    for module, path in known.items():
        where = path.relative_to(root)
        for imported in imports(module, path):
            why = complaint(module, imported, known)
            found += [f"{where}:{imported.line}: {why}"] if why else []
        if below(module, READS_NO_ENVIRONMENT):
            found += [f"{where}:{line}: {part_of(module)} reads the environment" for line in environment_reads(path)]
    return found + torch_behind_the_launcher(root, known)


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other, directly or through others, wherever the imports stand; sorted."""
    known, edges = modules(root), imported_modules(root)
    reachable = {module: _reachable(module, edges) for module in known}
    found = {
        tuple(sorted(other for other in reachable[module] if module in reachable[other]))
        for module in known
        if module in reachable[module]
    }
    return sorted(map(list, found))


def imported_modules(root: Path) -> dict[str, set[str]]:
    """For each module of the project, those of the project that it imports."""
    known = modules(root)
    return {module: _edges(module, path, known) for module, path in known.items()}


def _edges(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a module names; the packages above them, which Python loads too, are no part of a circle."""
    targets = set()
    for imported in imports(module, path):
        name = imported.module if imported.module in known else imported.module.rpartition(".")[0]
        targets |= {name} & known.keys() - {module}
    return targets


def _reachable(module: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(edges[module])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += edges[name]
    return seen


def torch_behind_the_launcher(root: Path, known: dict[str, Path]) -> list[str]:
    """Imports of torch in any module that a launcher module reaches, through whatever chain; but the functions that
    read a checkpoint's tensors, of which launchers look at the manifests only, and those that build heads, of which
    layouts and plans only ask what they are, import it when they are called."""
    found = []
    waiting = [module for module in known if below(module, "launcher")]
    reached = set(waiting)
    while waiting:
        module = waiting.pop()
        for imported in imports(module, known[module]):
            if below(imported.module, PYTHON_INTERFACE):  # the package has it for those who ask
                continue
            if not imported.runs or (not imported.top_level and below(module, HEADS)):
                continue
            late = not imported.top_level and below(module, "llmscale.checkpoint")
            if below(imported.module, "torch") and not late and not below(module, "launcher"):
                found.append(f"{known[module].relative_to(root)}:{imported.line}: the launcher reaches torch here")
            parts = imported.module.split(".")
            chain = {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & known.keys()
            waiting += chain - reached
            reached |= chain
    return sorted(found)


def test_imports_run_one_way():
    assert violations(ROOT) == []


def test_no_modules_import_each_other():
    assert circles(ROOT) == []


def test_a_circle_is_found(tmp_path):
    late = "def f():\n    from llmscale.plan import a"
    plant(tmp_path, {"llmscale/plan/a.py": "from llmscale.plan.b import x", "llmscale/plan/b.py": late})
    assert circles(tmp_path) == [["llmscale.plan.a", "llmscale.plan.b"]]


def test_the_pictures_of_the_house_are_those_of_the_imports():
    from docs.rooms import PAGE, page

    assert page(PAGE.read_text(encoding="utf-8")) == PAGE.read_text(encoding="utf-8"), "run python -m docs.rooms"


def test_every_part_has_a_row():
    parts = {part_of(module) for module in modules(ROOT)}
    assert parts - MAY_IMPORT.keys() == set()


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data_pipeline/loader.py", "import llmscale.config", "data_pipeline.loader may not import llmscale.config"),
        (
            "data_pipeline/loader.py",
            "def f():\n    from llmscale import config",
            ":2: data_pipeline.loader may not import",
        ),
        ("launcher/local.py", "def f():\n    import torch.cuda", ":2: launcher may not import torch"),
        ("launcher/local.py", "from llmscale.train import loop", "launcher may not import llmscale.train.loop"),
        ("launcher/local.py", "from data_pipeline import loader", "launcher may not import data_pipeline.loader"),
        ("llmscale/model/block.py", "import torch.distributed as dist", "may not import torch.distributed"),
        (
            "llmscale/model/block.py",
            "import torch\nx = torch.distributed.get_rank",
            ":2: llmscale.model may not import",
        ),
        ("llmscale/model/block.py", "from torch import distributed", "may not import torch.distributed"),
        ("llmscale/model/block.py", "from ..parallel import grid", "may not import llmscale.parallel.grid"),
        ("llmscale/model/block.py", "import os\nx = os.environ['RANK']", ":2: llmscale.model reads the environment"),
        ("llmscale/model/block.py", "from os import getenv", "reads the environment"),
        ("llmscale/parallel/init.py", "import deepspeed", "only llmscale.engine may import deepspeed"),
        (
            "llmscale/train/loop.py",
            "def f():\n  import deepspeed.comm",
            ":2: only llmscale.engine may import deepspeed",
        ),
        ("llmscale/engine/engine.py", "from llmscale.train import loop", "may not import llmscale.train.loop"),
        (
            "llmscale/engine/engine.py",
            "from llmscale.checkpoint import store",
            "may not import llmscale.checkpoint.store",
        ),
        ("llmscale/report/page.py", "from data_pipeline.loader import x", "may not import data_pipeline.loader.x"),
        ("llmscale/config/root.py", "import importlib\nimportlib.import_module('llmscale.cli')", ":2: llmscale.config"),
        ("llmscale/config/root.py", "def f():\n    import torch", ":2: the launcher reaches torch here"),
        ("llmscale/config/__init__.py", "import torch", ":1: the launcher reaches torch here"),
        ("llmscale/__init__.py", "import torch", ":1: the launcher reaches torch here"),
        ("llmscale/commands/x.py", "from llmscale.train import loop", "only inside a function"),
        ("llmscale/novelty/x.py", "import llmscale.config", "llmscale.novelty has no row"),
    ],
)
def test_a_forbidden_import_is_found_with_file_and_line(tmp_path, file, source, expected):
    plant(tmp_path, {"launcher/commands.py": "def f():\n    from llmscale.config import root", file: source})
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:")
    assert expected in found[0]


def test_allowed_imports_are_not_complained_about(tmp_path):
    allowed = {
        "launcher/local.py": "from llmscale.config import root\nfrom data_pipeline.base.errors import UserError",
        "llmscale/commands/x.py": "from llmscale import __version__\ndef f():\n    from llmscale.train import loop",
        "llmscale/train/loop.py": "from llmscale.engine.engine import Engine\nimport torch.distributed",
        "llmscale/engine/engine.py": "import deepspeed\nfrom llmscale.slices.fragment import Fragment",
        "llmscale/model/block.py": "from llmscale.config import root\nfrom .heads import Head\nimport torch.nn",
    }
    plant(tmp_path, allowed)
    assert violations(tmp_path) == []


def test_importing_what_is_light_loads_no_torch():
    parts = ("launcher", "llmscale.config", "llmscale.layout", "llmscale.plan", "llmscale.evaluate.tasks")
    light = [module for module in modules(ROOT) if any(below(module, part) for part in parts)]
    heavy = ("torch", "deepspeed", "accelerate", "transformers", "datasets")
    script = f"import sys\nfor name in {light!r}: __import__(name)\nprint([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def plant(root: Path, files: dict[str, str]) -> None:
    """A source tree of the project's packages with these files; other modules that they name are empty."""
    empty = [
        f"llmscale/{name}.py" for name in ("cli", "train/loop", "config/root", "parallel/grid", "checkpoint/store")
    ]
    for name in [*empty, *files]:
        for folder in (root / name).parents:
            if root in folder.parents:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "__init__.py").touch()
        (root / name).write_text(files.get(name, ""))
