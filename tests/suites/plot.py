# SPDX-License-Identifier: GPL-2.0
"""Draws how the time of commands is distributed, as an SVG file."""

import math
from html import escape
from statistics import median

LEFT, WIDTH, LANE, GAP, HEAD = 150, 620, 44, 46, 64
# Of a decade.
BINS = 40
COLOURS = {"rust": "#b7410e", "c": "#31688e", "c_irq": "#35b779", "floor": "#555555"}
LABELS = {
    "rust": "this driver",
    "c": "the C driver",
    "c_irq": "C with IRQ flag",
    "floor": "bare exchange",
}
STYLE = (
    "text{font:13px sans-serif;fill:#222}.small{font-size:11px;fill:#555}.title{font-weight:bold}"
)


class Scale:
    """Microseconds to a place, by their logarithm."""

    def __init__(self, values):
        # Whole decades, or their parts at 2 and 5.
        steps = [digit * 10 ** power for power in range(-1, 8) for digit in (1, 2, 5)]
        self.low = max(step for step in steps if step <= min(values))
        self.high = min(step for step in steps if step >= max(values))
        self.marks = [step for step in steps if self.low <= step <= self.high]

    def place(self, value):
        """The x of a value."""
        return LEFT + WIDTH * math.log(value / self.low) / math.log(self.high / self.low)

    def bin(self, value):
        """Which bar a value belongs to."""
        return int(BINS * math.log10(value / self.low))

    def start(self, number):
        """Where a bar begins."""
        return self.place(min(self.low * 10 ** (number / BINS), self.high))


def _text(x, y, text, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _lane(scale, samples, colour, bottom):
    counts = {}
    for value in samples:
        counts[scale.bin(value)] = counts.get(scale.bin(value), 0) + 1
    most = max(counts.values())
    for number, count in sorted(counts.items()):
        left, right = scale.start(number), scale.start(number + 1)
        height = max(1.0, (LANE - 8) * count / most)
        yield (
            f'<rect x="{left:.1f}" y="{bottom - height:.1f}" width="{max(right - left, 1):.1f}" '
            f'height="{height:.1f}" fill="{colour}"/>'
        )
    yield f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{bottom}" y2="{bottom}" stroke="#ccc"/>'


def _panel(scale, title, samples, top):
    yield _text(LEFT, top + 16, title, 'class="title"')
    end = top + 24 + LANE * len(samples)
    for value in scale.marks:
        x = scale.place(value)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + 24}" y2="{end}" stroke="#eee"/>'
        yield _text(x, end + 15, f"{value:,g}", 'class="small" text-anchor="middle"')
    for number, (driver, values) in enumerate(samples.items(), 1):
        bottom = top + 24 + LANE * number
        yield from _lane(scale, values, COLOURS[driver], bottom)
        yield _text(LEFT - 10, bottom - 20, LABELS[driver], 'text-anchor="end"')
        yield _text(
            LEFT - 10,
            bottom - 5,
            f"median {median(values):,.0f} µs",
            'class="small" text-anchor="end"',
        )
    x = scale.place(median(samples["floor"]))
    yield (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + 24}" y2="{end}" stroke="#111"'
        ' stroke-dasharray="4 3"/>'
    )


def draw(title, subtitle, panels):
    """The picture of panels, each a title and the samples (µs) of each driver; the bare exchange's
    median is a dashed line."""
    scale = Scale(
        [value for samples in panels.values() for values in samples.values() for value in values]
    )
    top, parts = HEAD, []
    for name, samples in panels.items():
        parts += _panel(scale, name, samples, top)
        top += 24 + LANE * len(samples) + GAP
    parts.append(
        _text(
            LEFT + WIDTH / 2,
            top - 4,
            "µs of a command, of the drivers from user space, of the bare exchange "
            "within the kernel (dashed: its median)",
            'class="small" text-anchor="middle"',
        )
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{top + 12}">',
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        _text(20, 26, title, 'class="title" style="font-size:16px"'),
        _text(20, 46, subtitle, 'class="small"'),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"
