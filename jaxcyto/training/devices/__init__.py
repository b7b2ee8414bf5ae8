"""Devices and processes: where arrays lie, and how processes act as one."""
