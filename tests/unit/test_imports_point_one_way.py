"""Imports point one way: messages, errors, headers <- ports <- stages <- pipeline <- bootstrap <- commands <- cli.

Adapters import the ports and what is below them, and vendor libraries live in adapters alone.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "consumer"

# A module may import those of lower and of equal height. What is not named is a helper, of height 0, and imports
# helpers only.
HEIGHTS = {
    "consumer.errors": 0,
    "consumer.headers": 0,
    "consumer.settings_tables": 0,
    "consumer.extras": 0,
    "consumer.kafka_properties": 0,
    "consumer.log": 1,
    "consumer.messages": 1,
    "consumer.model_spec": 1,
    "consumer.metrics": 2,
    "consumer.ports": 2,
    "consumer.clock": 2,
    "consumer.settings": 2,
    "consumer.settings_checks": 2,
    "consumer.settings_page": 2,
    "consumer.settings_sources": 2,
    "consumer.adapters": 3,
    "consumer.stages": 3,
    "consumer.tracking": 3,
    "consumer.observer": 3,
    "consumer.flow": 5,
    "consumer.swap": 5,
    "consumer.owner": 4,
    "consumer.leases": 5,
    "consumer.commits": 5,
    "consumer.transactional_commits": 5,
    "consumer.topic_watch": 5,
    "consumer.stall_watch": 5,
    "consumer.pipeline": 5,
    "consumer.share_pipeline": 5,
    "consumer.health": 6,
    "consumer.bootstrap_clouds": 6,
    "consumer.bootstrap_registries": 6,
    "consumer.bootstrap_model": 6,
    "consumer.bootstrap_serving": 7,
    "consumer.bootstrap_tracking": 6,
    "consumer.bootstrap": 7,
    "consumer.tuning_settings": 6,
    "consumer.bootstrap_roofline": 6,
    "consumer.tuning_rig": 8,
    "consumer.bootstrap_tuning": 8,
    "consumer.service": 8,
    "consumer.console": 8,
    "consumer.demo": 9,
    "consumer.bench": 9,
    "consumer.commands": 9,
    "consumer.cli": 10,
    "consumer.__main__": 11,
}
# The log's rate limits are for everyone who could write a flood.
BELOW_ADAPTERS = frozenset(
    {
        "consumer.errors",
        "consumer.extras",
        "consumer.headers",
        "consumer.messages",
        "consumer.model_spec",
        "consumer.ports",
        "consumer.log",
    }
)
WIRES = (
    "consumer.bootstrap",
    "consumer.bootstrap_model",
    "consumer.tuning_rig",
    "consumer.service",
    "consumer.commands",
    "consumer.demo",
    "consumer.bench",
    "consumer.adapters",
)
"""Who may import adapters: who wires them, and the commands that are a thin face of one."""

READ_THE_ENVIRONMENT = {
    "consumer.settings": "it is the one that does",
    "consumer.bootstrap_model": "XDG_CACHE_HOME: where this user's caches are is no setting of ours",
    "consumer.demo.service": "hands its own environment on to its child",
    "consumer.bench.children": "hands its own environment on to its children",
    "consumer.bench.kafka_jars": "JAVA_HOME: which Java runs a broker is no setting of ours",
    "consumer.adapters.child_start": "hands the little on to its child that W&B's client needs of it",
}

VENDORS = frozenset(
    {
        *("confluent_kafka", "fastavro", "google", "tensorflow", "PIL"),
        *("boto3", "arro3", "botocore", "httpx", "requests", "urllib3", "obstore", "mlflow"),
        *("openvino", "onnxruntime", "onnx", "tf2onnx", "nncf", "ai_edge_litert", "wandb"),
    }
)
ONLY_IN = {
    "pydantic": (
        "consumer.settings",
        "consumer.settings_checks",
        "consumer.settings_tables",
        "consumer.settings_sources",
        "consumer.contract",
        "consumer.bucket_contract",
        "consumer.stages.validate",
        "consumer.adapters.models.model_file",
    ),
    "pydantic_settings": ("consumer.settings",),
    "dotenv": ("consumer.settings",),
}


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path, *, types_too: bool = False) -> Iterator[str]:
    """Every module that a file imports, inside functions too; what only the type checker sees if `types_too`."""
    tree = ast.parse(path.read_text())
    skipped = (
        set()
        if types_too
        else {
            id(node)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
            for statement in branch.body
            for node in ast.walk(statement)
        }
    )
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def _place(module: str) -> str:
    """The entry of HEIGHTS that a module falls under: itself or its package."""
    parts = module.split(".")
    return next((".".join(parts[:end]) for end in range(len(parts), 1, -1) if ".".join(parts[:end]) in HEIGHTS), "")


def _is_ours(module: str) -> bool:
    return module.startswith("consumer.")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    height = HEIGHTS.get(_place(module), 0)
    for imported in filter(_is_ours, _imports(MODULES[module])):
        assert HEIGHTS.get(_place(imported), 0) <= height, f"{module} imports {imported}, which is above it"


def _circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty where there is none."""
    finished: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        found = next(filter(None, (search(each, [*path, module]) for each in edges.get(module, ()))), [])
        finished.add(module)
        return found

    return next(filter(None, (search(module, []) for module in sorted(edges))), [])


def test_no_modules_import_each_other_in_a_circle_not_even_for_their_types() -> None:
    edges = {
        module: {name for name in _imports(path, types_too=True) if name in MODULES} for module, path in MODULES.items()
    }
    assert _circle(edges) == []


def test_a_circle_is_found_wherever_one_enters_it() -> None:
    assert _circle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ["b", "d", "b"]
    assert _circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if _place(name) == "consumer.adapters"])
def test_an_adapter_imports_the_ports_and_what_is_below_and_its_own_package(module: str) -> None:
    for imported in filter(_is_ours, _imports(MODULES[module])):
        place = _place(imported)
        assert place in BELOW_ADAPTERS | {"", "consumer.adapters"}, f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_those_who_wire_import_adapters(module: str) -> None:
    if not module.startswith(WIRES):
        assert not [name for name in _imports(MODULES[module]) if name.startswith("consumer.adapters")]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_vendor_names_live_in_adapters_alone(module: str) -> None:
    roots = {name.partition(".")[0] for name in _imports(MODULES[module])}
    if not module.startswith("consumer.adapters"):
        assert not roots & VENDORS
    for library, places in ONLY_IN.items():
        assert library not in roots or module in places, f"{module} imports {library}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_settings_read_the_environment(module: str) -> None:
    if module in READ_THE_ENVIRONMENT:
        return
    tree = ast.parse(MODULES[module].read_text())
    # os.environ["X"] = ... tells a library something; it reads nothing.
    written = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript) and _is_stored(node)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in {"environ", "getenv", "environb"}
            and id(node) not in written
        ):
            assert ast.unparse(node.value) != "os", f"{module} reads the environment at line {node.lineno}"


def _is_stored(node: ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)
