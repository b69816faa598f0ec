"""Values by subject, found in both directions. Pure; owns the meaning of NATS wildcards in memory, nothing else.

Plain subjects can be looked up by a filter (``below``: what a stream needs) and stored filters by a plain subject
(``matching``: what a bus needs). Both cost the number of tokens and of matches, not the number of stored subjects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def matches(subject_filter: str, subject: str) -> bool:
    """Whether a plain subject lies in a filter: ``*`` is one token, a last ``>`` is one or more."""
    wanted, given = subject_filter.split("."), subject.split(".")
    if wanted[-1] == ">":
        if len(given) < len(wanted):
            return False
        wanted.pop()
    elif len(given) != len(wanted):
        return False
    return all(token in {"*", part} for token, part in zip(wanted, given, strict=False))


class _Node(Generic[T]):
    __slots__ = ("children", "subject", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.subject = ""
        self.value: T | None = None


class SubjectTree(Generic[T]):
    """One value per subject; removed subjects leave nothing behind."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def get(self, subject: str) -> T | None:
        """The value of exactly this subject; wildcards are not interpreted."""
        node = self._root
        for token in subject.split("."):
            child = node.children.get(token)
            if child is None:
                return None
            node = child
        return node.value

    def put(self, subject: str, value: T) -> None:
        """Set the value of exactly this subject."""
        node = self._root
        for token in subject.split("."):
            node = node.children.setdefault(token, _Node())
        node.subject, node.value = subject, value

    def remove(self, subject: str) -> None:
        """Forget exactly this subject, which must be there."""
        tokens = subject.split(".")
        path = [self._root]
        for token in tokens:
            path.append(path[-1].children[token])
        path[-1].value = None
        for parent, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            node = parent.children[token]
            if node.children or node.value is not None:
                return
            del parent.children[token]

    def below(self, subject_filter: str, limit: int | None = None) -> list[tuple[str, T]]:
        """The stored plain subjects in a filter, at most ``limit`` of them."""
        return list(itertools.islice(_walk(self._root, subject_filter.split("."), 0), limit))

    def matching(self, subject: str) -> list[T]:
        """The values of the stored filters that a plain subject lies in."""
        found: list[T] = []
        nodes = [self._root]
        for token in subject.split("."):
            rest = (n.children[">"].value for n in nodes if ">" in n.children)
            found += [value for value in rest if value is not None]
            nodes = [n.children[t] for n in nodes for t in (token, "*") if t in n.children]
        return found + [n.value for n in nodes if n.value is not None]


def _walk(node: _Node[T], tokens: list[str], depth: int) -> Iterator[tuple[str, T]]:
    if depth >= len(tokens):  # at the end of the filter, or anywhere below its ">"
        if node.value is not None:
            yield node.subject, node.value
        if tokens[-1] == ">":
            for child in node.children.values():
                yield from _walk(child, tokens, depth)
    elif tokens[depth] in {"*", ">"}:
        for child in node.children.values():
            yield from _walk(child, tokens, depth + 1)
    elif tokens[depth] in node.children:
        yield from _walk(node.children[tokens[depth]], tokens, depth + 1)
