# SPDX-License-Identifier: GPL-2.0
"""A picture of a terminal: what was typed and what came of it, as an SVG file."""

import textwrap
from html import escape

COLUMNS, LINE, MARGIN = 100, 17, 16
# Of the font below, whatever font is there in its place.
CHARACTER = 7.8
STYLE = (
    "text{font:13px monospace;fill:#d0d0d0;white-space:pre}"
    ".title{fill:#8fbcbb}.command{fill:#ffffff;font-weight:bold}"
)


class Picture:
    """Scenes below each other."""

    def __init__(self):
        self._lines = []

    def add(self, title, script, output):
        """A scene: what it is about, the commands, and the lines of what they say."""
        blank = [("", "")] if self._lines else []
        typed = textwrap.wrap(f"$ {script}", COLUMNS, subsequent_indent="    ",
                              break_on_hyphens=False)
        self._lines += [
            *blank,
            ("title", f"# {title}"),
            *(("command", line) for line in typed),
            *(("output", line.expandtabs()[:COLUMNS]) for line in output),
        ]

    def svg(self):
        """All of it."""
        width = round(2 * MARGIN + COLUMNS * CHARACTER)
        height = 2 * MARGIN + LINE * len(self._lines)
        rows = (
            f'<text x="{MARGIN}" y="{MARGIN + LINE * number - 4}" class="{kind}"'
            f' textLength="{len(text) * CHARACTER:.1f}">{escape(text)}</text>'
            for number, (kind, text) in enumerate(self._lines, 1) if text
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            ' xml:space="preserve">',
            "<!-- SPDX-License-Identifier: GPL-2.0 -->",
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" rx="6" fill="#1e2127"/>',
            *rows,
            "</svg>",
        ]) + "\n"
