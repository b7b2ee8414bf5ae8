"""Place arrays on devices, and make several processes act as one job."""
