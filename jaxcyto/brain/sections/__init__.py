"""Section images of any size: windows as 8-bit gray values, label images, atlas images."""

import lazy_loader

# What is public stands in __init__.pyi; it is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
