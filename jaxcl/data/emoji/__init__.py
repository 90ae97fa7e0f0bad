"""The built-in emoji set: 3,812 drawings in colour with a three-level label tree."""

from jaxcl.data.emoji.source import EmojiSource, load

__all__ = ["EmojiSource", "load"]
