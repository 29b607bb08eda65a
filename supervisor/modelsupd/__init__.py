"""A supervisor daemon for local LLM engines that proves that they generate."""

__version__ = "0.1.0"
