"""The experiments this library is judged by, each a command: ``shrinkage reproduce``."""
