"""What has nothing to do with brains: files, processes, progress, settings of the process."""
