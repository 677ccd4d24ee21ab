"""Which identities each selector in use selects, kept as identities come and go; and which policies can be about one.
Pure.

Belongs here: the indexes that keep the cost of a change with the change. Does not belong here: rules and rows.
A selector is found through its anchor, one In or Exists requirement, so that an identity is tried only against
selectors that name one of its labels, and a new selector only against identities that carry one of its values.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from controlplane.model import Labels, ObjectKey
from controlplane.policy.selectors import EXISTS, IN, LabelIndex, Requirement, Selector, index_labels

LabelValue = tuple[str, str]
"""A key with its source, and a value."""
ANY_VALUE = "\0"
"""In the place of a value: whoever carries the key."""
EVERYONE: LabelValue = ("", ANY_VALUE)
"""In the place of a label: subjects that name none that must be there."""


class Selection:
    """`put` and `remove` of identities answer with the selectors whose result changed."""

    def __init__(self) -> None:
        self._labels: dict[int, LabelIndex] = {}
        self._carriers: dict[LabelValue, dict[int, None]] = {}
        self._selected: dict[Selector, list[int]] = {}
        self._anchored: dict[LabelValue, dict[Selector, None]] = {}
        self._anchors: dict[Selector, Requirement | None] = {}
        self._unanchored: dict[Selector, None] = {}

    def labels_of(self, identity: int) -> LabelIndex | None:
        return self._labels.get(identity)

    def identities(self) -> Sequence[int]:
        return sorted(self._labels)

    def selected(self, selector: Selector) -> Sequence[int]:
        """Sorted identity numbers. Raises KeyError for a selector that was not added."""
        return self._selected[selector]

    def selectors(self) -> Sequence[Selector]:
        return sorted(self._selected)

    def add(self, selector: Selector) -> None:
        if selector in self._selected:
            return
        anchor = self._choose_anchor(selector)
        self._anchors[selector] = anchor
        if anchor is None:
            self._unanchored[selector] = None
            candidates: Iterable[int] = self._labels
        else:
            for place in _places(anchor):
                self._anchored.setdefault(place, {})[selector] = None
            candidates = dict.fromkeys(number for place in _places(anchor) for number in self._carriers.get(place, ()))
        self._selected[selector] = sorted(
            number for number in candidates if selector.matches_index(self._labels[number])
        )

    def drop(self, selector: Selector) -> None:
        del self._selected[selector]
        anchor = self._anchors.pop(selector)
        if anchor is None:
            del self._unanchored[selector]
            return
        for place in _places(anchor):
            bucket = self._anchored[place]
            del bucket[selector]
            if not bucket:
                del self._anchored[place]

    def put(self, identity: int, labels: Labels) -> list[Selector]:
        index = index_labels(labels)
        if self._labels.get(identity) == index:
            return []
        changed = dict.fromkeys(self.remove(identity))
        self._labels[identity] = index
        for label_value in _label_values(index):
            self._carriers.setdefault(label_value, {})[identity] = None
        for selector in self._candidates(index):
            if selector.matches_index(index):
                insort(self._selected[selector], identity)
                changed[selector] = None
        return list(changed)

    def remove(self, identity: int) -> list[Selector]:
        index = self._labels.pop(identity, None)
        if index is None:
            return []
        for label_value in _label_values(index):
            bucket = self._carriers[label_value]
            del bucket[identity]
            if not bucket:
                del self._carriers[label_value]
        changed = []
        for selector in self._candidates(index):
            numbers = self._selected[selector]
            place = bisect_left(numbers, identity)
            if place < len(numbers) and numbers[place] == identity:
                del numbers[place]
                changed.append(selector)
        return changed

    def _candidates(self, index: LabelIndex) -> Iterable[Selector]:
        found = dict(self._unanchored)
        for label_value in _label_values(index):
            found.update(self._anchored.get(label_value, {}))
        return found

    def _choose_anchor(self, selector: Selector) -> Requirement | None:
        """The In or Exists requirement that the fewest known identities can meet."""

        def carriers(requirement: Requirement) -> int:
            return sum(len(self._carriers.get(place, ())) for place in _places(requirement))

        anchors = (each for each in selector.requirements if each.operator in (IN, EXISTS))
        return min(anchors, key=carriers, default=None)


class Subjects:
    """The subjects of policies by their anchors, so that an identity is tried only against policies that name one of
    its labels."""

    def __init__(self) -> None:
        self._places: dict[ObjectKey, dict[LabelValue, None]] = {}
        self._anchored: dict[LabelValue, dict[ObjectKey, None]] = {}

    def put(self, key: ObjectKey, subjects: Iterable[Selector]) -> None:
        """The selectors of a policy's subjects, in the place of those that it had."""
        self.remove(key)
        places = dict.fromkeys(place for subject in subjects for place in self._places_of(subject))
        self._places[key] = places
        for place in places:
            self._anchored.setdefault(place, {})[key] = None

    def remove(self, key: ObjectKey) -> None:
        for place in self._places.pop(key, ()):
            bucket = self._anchored[place]
            del bucket[key]
            if not bucket:
                del self._anchored[place]

    def candidates(self, index: LabelIndex) -> list[ObjectKey]:
        """In order: every policy of which a subject selects these labels, and few others."""
        found = dict(self._anchored.get(EVERYONE, {}))
        for label_value in _label_values(index):
            found.update(self._anchored.get(label_value, {}))
        return sorted(found)

    def _places_of(self, subject: Selector) -> list[LabelValue]:
        """Those of the anchor that the fewest policies have so far: the namespace's is many policies'."""

        def crowd(requirement: Requirement) -> int:
            return sum(len(self._anchored.get(place, ())) for place in _places(requirement))

        anchors = (each for each in subject.requirements if each.operator in (IN, EXISTS))
        anchor = min(anchors, key=crowd, default=None)
        return _places(anchor) if anchor else [EVERYONE]


def _places(anchor: Requirement) -> list[LabelValue]:
    return [(anchor.key, value) for value in (anchor.values if anchor.operator == IN else (ANY_VALUE,))]


def _label_values(index: LabelIndex) -> Iterable[LabelValue]:
    return dict.fromkeys((key, value) for key, values in index.items() for value in (*values, ANY_VALUE))
