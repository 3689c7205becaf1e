#!/usr/bin/env python3
"""A preprocessor of mdbook: pages that live elsewhere in the repository, and links that leave the book.

A chapter that consists of one `{{#include FILE}}` becomes that file. Links are relative to the file in
which they are written, so that they work where files are read directly. Here a link to a file that is a
page of the book becomes a link to that page, and a link to any other file keeps its text only, because
a built book has no such file beside it.
"""

import json
import os
import re
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent / "src"
INCLUDE = re.compile(r"\A\s*\{\{#include ([^}:]+)\}\}\s*\Z")
LINK = re.compile(r"(?<!!)\[([^\]\n]*(?:\n[^\]\n]*)?)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)


def main():
    if sys.argv[1:2] == ["supports"]:
        return
    _, book = json.load(sys.stdin)
    items = book.get("items") or book.get("sections")
    chapters = list(walk(items))
    # The file that a page is made of, and the page itself.
    pages = {}
    for chapter in chapters:
        page = BOOK / chapter["path"]
        pages[page.resolve()] = page
        if found := INCLUDE.match(chapter["content"]):
            pages[(page.parent / found[1]).resolve()] = page
    for chapter in chapters:
        page = source = BOOK / chapter["path"]
        if found := INCLUDE.match(chapter["content"]):
            source = (page.parent / found[1]).resolve()
            chapter["content"] = source.read_text(encoding="utf-8")
        chapter["content"] = relink(chapter["content"], source, page, pages)
    json.dump(book, sys.stdout)


def walk(items):
    """All chapters with a file."""
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            chapter = item["Chapter"]
            if chapter.get("path"):
                yield chapter
            yield from walk(chapter["sub_items"])


def relink(text, source, page, pages):
    """The text with its links as seen from the page."""

    def link(found):
        label, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        there = pages.get((source.parent / path).resolve())
        if not there:
            return label
        anchor = f"#{anchor}" if anchor else ""
        return f"[{label}]({os.path.relpath(there, page.parent)}{anchor})"

    # Every second part is a block of code.
    parts = FENCE.split(text)
    return "".join(part if index % 2 else LINK.sub(link, part) for index, part in enumerate(parts))


if __name__ == "__main__":
    main()
