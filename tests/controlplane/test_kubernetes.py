"""Reading manifests: files, directories, YAML and JSON, what is refused there, and the lab's own manifests."""

import io
from pathlib import Path

import pytest

from controlplane.kubernetes import VALUES_MAX, Document, Unreadable, read_paths, read_text
from controlplane.kubernetes_objects import command_of

LAB = Path(__file__).parents[2] / "deploy" / "lab"


def test_documents_know_their_line() -> None:
    """An error in the third document of a long file is found."""
    found = read_text("# head\na: 1\n---\n---\nb: 2\n", "x.yaml")
    assert found == [Document("x.yaml:2", {"a": 1}), Document("x.yaml:5", {"b": 2})]


@pytest.mark.parametrize("text", ['{"a": [1]}', "{a: [1]}", "a: [1]"])
def test_json_and_yaml_are_read(text: str) -> None:
    """A brace in front is JSON, or a flow mapping of YAML."""
    assert read_text(text, "x") == [Document("x:1", {"a": [1]})]


def test_lists_are_taken_apart() -> None:
    """`kubectl get -o yaml` writes a List; a PodList's items leave kind and version to it."""
    text = "{kind: List, apiVersion: v1, items: [{kind: Pod}]}"
    assert read_text(text, "x") == [Document("x:1[0]", {"kind": "Pod"})]
    text = "{kind: PodList, apiVersion: v1, items: [{metadata: {}}]}"
    assert read_text(text, "x") == [Document("x:1[0]", {"apiVersion": "v1", "kind": "Pod", "metadata": {}})]
    assert read_text("{kind: List}", "x") == [Unreadable("x:1", "kind List: items must be a list")]


@pytest.mark.parametrize(
    ("text", "source", "reason"),
    [
        ("a: 1\nb: [\n", "x:3", "is not YAML"),
        ("a: 1\na: 2\n", "x:2", "key 'a' stands twice"),
        ('{"a": 1, "a": 2}', "x:1", "key 'a' stands twice"),
        ('{"a": 1,, }', "x:1", "is not JSON"),
        ("a: !!python/object:os.system {}", "x:1", "could not determine a constructor"),
        ("a: &a [*a]", "x:1", "inside the value that it repeats"),
        ("[" * 3000, "x:1", "is not YAML"),
        ("[" * 200_000, "x:1", "is not YAML"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, source: str, reason: str) -> None:
    """File and line, and what is wrong there."""
    (found,) = read_text(text, "x")
    assert isinstance(found, Unreadable)
    assert found.source == source
    assert reason in found.reason


def test_aliases_do_not_fill_the_memory() -> None:
    """Ten levels of ten aliases are 10^10 values in a kilobyte of text."""
    levels = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    (found,) = read_text("\n".join(levels), "x")
    assert isinstance(found, Unreadable)
    assert str(VALUES_MAX) in found.reason


def test_a_document_before_a_broken_one_is_read() -> None:
    """The others are read all the same."""
    found = read_text("a: 1\n---\nb: [\n", "x")
    assert [type(item) for item in found] == [Document, Unreadable]


def test_dates_and_keys_stay_text() -> None:
    """An annotation that looks like a date is not one to Kubernetes."""
    assert read_text("a: 2026-01-01", "x") == [Document("x:1", {"a": "2026-01-01"})]


def test_directories_are_read_in_order_of_name(tmp_path: Path) -> None:
    """Their own YAML and JSON files, nothing else and nothing below."""
    for name, text in (("b.json", '{"b": 1}'), ("a.yaml", "a: 1"), ("c.txt", "c: 1"), ("d.yml", "d: 1")):
        (tmp_path / name).write_text(text)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "e.yaml").write_text("e: 1")
    found = read_paths([str(tmp_path)], io.StringIO())
    assert [item.document for item in found if isinstance(item, Document)] == [{"a": 1}, {"b": 1}, {"d": 1}]


def test_standard_input_is_read() -> None:
    """Under the name "-"."""
    assert read_paths(["-"], io.StringIO("a: 1")) == [Document("standard input:1", {"a": 1})]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, an empty directory, bytes that are no text."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / name) for name in ("gone.yaml", "empty", "binary.yaml")]
    found = read_paths(names, io.StringIO())
    assert [item.source for item in found] == names
    assert all(isinstance(item, Unreadable) for item in found)


@pytest.mark.parametrize("cluster", ["east", "west"])
def test_the_lab_manifests_are_accepted(cluster: str) -> None:
    """Every document of the shop becomes a command."""
    found = read_paths([str(LAB / cluster)], io.StringIO())
    assert len(found) > 5
    for item in found:
        assert isinstance(item, Document), item
        command = command_of(item.document, cluster)
        assert not isinstance(command, tuple), (item.source, [str(refusal) for refusal in command])
