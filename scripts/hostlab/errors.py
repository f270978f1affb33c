"""The one error of this program: something to be told in a line, with the remedy."""

from __future__ import annotations


class HostsError(Exception):
    """``str()`` is one line for the user: what is wrong, and what to do about it."""
