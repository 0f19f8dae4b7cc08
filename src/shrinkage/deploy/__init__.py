"""From a sparse model to something smaller or faster: files, compaction, exports."""
