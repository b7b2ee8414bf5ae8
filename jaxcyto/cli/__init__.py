"""Commands of `jaxcyto`."""

from jaxcyto.cli.root import main

__all__ = ["main"]
