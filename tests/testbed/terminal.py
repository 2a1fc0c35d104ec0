# SPDX-License-Identifier: GPL-2.0
"""Joins a person's terminal with the machine's console."""

import os
import select
import socket
import sys
import termios
import tty

LEAVE = b"\x1d"


def join(path, first, ended):
    """Until Ctrl-] or `ended()`; `first` is typed before the person is."""
    console = socket.socket(socket.AF_UNIX)
    console.connect(path)
    keyboard = sys.stdin.fileno()
    saved = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    watched = [console, keyboard]
    try:
        if saved:
            tty.setraw(keyboard)
        console.sendall(first.encode())
        while not ended():
            ready, _, _ = select.select(watched, [], [], 0.3)
            if console in ready:
                data = console.recv(4096)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
            if keyboard in ready:
                data = os.read(keyboard, 4096)
                if LEAVE in data:
                    return
                if not data:
                    watched.remove(keyboard)
                console.sendall(data)
    finally:
        console.close()
        if saved:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)
        print()
