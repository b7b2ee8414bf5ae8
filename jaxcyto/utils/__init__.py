"""Utilities for files, processes, progress output and process-wide settings."""
