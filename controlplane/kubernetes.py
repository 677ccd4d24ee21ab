"""Reading manifests: files, directories and standard input, YAML or JSON, into documents with their place. Shell.

Belongs here: files, YAML, `List` kinds. Does not belong here: what a document means (kubernetes_objects.py).
A document that cannot be read names file and line; the others are read all the same. What YAML lets pass and a person
never means is refused: a key twice in one mapping, and aliases that grow beyond a bound.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
import yaml

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
VALUES_MAX = 100_000
"""Values in one document, aliases followed; far above any real manifest, far below what would fill the memory."""


class Document(msgspec.Struct, frozen=True):
    """One manifest. `source` is "file:line", or "file:line[3]" for an item of a List."""

    source: str
    document: Any


class Unreadable(msgspec.Struct, frozen=True):
    """A place where no document could be read, and why."""

    source: str
    reason: str


class _Loader(yaml.SafeLoader):
    """YAML as the Kubernetes API reads it: a date is text, and a key stands once in a mapping."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml, where PyYAML was built with it: ten times as fast, and without a bound on nesting."""


NESTING_MAX = 200
"""Deeper text goes to the slow loader, which ends in an error where the fast one would overflow its stack."""


def _loader_of(text: str) -> type[_Loader] | type[_FastLoader]:
    """The fast one for text without fault; the other tells better what is wrong."""
    depth = 0
    try:
        for parsed in yaml.parse(text, Loader=_FastLoader):
            depth += isinstance(parsed, yaml.CollectionStartEvent) - isinstance(parsed, yaml.CollectionEndEvent)
            if depth > NESTING_MAX:
                return _Loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return _Loader
    return _FastLoader


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, None] = {}
    for key_node, _ in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key in seen and key != "<<":
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen[key] = None
    loader.flatten_mapping(node)
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


for _each in (_Loader, _FastLoader):
    _each.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
    _each.add_constructor("tag:yaml.org,2002:timestamp", _construct_text)


def read_paths(paths: Iterable[str], stdin: TextIO) -> list[Document | Unreadable]:
    """Every document of these files and directories (their own files, not those below), "-" being standard input."""
    found: list[Document | Unreadable] = []
    for path in paths:
        if path == STDIN:
            found += read_text(stdin.read(), "standard input")
            continue
        found += _read_path(Path(path))
    return found


def _read_path(path: Path) -> Sequence[Document | Unreadable]:
    try:
        files = [path]
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
        if not files:
            return [Unreadable(str(path), f"the directory holds no file that ends in {', '.join(SUFFIXES)}")]
        return [item for each in files for item in read_text(each.read_text(encoding="utf-8"), str(each))]
    except OSError as error:
        return [Unreadable(str(error.filename or path), error.strerror or str(error))]
    except UnicodeDecodeError:
        return [Unreadable(str(path), "is not UTF-8 text")]


def read_text(text: str, name: str) -> list[Document | Unreadable]:
    """The documents of one text, JSON if it starts with a brace."""
    reader = _json_documents if text.lstrip().startswith("{") else _yaml_documents
    found: list[Document | Unreadable] = []
    for item in reader(text, name):
        found += [item] if isinstance(item, Unreadable) else _without_list(item)
    return found


def _json_documents(text: str, name: str) -> Iterator[Document | Unreadable]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"key {key!r} stands twice in one mapping")
        return dict(pairs)

    try:
        yield Document(f"{name}:1", json.loads(text, object_pairs_hook=once))
    except json.JSONDecodeError as error:
        # A flow mapping of YAML starts with a brace too.
        documents = list(_yaml_documents(text, name))
        if any(isinstance(item, Unreadable) for item in documents):
            yield Unreadable(f"{name}:{error.lineno}", f"is not JSON: {error.msg}, column {error.colno}")
            return
        yield from documents
    except (ValueError, RecursionError) as error:
        yield Unreadable(f"{name}:1", str(error))


def _yaml_documents(text: str, name: str) -> Iterator[Document | Unreadable]:
    line = 1
    try:
        loader = _loader_of(text)(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None, "check_node said that there is one"
            line = node.start_mark.line + 1
            _check_size(node)
            content = loader.construct_document(node)
            if content is not None:
                yield Document(f"{name}:{line}", content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Unreadable(f"{name}:{mark.line + 1 if mark else line}", f"is not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        yield Unreadable(f"{name}:{line}", f"is not YAML: {str(error) or type(error).__name__}")


def _check_size(root: yaml.Node) -> None:
    """Raises ValueError where a document, with its aliases written out, is too large or contains itself."""
    sizes: dict[int, int] = {}
    open_nodes: dict[int, None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise ValueError("an alias stands inside the value that it repeats")
        if id(node) not in sizes:
            open_nodes[id(node)] = None
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            del open_nodes[id(node)]
        return sizes[id(node)]

    if size(root) > VALUES_MAX:
        raise ValueError(f"the document has over {VALUES_MAX} values with its aliases written out")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _without_list(found: Document) -> list[Document | Unreadable]:
    """The items of a `List` or `PodList`; an item takes kind and version from the list's name if it has none."""
    document = found.document
    if not isinstance(document, dict) or not str(document.get("kind", "")).endswith("List"):
        return [found]
    items = document.get("items")
    if not isinstance(items, list):
        return [Unreadable(found.source, f"kind {document['kind']}: items must be a list")]
    kind = str(document["kind"]).removesuffix("List")
    defaults = {"apiVersion": document.get("apiVersion"), "kind": kind} if kind else {}
    return [
        Document(f"{found.source}[{number}]", {**defaults, **item} if isinstance(item, dict) else item)
        for number, item in enumerate(items)
    ]
