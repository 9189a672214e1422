"""Reading, packing and mixing samples on disk."""
